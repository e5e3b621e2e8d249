"""Handles of asynchronous operations on a GPU, and what keeps their arrays alive until the GPU is done with them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from dcomm import device_arrays
from dcomm.errors import DcommError
from dcomm.work import Work, to_seconds

if TYPE_CHECKING:
    from dcomm import _core

_AHEAD, _OVER, _CAPTURED = 0, 1, 2  # csrc/launch/cuda_api.h
_POLL_S = 0.0005  # how often an await looks
_NEVER_LAUNCHED = (DcommError, ValueError)  # what the core says of such an operation; ValueError: bad arguments
_CLOSE_PATIENCE_NS = 10_000_000_000  # as long as the group waits for its last kernel


class CudaWork(Work):
    """An operation of CUDA arrays that runs on dcomm's own stream, behind what the caller's stream held at the call.

    The arrays belong to the operation until it is over: nothing may write `x`, or use `out`, on any stream that has not
    waited for it. Dropping the handle and the arrays is allowed: the communicator keeps the arrays alive until the GPU
    is done with them. Not thread-safe, except :meth:`done`.

    As in torch, :meth:`wait` is for streams and does not block the host; :meth:`synchronize` blocks the host. Where
    ranks are threads the operation is launched when the last of them has called: who waits before that waits for it on
    the host, as long as the call's timeout says. A failure on the GPU (a rank that does not come, a peer that dies) is
    known only once the operation is over: it is raised by :meth:`synchronize`, and by the communicator's next call.
    """

    __slots__ = ("_comm", "_current", "_error", "_expires", "_held", "_origin", "_work")

    def __init__(
        self,
        work: _core.CudaWork,
        comm: _core.Communicator,
        result: Any,
        held: list[Any],
        origin: int,
        current: Callable[[], int],
    ) -> None:
        """See :func:`dcomm.cuda_operation.run`.

        Args:
            work: The core's handle.
            comm: Of the operation.
            result: What the synchronous call would have returned.
            held: The arrays, shared with the communicator; emptied once they need no keeping.
            origin: The stream of the call.
            current: The stream that the calling thread uses now.
        """
        self._work = work
        self._comm = comm
        self._result = result
        self._held = held
        self._origin = origin
        self._current = current
        self._error: BaseException | None = None
        self._expires = time.monotonic() + work.timeout_ns * 1e-9  # all ranks must have called by then

    def wait(self, timeout: float | timedelta | None = None, stream: Any = None) -> Any:
        """Let a stream wait for the operation; the host goes on at once, or when the last rank's thread has called.

        What is enqueued on the stream from now on sees the result. Any number of streams may wait, one call each.

        Args:
            timeout: Seconds: block the host until the operation is over as well, as :meth:`synchronize` does (torch's
                ``Work.wait(timeout)`` is alike).
            stream: As for collectives; None: the current stream of the arrays' library.

        Returns:
            What the synchronous call would have returned: `out`, or the array reduced in place.

        Raises:
            ValueError: Inside :func:`dcomm.group`, before the last rank's call; a stream that captures a CUDA graph,
                where the operation was launched outside of it.
            MismatchError: It was never launched: the ranks called different things, or the :func:`dcomm.group` ended
                without all ranks' calls.
            CollectiveTimeoutError, PeerLostError, AbortedError: It was never launched: a rank that is a thread has not
                called, has closed its communicator, or somebody called abort().
            DcommError: With `timeout`: as :meth:`synchronize`.
        """
        if timeout is not None:
            self.synchronize(timeout)
        handle = self._current() if stream is None else device_arrays.handle_of(stream)
        self._comm.order_cuda(self._work, handle)
        if handle == self._origin:
            # What the caller does to the arrays on their stream now comes after the operation, reuse of freed memory
            # included, as after a synchronous call.
            self._held.clear()
        return self._result

    def synchronize(self, timeout: float | timedelta | None = None) -> Any:
        """Block the host until the operation is over, and raise what went wrong on the GPU.

        Args:
            timeout: Seconds to wait; the operation itself goes on when they have passed. None: until its own deadline
                on the GPU and half a minute.

        Returns:
            As :meth:`wait`.

        Raises:
            CollectiveTimeoutError: `timeout` has passed and the operation is still running, or it gave up on the GPU.
            PeerLostError, MismatchError, AbortedError, CudaError: What the communicator has met so far.
            ValueError: The operation is part of a CUDA graph; as :meth:`wait`.
        """
        seconds = to_seconds(timeout)
        if self._error is not None:
            raise self._error
        self._comm.wait_cuda(self._work, 0 if seconds is None else max(1, int(seconds * 1e9)))
        self._held.clear()
        return self._result

    def done(self) -> bool:
        """True once the operation is over, well or badly. Never blocks, the GPU neither.

        Raises:
            ValueError: The operation is part of a CUDA graph; as :meth:`wait`.
        """
        try:
            state = self._work.state
        except _NEVER_LAUNCHED:
            return True
        if state == _CAPTURED:
            raise ValueError(
                "the operation is part of a CUDA graph, each launch of which has an end of its own; ask the stream "
                "that launched it"
            )
        return state == _OVER

    def exception(self) -> BaseException | None:
        """The error of an operation that is over; None when it went well or is still running."""
        if self.done() and self._error is None:
            try:
                _ = self._work.state  # raises what kept it from being launched
                self._comm.check_cuda_reports()
            except _NEVER_LAUNCHED as error:
                self._error = error
        return self._error

    def result(self) -> Any:
        """Same as :meth:`synchronize` without a limit."""
        return self.synchronize()

    def __await__(self) -> Generator[Any, None, Any]:
        """What :meth:`synchronize` returns, without blocking the running event loop."""
        import asyncio  # whoever awaits has it; others need not pay for it

        while not self.done():
            self._check_deadline()
            yield from asyncio.sleep(_POLL_S).__await__()
        return self.synchronize()

    def _wait_for(self, seconds: float) -> bool:
        with contextlib.suppress(*_NEVER_LAUNCHED):
            self.synchronize(max(seconds, 1e-9))
            return True
        with contextlib.suppress(*_NEVER_LAUNCHED):
            self._check_deadline()
        return self.done()

    def _check_deadline(self) -> None:
        """For those who do not block: an operation that a rank has not called in time fails, on all ranks."""
        if time.monotonic() >= self._expires:
            self._comm.expect_cuda(self._work, 1)

    def _withdraw(self) -> bool:
        """Take the call back while some rank that is a thread has not called; False: too late. Not for users."""
        if not self._comm.withdraw_cuda(self._work):
            return False
        self._held.clear()
        return True


class _Held(NamedTuple):
    work: _core.CudaWork
    arrays: list[Any]

    def is_free(self) -> bool:
        """Nothing needs keeping any more. What is part of a graph is kept by whoever keeps the graph."""
        try:
            return not self.arrays or self.work.state != _AHEAD
        except _NEVER_LAUNCHED:
            return True


class Keeper:
    """The arrays of a communicator's asynchronous operations, in their order, until the GPU is done with them."""

    def __init__(self) -> None:
        """Nothing is kept yet."""
        self._held: deque[_Held] = deque()

    def keep(self, work: _core.CudaWork, arrays: list[Any]) -> None:
        """Keep `arrays` until `work` is over or the list is emptied."""
        self._held.append(_Held(work, arrays))

    def sweep(self) -> None:
        """Let go what needs no keeping any more; asks for the first event only, and never waits."""
        while self._held and self._held[0].is_free():
            self._held.popleft()
        if _orphans:
            _sweep_orphans()

    def settle(self, comm: _core.Communicator) -> None:
        """Before a communicator is closed: wait until its operations are over, 10 s at most."""
        self.sweep()
        if self._held:
            with contextlib.suppress(DcommError, ValueError):
                comm.wait_cuda(self._held[-1].work, _CLOSE_PATIENCE_NS)  # they are over in order

    def abandon(self) -> None:
        """The communicator is gone: what the GPU may still use is kept by the process."""
        with _orphans_lock:
            _orphans.extend(held for held in self._held if not held.is_free())
        self._held.clear()


_orphans: list[_Held] = []
_orphans_lock = threading.Lock()


def _sweep_orphans() -> None:
    with _orphans_lock:
        _orphans[:] = [held for held in _orphans if not held.is_free()]
