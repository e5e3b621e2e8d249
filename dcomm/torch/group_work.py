"""Handles that torch waits on: the operations behind one call of a process group, and what follows them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from dcomm.torch.completer import Completer
from dcomm.work import Work

_finishing = threading.Lock()  # one for all: held for a copy out, and by few


class GroupWork(dist.Work):
    """The handle of one call: done when all of its operations are, and their results are where they belong.

    Its future is made when somebody asks for it, for that costs more than all the rest.

    Args:
        works: The operations still to be waited for, in the order of their start; empty: all is done.
        tensors: What the call gives; the future's value.
        completer: What turns the operations into a future.
        finish: Copies results out, once, when all operations have succeeded.
    """

    def __init__(
        self,
        works: Sequence[Work],
        tensors: list[torch.Tensor],
        completer: Completer,
        finish: Callable[[], None] | None = None,
    ) -> None:
        """See the class."""
        super().__init__()
        self._works = tuple(works)
        self._tensors = tensors
        self._completer = completer
        self._finish = finish

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Block until the results are there.

        Args:
            timeout: As torch passes it; None and 0: as long as each operation's own deadline allows.

        Raises:
            CollectiveTimeoutError: `timeout` has passed; the operations go on.
            DcommError: An operation failed.
        """
        limit = timeout.total_seconds() if timeout is not None else 0.0
        if limit <= 0:
            for work in self._works:
                work.wait()
        else:
            deadline = time.monotonic() + limit
            for work in self._works:
                work.wait(max(1e-6, deadline - time.monotonic()))
        self._settle()
        return True

    def is_completed(self) -> bool:
        """True once all operations have ended, well or badly; results are then in place."""
        if not all(work.done() for work in self._works):
            return False
        self.exception()
        return True

    def is_success(self) -> bool:
        """True once all operations have ended well."""
        return self.is_completed() and self.exception() is None

    def exception(self) -> BaseException | None:
        """The first error of an ended operation; None: none so far."""
        for work in self._works:
            error = work.exception()
            if error is not None:
                return error
        if all(work.done() for work in self._works):
            self._settle()
        return None

    def result(self) -> list[torch.Tensor]:
        """What the call gives, after :meth:`wait`."""
        self.wait()
        return self._tensors

    def synchronize(self) -> None:
        """As :meth:`wait`: on the CPU there are no streams to order."""
        self.wait()

    def source_rank(self) -> int:
        """The rank whose message came.

        Raises:
            RuntimeError: No receive from any source.
        """
        raise RuntimeError("source_rank is for recv from any source: this is another operation")

    _source_rank = source_rank

    def get_future(self) -> torch.futures.Future[Any]:
        """A future of the tensors, or of the error's text."""
        if not self._works:
            done: torch.futures.Future[Any] = torch.futures.Future()
            done.set_result(self._tensors)
            return done
        return self._completer.future_of(self, self._tensors)

    def _wait_for(self, seconds: float) -> bool:
        """What the completer blocks in: True once all operations have ended."""
        deadline = time.monotonic() + seconds
        return all(work._wait_for(max(0.0, deadline - time.monotonic())) for work in self._works)

    def _settle(self) -> None:
        if self._finish is not None:
            with _finishing:
                if self._finish is not None:
                    self._finish()
                    self._finish = None


class DoneWork(GroupWork):
    """The handle of a call that was done when it returned; torch's C++ wants one even then, and soon."""

    _works = ()
    _finish = None

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        """See :class:`GroupWork`."""
        dist.Work.__init__(self)
        self._tensors = tensors

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Return at once."""
        return True


class ReceiveWork(GroupWork):
    """The handle of a receive from any source."""

    def source_rank(self) -> int:
        """The rank whose message came, after :meth:`wait`."""
        return int(self._works[0].wait())

    _source_rank = source_rank
