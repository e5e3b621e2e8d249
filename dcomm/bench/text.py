"""Numbers as the tables show them."""

from __future__ import annotations

_UNITS = ((1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B"))


def nbytes_text(nbytes: int) -> str:
    """8 B, 4 KiB, 16 MiB."""
    factor, unit = next((pair for pair in _UNITS if nbytes >= pair[0]), _UNITS[-1])
    return f"{nbytes // factor} {unit}"


def short(value: float) -> str:
    """Five significant characters, as in nccl-tests' columns."""
    for bound, digits in ((10, 3), (100, 2), (10000, 1)):
        if value < bound:
            return f"{value:.{digits}f}"
    return f"{value:.0f}"


def first_sentence(error: BaseException) -> str:
    """The error in a line of a table."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]
