"""Turns finished operations into completed torch futures.

A C++ thread cannot complete a torch future without linking libtorch, so Python threads block in C (without the
GIL) until an operation is done and then call ``set_result``. Callbacks chained with ``then`` run inside that call,
and users block in them on further collectives; therefore a thread hands the queue to another one before it
completes a future (leader and followers), and a new follower is made when none is free.
"""

from __future__ import annotations

import atexit
import queue
import threading
import weakref
from typing import Any, Protocol

import torch

from dcomm.errors import AbortedError

_BLOCK_S = 0.1  # how long a thread stays in C before it looks whether to stop

_live: weakref.WeakSet[Completer] = weakref.WeakSet()


class Awaited(Protocol):
    """An operation: :class:`dcomm.Work`, or a handle of several."""

    def _wait_for(self, seconds: float) -> bool:
        """True once it has ended."""

    def exception(self) -> BaseException | None:
        """The error of one that has ended."""


class Completer:
    """Completes futures in the order of their operations."""

    def __init__(self) -> None:
        """Start no thread yet; the first future does."""
        self._queue: queue.SimpleQueue[tuple[Awaited, Any, Any] | None] = queue.SimpleQueue()
        self._lead = threading.Lock()
        self._count = threading.Lock()  # guards _num_free and _threads
        self._num_free = 0
        self._threads: list[threading.Thread] = []
        self._stopping = False
        _live.add(self)

    def future_of(self, work: Awaited, value: Any) -> torch.futures.Future[Any]:
        """A future that gets `value` when `work` has succeeded, and the error otherwise."""
        if self._stopping:
            raise AbortedError("this hook state was shut down; make a new one")
        future: torch.futures.Future[Any] = torch.futures.Future()
        # value() re-raises inside then(), where torch keeps the text of the error for whoever waits in C++.
        checked = future.then(lambda done: done.value())
        with self._count:
            if self._num_free == 0:
                self._add_thread()
        self._queue.put((work, future, value))
        return checked

    def close(self) -> None:
        """Fail what is pending and join the threads."""
        if self._stopping:
            return
        self._stopping = True
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(timeout=5.0)

    def _add_thread(self) -> None:
        thread = threading.Thread(target=_serve, args=(weakref.ref(self),), name="dcomm-completer", daemon=True)
        self._threads = [t for t in self._threads if t.is_alive()]
        self._threads.append(thread)
        self._num_free += 1
        thread.start()


def _serve(owner: weakref.ref[Completer]) -> None:
    """Body of a thread; holds the owner strongly only while it has something to complete."""
    while True:
        completer = owner()
        if completer is None or not _complete_one(completer):
            return
        del completer


def _complete_one(completer: Completer) -> bool:
    """Wait for one operation as the leader and complete it as a follower; False when it is time to go."""
    with completer._lead:
        try:
            item = completer._queue.get(timeout=_BLOCK_S)
        except queue.Empty:
            return not completer._stopping
        if item is None:
            return False
        work, future, value = item
        error: Exception | None = None
        while not work._wait_for(_BLOCK_S):
            if completer._stopping:
                error = AbortedError("shut down while the operation was running")
                break
        else:
            error = work.exception()  # type: ignore[assignment]
        with completer._count:
            completer._num_free -= 1
            if completer._num_free == 0 and not completer._stopping:
                completer._add_thread()
    # Callbacks run here and may block on other collectives: somebody else leads by now.
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(error)
    del work, future, value, item
    with completer._count:
        if completer._num_free > 1:  # enough threads without this one
            return False
        completer._num_free += 1
    return True


@atexit.register
def _close_all() -> None:
    for completer in list(_live):
        completer.close()
