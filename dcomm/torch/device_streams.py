"""torch's CUDA streams and futures as the hooks use them: the one place that names them."""

from __future__ import annotations

import contextlib
from typing import Any, TypeVar

import torch

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
