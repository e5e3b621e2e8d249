"""What is measured: dcomm's ranks, as threads of one process and as processes; rivals have the same form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import dcomm
from dcomm.bench.calls import dcomm_call
from dcomm.bench.cuda.case import CudaCase
from dcomm.bench.cuda.engine import Call, Engine, Pairs


class Side(Protocol):
    """The ranks that one child process plays."""

    ranks: list[int]
    world_size: int
    versions: dict[str, str]

    def pairs(self, case: CudaCase) -> Pairs:
        """Arrays for `case`, one pair for each of these ranks."""

    def call(self, case: CudaCase, pairs: Pairs) -> Call:
        """Enqueues one collective of all of these ranks."""

    def meet(self) -> None:
        """Wait on the host for the other processes, with a deadline."""

    def close(self) -> None:
        """Let go of all."""


MakeSide = Callable[[Any, Engine, int, str], Side]


class Threads:
    """All ranks in this process, one launch for all; one thread calls in `dcomm.group`, as a CUDA graph needs it."""

    def __init__(self, comm: Any, engine: Engine, world_size: int, store: str) -> None:
        """`comm`, `store`: of other sides."""
        self.ranks, self.world_size, self.versions = list(range(world_size)), world_size, dict[str, str]()
        self._engine = engine
        self._comms = dcomm.init_threads(world_size, device="cuda")

    def pairs(self, case: CudaCase) -> Pairs:
        """See :class:`Side`, here and below."""
        return self._engine.pairs(case, self.ranks, self.world_size)

    def call(self, case: CudaCase, pairs: Pairs) -> Call:
        """In one group."""
        calls = [dcomm_call(comm, case, x, out) for comm, (x, out) in zip(self._comms, pairs, strict=True)]

        def enqueue() -> None:
            with dcomm.group(self._comms):
                for call in calls:
                    call()

        return enqueue

    def meet(self) -> None:
        """There is one process."""

    def close(self) -> None:
        """The communicators."""
        for comm in self._comms:
            comm.close()


class Process:
    """This process's rank; the others are processes on the same GPU."""

    def __init__(self, comm: Any, engine: Engine, world_size: int, store: str) -> None:
        """`store`: of other sides."""
        self.ranks, self.world_size, self.versions = [comm.rank], world_size, dict[str, str]()
        self._comm, self._engine = comm, engine

    def pairs(self, case: CudaCase) -> Pairs:
        """See :class:`Side`, here and below."""
        return self._engine.pairs(case, self.ranks, self.world_size)

    def call(self, case: CudaCase, pairs: Pairs) -> Call:
        """On the process's own communicator."""
        ((x, out),) = pairs
        return dcomm_call(self._comm, case, x, out)

    def meet(self) -> None:
        """In a barrier of the host."""
        self._comm.barrier()

    def close(self) -> None:
        """The worker closes its communicator."""
