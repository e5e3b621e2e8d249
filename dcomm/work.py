"""Handles of asynchronous operations."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from dcomm.errors import CollectiveTimeoutError

if TYPE_CHECKING:
    from dcomm import _core

_SLICE_S = 0.05  # how often a wait lets Python look at signals
_LONGEST_S = 1e9  # what fits the core's 64-bit nanoseconds
_settling = threading.Lock()  # one for all: only non-contiguous arrays take it


def to_seconds(timeout: float | timedelta | None) -> float | None:
    """A timeout argument in seconds; None stays None.

    Raises:
        ValueError: Not positive.
        TypeError: Neither a number nor a timedelta.
    """
    if timeout is None:
        return None
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    if not isinstance(seconds, (int, float)):
        raise TypeError(f"timeout={timeout!r}: expected seconds or a datetime.timedelta")
    if not 0 < seconds <= _LONGEST_S:
        raise ValueError(f"timeout={timeout!r}: expected a positive number of seconds, or None for the default")
    return float(seconds)


class Work:
    """An operation that runs on the communicator's progress thread.

    That of CUDA arrays is a :class:`~dcomm.cuda_work.CudaWork`.

    The arrays belong to the operation until it is done. Dropping the handle is allowed: the communicator keeps
    the arrays alive. Not thread-safe, except :meth:`done`.

    In asyncio, ``await work`` gives what :meth:`wait` returns or raises, and leaves the event loop free meanwhile. A
    cancelled ``await`` does not cancel the operation, which the other ranks take part in.
    """

    __slots__ = ("__weakref__", "_abort", "_arrays", "_core", "_finish", "_result")

    def __init__(
        self,
        core: _core.Work,
        result: Any,
        arrays: tuple[Any, ...],
        abort: Callable[[], None],
        finish: Callable[[], None] | None = None,
    ) -> None:
        self._core = core
        self._result = result
        self._arrays = arrays
        self._abort = abort
        self._finish = finish

    def done(self) -> bool:
        """True once the operation has ended, well or badly. Never blocks."""
        if not self._core.done():
            return False
        if self._finish is not None:
            self.exception()
        return True

    def wait(self, timeout: float | timedelta | None = None) -> Any:
        """Block until the operation has ended.

        Args:
            timeout: Seconds to wait; the operation itself goes on when they have passed. None: as long as the
                operation's own deadline allows.

        Returns:
            What the synchronous call would have returned: `out`, or the array reduced in place.

        Raises:
            CollectiveTimeoutError: `timeout` has passed; the operation is still running.
            DcommError: The operation failed; the subclass says why.
        """
        limit = to_seconds(timeout)
        deadline = None if limit is None else time.monotonic() + limit
        try:
            while not self._core.wait_for(
                _SLICE_S if deadline is None else max(0.0, min(_SLICE_S, deadline - time.monotonic()))
            ):
                if deadline is not None and time.monotonic() >= deadline:
                    raise CollectiveTimeoutError(
                        f"the operation is still running after {limit} s; wait again, or abort the communicator"
                    )
        except KeyboardInterrupt:
            self._abort()
            raise
        self._core.raise_if_failed()
        self._settle()
        return self._result

    def exception(self) -> BaseException | None:
        """The error of an ended operation; None when it went well or is still running."""
        if not self._core.done():
            return None
        try:
            self._core.raise_if_failed()
        except Exception as error:
            return error
        self._settle()
        return None

    def __await__(self) -> Generator[Any, None, Any]:
        """What :meth:`wait` returns, without blocking the running event loop."""
        if not self._core.done():
            yield from self._ended().__await__()
        return self.wait()

    async def _ended(self) -> None:
        import asyncio  # whoever awaits has it; others need not pay for it

        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        descriptor = self._core.open_event()  # one for each await: a loop takes one callback for a descriptor

        def note() -> None:
            if not ended.done():
                ended.set_result(None)

        try:
            loop.add_reader(descriptor, note)
            await ended
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)

    def synchronize(self, timeout: float | timedelta | None = None) -> Any:
        """Same as :meth:`wait`. Of CUDA arrays, where :meth:`wait` is for streams, what blocks the host."""
        return self.wait(timeout)

    def is_completed(self) -> bool:
        """Same as :meth:`done`, by torch's name."""
        return self.done()

    def result(self) -> Any:
        """Same as :meth:`wait` without a limit."""
        return self.wait()

    def _wait_for(self, seconds: float) -> bool:
        """True once the operation has ended; what the completer of futures blocks in."""
        return self._core.wait_for(seconds)

    def _settle(self) -> None:
        """Copy the result of a successful operation out to a non-contiguous array, once."""
        if self._finish is not None:
            with _settling:
                if self._finish is not None:
                    self._finish()
                    self._finish = None


class AnySourceWork(Work):
    """A receive from any rank: :meth:`wait`, :meth:`result` and ``await`` give the rank that has sent."""

    __slots__ = ()

    def wait(self, timeout: float | timedelta | None = None) -> int:
        """Block until the message is there; see :meth:`Work.wait`.

        Returns:
            The rank that has sent it.
        """
        super().wait(timeout)
        return self._core.source
