"""One thread that plays all ranks of a group on one GPU: ``with dcomm.group(comms):``."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

from dcomm.communicator import Communicator


def group(comms: Sequence[Communicator]) -> Group:
    """Let this thread call collectives of CUDA arrays for every rank, one after the other, without waiting.

    Inside the ``with`` block a call on one communicator returns at once. An operation is launched by the call that
    completes it: when the last rank's part of a collective, or the other side of a message, is there. What is still
    incomplete at the end of the block raises. Inputs are kept alive until then. A message passes other messages of the
    block, but no collective: do not send what a recv of the same block brings.

    >>> comms = dcomm.init_threads(2, device="cuda")  # doctest: +SKIP
    >>> with dcomm.group(comms):  # doctest: +SKIP
    ...     for comm, x in zip(comms, tensors):
    ...         comm.all_reduce(x)

    Args:
        comms: Every rank of one :func:`dcomm.init_threads`, or of one :meth:`Communicator.split` of it, in any order.

    Raises:
        TypeError: Not communicators.
        ValueError: Not every rank of one group exactly once, ranks that are processes, or already inside a group.
        MismatchError: At the end: calls that were not made for all ranks. Nothing of them was started, and the
            communicators stay usable. Calls with CPU arrays raise ValueError where they are made.
    """
    return Group(comms)


class Group:
    """The context manager that :func:`group` returns."""

    def __init__(self, comms: Sequence[Communicator]) -> None:
        """See :func:`group`."""
        self._comms = list(comms)
        strangers = [comm for comm in self._comms if not isinstance(comm, Communicator)]
        if strangers or not self._comms:
            raise TypeError(f"group({comms!r}): expected the communicators of all ranks")
        first = self._comms[0]
        ranks = sorted(comm.rank for comm in self._comms)
        if not all(comm._core.is_beside(first._core) for comm in self._comms):
            raise ValueError(
                "group: the communicators are not ranks of one group of threads; pass those of one init_threads, or of "
                "one split of it"
            )
        if ranks != list(range(first.world_size)):
            raise ValueError(f"group: got ranks {ranks}: expected each of the {first.world_size} ranks once")

    def __enter__(self) -> None:
        """From now on calls are collected."""
        if any(comm._collected is not None for comm in self._comms):
            raise ValueError("group: these communicators are already inside a group; leave that one first")
        kept: list[Any] = []
        for comm in self._comms:
            comm._collected = kept

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Refuse what is incomplete; after an exception only forget it."""
        for comm in self._comms:
            comm._collected = None
        self._comms[0]._core.end_collecting_cuda(kind is None)
