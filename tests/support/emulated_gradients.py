"""GradientSynchronizer on an emulated GPU: its gradients are CPU tensors over that GPU's memory, and its side stream is
one of that GPU's. What torch computes is done when it returns, so the "current stream" is the host's own order.

Replaced are only what needs torch with CUDA: the tensor over dcomm's memory, and CudaLauncher's streams and events.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from emulated_gpu import EmulatedGpu, EmulatedStream

import dcomm
from dcomm import arrays
from dcomm.torch import agreement, synchronizer


class OnGpu:
    """A CPU tensor as what its memory is."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        host = self._tensor.numpy()
        return {
            "shape": host.shape,
            "typestr": host.dtype.str,
            "data": (host.ctypes.data, False),
            "version": 3,
        }


class EmulatedLauncher:
    """As CudaLauncher."""

    canonical_algo = "auto"

    def __init__(self, comm: dcomm.Communicator, gpu: EmulatedGpu) -> None:
        self._comm, self._gpu, self._side = comm, gpu, gpu.stream()
        self.started: list[int] = []  # counts, of what ran beside backward
        self.ran: list[int] = []

    def note(self) -> None:
        pass

    def join(self) -> None:
        pass

    def drain(self) -> None:
        pass

    def start(self, buffer: torch.Tensor, op: str, wire_dtype: str | None, algo: str = "auto") -> Any:
        self._comm.all_reduce(OnGpu(buffer), op, wire_dtype=wire_dtype, algo=algo, stream=self._side)
        self.started.append(buffer.numel())
        return _Event(self._side)

    def run(self, buffer: torch.Tensor, op: str, wire_dtype: str | None, algo: str = "auto") -> None:
        self._comm.all_reduce(OnGpu(buffer), op, wire_dtype=wire_dtype, algo=algo)
        self._gpu.streams[0].synchronize()
        self.ran.append(buffer.numel())


class _Event:
    def __init__(self, stream: EmulatedStream) -> None:
        self._stream = stream

    def wait(self) -> None:
        self._stream.synchronize()


def _tensor_over(region: Any, shape: tuple[int, ...], dtype: torch.dtype, device: int) -> torch.Tensor:
    nbytes = max(1, region.nbytes)
    memory = type("Memory", (ctypes.c_ubyte * nbytes,), {}).from_address(region.address)
    memory.region = region
    count = region.nbytes // arrays.DTYPE_BYTES[arrays.DTYPE_CODES[str(dtype).removeprefix("torch.")]]
    return torch.frombuffer(memory, dtype=dtype, count=count).reshape(shape)


@contextmanager
def gradients_on(gpu: EmulatedGpu) -> Iterator[None]:
    """Inside, models on the CPU have their gradients on cuda:0."""
    with ExitStack() as stack:
        for owner, name, value in (
            (agreement, "find_device", lambda model: torch.device("cuda:0")),
            (synchronizer, "_make_launcher", lambda comm, device: EmulatedLauncher(comm, gpu)),
            (dcomm.window_arrays, "as_tensor", _tensor_over),
        ):
            stack.enter_context(mock.patch.object(owner, name, value))
        yield
