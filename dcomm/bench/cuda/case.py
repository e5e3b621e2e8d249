"""One thing to measure on a GPU, as it is sent to the child processes."""

from __future__ import annotations

from dataclasses import dataclass

from dcomm.bench.case import Case

MODES = ("threads", "processes")  # what dcomm's ranks are
TIMINGS = ("graph", "events")


@dataclass(frozen=True)
class CudaCase(Case):
    """As :class:`~dcomm.bench.case.Case`, always on one buffer; lib: dcomm or a rival, variant: which way of it."""

    mode: str = ""  # of dcomm's
    timing: str = "graph"  # graph: replays of a CUDA graph of a batch; events: a batch is called

    @property
    def side(self) -> str:
        """The child processes that measure it: a mode, or a rival's."""
        return self.mode or self.lib
