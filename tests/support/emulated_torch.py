"""torch's tensors and streams on an emulated GPU, for DDP hooks on machines without one.

Tensors are torch's CPU tensors; those that the hook asks about lie in the emulated GPU's memory from then on, and dcomm
takes them for CUDA arrays. torch computes on the host, at once, so its current stream is one with nothing in it; what
makes torch's streams wait for a future makes the host wait here. Nothing of dcomm's results is made here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import types
from collections.abc import Iterator
from typing import Any

import torch
from emulated_gpu import EmulatedGpu, EmulatedStream

from dcomm import _core, arrays
from dcomm.torch import device_streams

DEVICE = 0


class Streams:
    """What stands in for dcomm.torch.device_streams; on which streams the futures were."""

    def __init__(self, gpu: EmulatedGpu) -> None:
        self.gpu = gpu
        self.completed: list[EmulatedStream | None] = []

    def gpu_of(self, tensor: torch.Tensor) -> int:
        storage = tensor.untyped_storage()
        self.gpu.library.emulated_place(storage.data_ptr(), storage.nbytes(), DEVICE)
        return DEVICE

    def make_side_stream(self, device: int) -> EmulatedStream:
        assert device == DEVICE
        return self.gpu.stream()

    def completed_on(self, stream: EmulatedStream | None, device: int, value: torch.Tensor) -> Any:
        assert device == DEVICE
        self.completed.append(stream)
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future()

        def complete() -> None:
            (stream or self.gpu.streams[0]).synchronize(60)
            future.set_result(value)

        threading.Thread(target=complete, daemon=True).start()
        return future


@contextlib.contextmanager
def torch_on(gpu: EmulatedGpu) -> Iterator[Streams]:
    """Inside, dcomm's hooks see gradients on this GPU."""
    streams = Streams(gpu)
    view, current = arrays._torch_view, torch.cuda.current_stream
    own = {name: getattr(device_streams, name) for name in ("gpu_of", "make_side_stream", "completed_on")}

    def placed_view(tensor: torch.Tensor) -> arrays.View:
        found = view(tensor)
        arrays.KINDS.pop(type(tensor), None)  # the short way in looks for itself, and would find host memory
        try:
            return dataclasses.replace(found, device=_core.cuda_pointer_device(found.address))
        except ValueError:
            return found

    arrays._torch_view = placed_view
    torch.cuda.current_stream = lambda device=None: types.SimpleNamespace(cuda_stream=0)  # type: ignore[assignment]
    for name in own:
        setattr(device_streams, name, getattr(streams, name))
    try:
        yield streams
    finally:
        arrays._torch_view = view
        torch.cuda.current_stream = current
        for name, function in own.items():
            setattr(device_streams, name, function)
