"""How a bucket of gradients is reduced: in order, or beside backward. For models on the CPU."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from dcomm.communicator import Communicator
from dcomm.work import Work


class Pending(Protocol):
    """A reduction that was started."""

    def wait(self) -> Any:
        """What follows sees the result."""

    def withdraw(self) -> bool:
        """Take it back where wait() would need another rank's thread to go on; the last one first."""


class Launcher(Protocol):
    """Where reductions run; its calls are those of one rank, in an order that all ranks share."""

    @property
    def canonical_algo(self) -> str:
        """The algorithm with which sums do not depend on how gradients are cut into buckets."""

    def note(self) -> None:
        """A gradient is in its bucket, as far as the caller's stream goes."""

    def join(self) -> None:
        """What the caller does next sees all gradients that were noted."""

    def drain(self) -> None:
        """Return when all of it has happened: for clocks."""

    def start(self, buffer: torch.Tensor, op: str, wire_dtype: str | None, algo: str = "auto") -> Pending:
        """Reduce `buffer` in place beside what the caller does next."""

    def run(self, buffer: torch.Tensor, op: str, wire_dtype: str | None, algo: str = "auto") -> None:
        """Reduce `buffer` in place; what follows sees the result."""


class _Queued:
    """An operation on the progress thread."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def wait(self) -> None:
        self._work.wait()

    def withdraw(self) -> bool:
        """Backward of each rank has a thread of its own on the CPU."""
        return False


class HostLauncher:
    """The progress thread of a communicator, or the caller's own."""

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm
        self.canonical_algo = "auto" if comm.deterministic else "two_shot"

    def note(self) -> None:
        """Nothing: it is there."""

    def join(self) -> None:
        """Nothing: they are there."""

    def drain(self) -> None:
        """Nothing: it has."""

    def start(self, buffer: torch.Tensor, op: str, wire_dtype: str | None, algo: str = "auto") -> Pending:
        """On the progress thread."""
        return _Queued(self._comm.all_reduce(buffer, op, wire_dtype=wire_dtype, algo=algo, async_op=True))

    def run(self, buffer: torch.Tensor, op: str, wire_dtype: str | None, algo: str = "auto") -> None:
        """In the calling thread."""
        self._comm.all_reduce(buffer, op, wire_dtype=wire_dtype, algo=algo)
