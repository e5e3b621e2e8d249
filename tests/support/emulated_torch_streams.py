"""torch.cuda's streams and events as far as dcomm.torch uses them, over the streams of an emulated GPU.

Tensors are torch's CPU tensors; those whose memory is the emulated GPU's are CUDA arrays to dcomm. torch computes on
the host, at once: what a test wants to come late it gives to a stream (`EmulatedStream.copy`, `hold`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from unittest import mock

import numpy as np
import torch
from emulated_gpu import EmulatedGpu, EmulatedStream

from dcomm import _core, arrays

_current = threading.local()


class Stream:
    """torch.cuda.Stream."""

    def __init__(self, emulated: EmulatedStream) -> None:
        self.emulated, self.device = emulated, torch.device("cuda:0")

    @property
    def cuda_stream(self) -> int:
        return self.emulated.ptr

    def wait_stream(self, other: Stream) -> None:
        _core.order_cuda_streams(0, other.cuda_stream, self.cuda_stream)

    def record_event(self) -> Event:
        event = Event(self.emulated.gpu)
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        self.wait_stream(event.mark)

    def synchronize(self) -> None:
        self.emulated.synchronize(60)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and other.cuda_stream == self.cuda_stream

    def __hash__(self) -> int:
        return hash(self.cuda_stream)


class Event:
    """torch.cuda.Event, recorded once: a stream of its own that has come to the same point."""

    def __init__(self, gpu: EmulatedGpu) -> None:
        self.mark = Stream(EmulatedStream(gpu, gpu.library.emulated_stream()))
        self._over = np.zeros(1, np.int32)

    def record(self, stream: Stream) -> None:
        self.mark.wait_stream(stream)
        self.mark.emulated.copy(self._over, np.ones(1, np.int32))

    def query(self) -> bool:
        return bool(self._over[0])


@contextlib.contextmanager
def current(stream: Stream) -> Iterator[None]:
    """torch.cuda.stream()."""
    before = getattr(_current, "stream", None)
    _current.stream = stream
    try:
        yield
    finally:
        _current.stream = before


def make_stream(gpu: EmulatedGpu) -> Stream:
    return Stream(gpu.stream())


class _Others(dict[type, int]):
    """How to reach the memory of a type, tensors left out: the short way in would find host memory."""

    def __setitem__(self, key: type, value: int) -> None:
        if not issubclass(key, torch.Tensor):
            super().__setitem__(key, value)


@contextlib.contextmanager
def placed_tensors() -> Iterator[None]:
    """Inside, dcomm asks the GPU's driver where the memory of a tensor is."""
    view = arrays._torch_view
    for kind in [kind for kind in arrays.KINDS if issubclass(kind, torch.Tensor)]:
        del arrays.KINDS[kind]

    def placed_view(tensor: torch.Tensor) -> arrays.View:
        found = view(tensor)
        try:
            return dataclasses.replace(found, device=_core.cuda_pointer_device(found.address))
        except ValueError:
            return found

    with (
        mock.patch.object(arrays, "KINDS", _Others(arrays.KINDS)),
        mock.patch.object(arrays, "_torch_view", placed_view),
    ):
        yield


@contextlib.contextmanager
def torch_streams_on(gpu: EmulatedGpu) -> Iterator[None]:
    """Inside, torch.cuda's streams are this GPU's; a thread's current one is the legacy default stream at first."""
    default = Stream(gpu.streams[0])
    with contextlib.ExitStack() as stack:
        stack.enter_context(placed_tensors())
        for name, value in (
            ("Stream", lambda device=None, priority=0: make_stream(gpu)),
            ("current_stream", lambda device=None: getattr(_current, "stream", None) or default),
            ("stream", current),
        ):
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        yield
