"""GradientSynchronizer on an emulated GPU: its gradients are CPU tensors over that GPU's memory.

Replaced are what needs torch with CUDA (the tensor over dcomm's memory, one in torch's own, pinned memory, torch's
streams), and the order between torch's arithmetic, which is done when it returns, and streams: what makes the current
stream wait makes the host wait too.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from emulated_gpu import EmulatedGpu
from emulated_torch_streams import torch_streams_on

import dcomm
from dcomm import arrays
from dcomm.torch import agreement, buckets, cuda_launching, synchronizer
from dcomm.torch.cuda_launching import CudaLauncher, StagedLauncher


class EmulatedLauncher(CudaLauncher):
    """Notes what it is told. `host_follows`: the host is where the current stream is, as torch on the CPU expects."""

    def __init__(self, comm: dcomm.Communicator, device: torch.device, host_follows: bool = True) -> None:
        super().__init__(comm, device)
        self._host_follows = host_follows
        self.started: list[int] = []  # counts, of what may run beside backward
        self.ran: list[int] = []
        self.withdrawn: list[int] = []

    def join(self) -> None:
        super().join()
        self.follow()

    def drain(self) -> None:
        self.follow()

    def start(self, buffer: torch.Tensor, op: str, wire_dtype: str | None, algo: str = "auto") -> Any:
        self.started.append(buffer.numel())
        return _Pending(super().start(buffer, op, wire_dtype, algo), self, buffer.numel())

    def run(self, buffer: torch.Tensor, op: str, wire_dtype: str | None, algo: str = "auto") -> None:
        super().run(buffer, op, wire_dtype, algo)
        self.follow()
        self.ran.append(buffer.numel())

    def follow(self) -> None:
        if self._host_follows:
            torch.cuda.current_stream().synchronize()


class _Pending:
    def __init__(self, pending: Any, launcher: EmulatedLauncher, count: int) -> None:
        self._pending, self._launcher, self._count = pending, launcher, count

    def wait(self) -> None:
        self._pending.wait()
        self._launcher.follow()

    def withdraw(self) -> bool:
        taken = bool(self._pending.withdraw())
        if taken:
            self._launcher.withdrawn.append(self._count)
        return taken


def _tensor_over(region: Any, shape: tuple[int, ...], dtype: torch.dtype, device: int) -> torch.Tensor:
    nbytes = max(1, region.nbytes)
    memory = type("Memory", (ctypes.c_ubyte * nbytes,), {}).from_address(region.address)
    memory.region = region
    count = region.nbytes // arrays.DTYPE_BYTES[arrays.DTYPE_CODES[str(dtype).removeprefix("torch.")]]
    return torch.frombuffer(memory, dtype=dtype, count=count).reshape(shape)


@contextmanager
def gradients_on(gpu: EmulatedGpu, host_follows: bool = True) -> Iterator[None]:
    """Inside, models on the CPU have their gradients on cuda:0."""

    def make_launcher(comm: dcomm.Communicator, device: torch.device, by_host: bool) -> CudaLauncher:
        return StagedLauncher(comm, device) if by_host else EmulatedLauncher(comm, device, host_follows)

    def ordinary(nbytes: int, device: torch.device) -> torch.Tensor:
        if device.type == "cpu":
            return torch.zeros(nbytes, dtype=torch.uint8)
        memory = np.zeros(nbytes, np.uint8)
        gpu.place(memory, device.index)
        return torch.from_numpy(memory)

    with ExitStack() as stack:
        stack.enter_context(torch_streams_on(gpu))
        for owner, name, value in (
            (agreement, "find_device", lambda model: torch.device("cuda:0")),
            (synchronizer, "_make_launcher", make_launcher),
            (buckets, "_ordinary", ordinary),
            (cuda_launching, "pinned", lambda nbytes: torch.empty(nbytes, dtype=torch.uint8)),
            (dcomm.window_arrays, "as_tensor", _tensor_over),
        ):
            stack.enter_context(mock.patch.object(owner, name, value))
        yield
