"""What a child process wrote to stderr, for the line that tells of its failure."""

from __future__ import annotations

from typing import IO


def last_line(errors: IO[bytes]) -> str:
    """The last line in brackets, behind a blank; empty where nothing was written."""
    errors.seek(0)
    lines = errors.read().decode(errors="replace").strip().splitlines()
    return f" ({lines[-1].strip()})" if lines else ""
