"""The rival "gloo": ProcessGroupGloo with CUDA tensors, which it stages through the host.

Runs in CI on CPU tensors; not run on a GPU yet.
"""

from __future__ import annotations

from typing import Any

from dcomm.bench import gloo
from dcomm.bench.cuda.case import CudaCase
from dcomm.bench.cuda.engine import Call, Engine, Pairs
from dcomm.bench.cuda.sides import Process


class GlooStaged(Process):
    """One rank; gloo in the better of its settings on a host, 1 or 2 threads."""

    def __init__(self, comm: Any, engine: Engine, world_size: int, store: str) -> None:
        """Join the groups; `store`: a file that the ranks share."""
        super().__init__(comm, engine, world_size, store)
        self._groups, version = gloo.open_groups(store, comm.rank, world_size, list(gloo.THREADS))
        self.versions = {"torch": version}

    def call(self, case: CudaCase, pairs: Pairs) -> Call:
        """Returns when the result is there, or is enqueued."""
        ((x, out),) = pairs
        return gloo.gloo_call(self._groups[int(case.variant.removesuffix("t"))], case, x, out)
