"""One thing to measure, as it is sent to the rank processes; and what came out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Case:
    """Batches of one call with one size; equal cases are the same measurement."""

    count: int
    calls: int
    batches: int
    collective: str = "all_reduce"
    lib: str = "dcomm"  # dcomm, gloo, mpi or pass
    variant: str = ""  # which of a peer's settings
    level: str = "python"  # c: no Python between the calls
    dtype: str = "float32"
    wire: str | None = None
    redop: str = "sum"  # none where nothing is reduced
    root: int = -1
    algo: str = "auto"
    in_place: bool = True
    array: str = "numpy"  # what the caller holds: numpy or torch
    buffers: int = 1  # that the calls take in turn
    warm: int = 1  # batches before the clock counts
    check: bool = True
    threads: int = 0  # of gloo

    @property
    def carrier(self) -> str:
        """The narrowest type that the data takes."""
        return self.wire or self.dtype

    @property
    def chain(self) -> int:
        """How often one batch reduces the same buffer in place."""
        return self.calls // self.buffers if self.in_place else 1


class Measured(NamedTuple):
    """Times of one call, one entry per batch; wrong elements over all ranks and batches."""

    us: list[float]
    num_wrong: int
