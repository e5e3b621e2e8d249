"""torch's CUDA streams and futures as hooks and process groups use them: the one place that names them."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch

from dcomm.work import Work

_T = TypeVar("_T")


def gpu_of(tensor: torch.Tensor) -> int | None:
    """The number of the GPU that holds a tensor; None: no GPU does."""
    return tensor.device.index if tensor.is_cuda else None


def make_side_stream(device: int) -> Any:
    """A stream beside those that compute; before them where the GPU has to choose."""
    return torch.cuda.Stream(device=device, priority=-1)  # type: ignore[no-untyped-call]


def completed_on(stream: Any, device: int, value: _T) -> torch.futures.Future[_T]:
    """A completed future, whose value is there when `stream` (None: the current one) has come to this point.

    Whoever waits for the future lets its own stream wait for that point; the host goes on. The future must know the
    device: without it waiting would order nothing. Source: torch, ATen/core/ivalue_inl.h, Future::markCompleted.
    """
    future: torch.futures.Future[_T] = torch.futures.Future(devices=[torch.device("cuda", device)])
    with contextlib.nullcontext() if stream is None else torch.cuda.stream(stream):
        future.set_result(value)
    return future


class SideStream:
    """A stream that comes to the end of asynchronous operations, so that others need not wait before they want to.

    Args:
        device: The number of the GPU.
    """

    def __init__(self, device: int) -> None:
        """Make the stream."""
        self.device = device
        self._stream = make_side_stream(device)
        self._kept: deque[tuple[Any, Any]] = deque()  # events, and what the stream uses until they are over

    def finish(self, works: Iterable[Work], finish: Callable[[], None]) -> Any:
        """Run `finish` behind operations on this GPU, on this stream; asynchronous to the host.

        The tensors that `finish` refers to are kept until the stream is through with them, whatever the caller drops.

        Returns:
            The event of its end.
        """
        self._follow(works)
        with torch.cuda.stream(self._stream):
            finish()
        event = self._stream.record_event()
        while self._kept and self._kept[0][0].query():
            self._kept.popleft()
        self._kept.append((event, finish))
        return event

    def future_of(self, works: Iterable[Work], event: Any, value: _T) -> torch.futures.Future[_T]:
        """A completed future, whose value is there when the operations, and the event if there is one, are over."""
        self._follow(works)
        if event is not None:
            self._stream.wait_event(event)
        return completed_on(self._stream, self.device, value)

    def _follow(self, works: Iterable[Work]) -> None:
        for work in works:
            work.wait(stream=self._stream)  # type: ignore[call-arg]


class SideStreams:
    """One for each GPU, made when it is first asked for."""

    def __init__(self) -> None:
        """Make none yet."""
        self._made: dict[int, SideStream] = {}

    def of(self, device: int) -> SideStream:
        """The one of a GPU."""
        if device not in self._made:
            self._made[device] = SideStream(device)
        return self._made[device]
