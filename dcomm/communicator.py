"""The Communicator: one rank's membership in a group of ranks on one host, from its first call to its last."""

from __future__ import annotations

import atexit
import sys
import weakref
from types import TracebackType
from typing import Any

from dcomm import _core, handles
from dcomm.call_site import call_site, describe
from dcomm.collectives import SymmetricCollectives
from dcomm.point_to_point import PointToPoint
from dcomm.rooted import RootedCollectives
from dcomm.split import Splitting
from dcomm.window_arrays import WindowArrays

_live: weakref.WeakSet[Communicator] = weakref.WeakSet()


class Communicator(SymmetricCollectives, RootedCollectives, PointToPoint, WindowArrays, Splitting):
    """One rank's membership in a group of ranks on one host.

    Made by :func:`dcomm.init` (ranks are processes) or :func:`dcomm.init_threads` (ranks are threads of this
    process). All ranks call the same collectives in the same order. One thread at a time may use a communicator;
    different communicators are free. After an error it is broken on every rank.

    On the CPU a synchronous call blocks until this rank's part is done, with the GIL released; an asynchronous one
    runs on the communicator's progress thread, strictly in call order. A call with CUDA arrays blocks until the ranks
    that take part have called; its work is done in the order of the stream (docs/gpu.md).
    """

    def __init__(self, core: _core.Communicator, *, local_rank: int | None = None, device: int | None = None) -> None:
        """Wrap a core communicator; use :func:`dcomm.init` or :func:`dcomm.init_threads` instead."""
        super().__init__(core)
        self._device = device
        self._local_rank = core.rank if local_rank is None else local_rank
        self._handle = handles.register(self)  # a plain attribute: what Dynamo can read and guard
        core.set_made_at(call_site())
        _live.add(self)

    @property
    def local_rank(self) -> int:
        """This rank's number on its host."""
        return self._local_rank

    @property
    def device(self) -> str | None:
        """The GPU that the communicator is bound to, as ``"cuda:0"``; None: none. See :func:`dcomm.init_threads`."""
        return None if self._device is None else f"cuda:{self._device}"

    @property
    def deterministic(self) -> bool:
        """True: only algorithms that sum in canonical order are used; see :func:`dcomm.init`."""
        return self._core.deterministic

    @property
    def closed(self) -> bool:
        """True after :meth:`close`."""
        return self._core.closed

    def stats(self) -> dict[str, Any]:
        """What this rank has done since the communicator was made.

        Returns:
            ``{"num_operations": ..., "num_bytes": ..., "num_sent_bytes": ..., "num_direct": ..., "wait_us": {peer:
            ...}}``: bytes of the arrays (the larger one where input and output differ), bytes that this rank put on
            the wire (into slots or a peer's array; reading a peer's array puts none there), operations that were done
            where the arrays lie, and microseconds spent waiting for each peer, counted in waits longer than about
            1 us. An operation that is still running counts in part.
        """
        return self._core.stats()

    def lost_ranks(self) -> dict[int, str]:
        """Ranks that are gone, as far as this rank has seen.

        ``{2: "died"}``, ``{2: "exits without close()"}`` or ``{2: "closed its communicator"}``. An error names the
        rank that it was raised for; when several die at once, the others are here, and in the text of every later
        call, as soon as they are seen (some milliseconds).
        """
        return self._core.lost_ranks()

    def close(self) -> None:
        """Finish queued operations, tell the peers, free the shared memory. Idempotent."""
        try:
            if not self.closed:
                self._keeper.settle(self._core)
        finally:
            self._core.close()
            self._keeper.abandon()
        self._settle_pending()

    def __enter__(self) -> Communicator:
        """The communicator itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; after an exception without waiting for what is queued, and the peers' errors say which it was."""
        if kind is None:
            self.close()
        else:
            if error is not None:
                self._core.leave_note(describe(error))
            self._core.leave()
            self._keeper.abandon()

    def __del__(self) -> None:
        core = getattr(self, "_core", None)
        if core is not None:
            core.leave_note("dropped without close()")  # nothing, where it has been closed
            core.leave()  # before the arrays of pending operations are freed
            self._keeper.abandon()

    def __repr__(self) -> str:
        state = ", closed" if self.closed else ""
        return f"dcomm.Communicator(rank={self.rank}, world_size={self.world_size}{state})"


@atexit.register
def _leave_all() -> None:
    """Say goodbye before the interpreter goes: no thread of dcomm's outlives it."""
    error = None if hasattr(sys, "ps1") else getattr(sys, "last_value", None)  # what ended the program, if anything did
    note = "" if error is None else describe(error)
    for comm in list(_live):
        if note:
            comm._core.leave_note(note)
        comm._core.leave_at_exit()
