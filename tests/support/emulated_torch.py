"""torch's tensors, streams and futures on an emulated GPU, for DDP hooks and process groups on machines without one.

Tensors are torch's CPU tensors; those that dcomm.torch asks about lie in the emulated GPU's memory from then on, and
dcomm takes them for CUDA arrays. torch computes on the host, at once; what makes torch's streams wait for a future
makes the host wait here. Nothing of dcomm's results is made here.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy
import torch
from emulated_gpu import EmulatedGpu
from emulated_torch_streams import Stream, torch_streams_on

from dcomm.operation import Operand, operand
from dcomm.torch import device_streams, group_call
from dcomm.torch.group_call import GroupCall
from dcomm.torch.group_cuda_work import CudaGroupWork

DEVICE = 0


class Streams:
    """What stands in for dcomm.torch.device_streams; on which streams the futures were."""

    def __init__(self, gpu: EmulatedGpu) -> None:
        self.gpu = gpu
        self.completed: list[Stream | None] = []
        self.kept: list[torch.Tensor] = []

    def gpu_of(self, tensor: torch.Tensor) -> int:
        self.kept.append(tensor)  # torch's allocator for GPUs gives memory back in the order of streams
        storage = tensor.untyped_storage()
        self.gpu.library.emulated_place(storage.data_ptr(), storage.nbytes(), DEVICE)
        return DEVICE

    def operand(self, tensor: torch.Tensor) -> Operand:
        self.gpu_of(tensor)
        return operand(tensor)

    def completed_on(self, stream: Stream | None, device: int, value: Any) -> Any:
        assert device == DEVICE
        self.completed.append(stream)
        future: torch.futures.Future[Any] = torch.futures.Future()
        mark = (stream or torch.cuda.current_stream()).record_event().mark  # type: ignore[attr-defined]

        def complete() -> None:
            mark.synchronize()
            future.set_result(value)

        threading.Thread(target=complete, daemon=True).start()
        return future


def _copy(target: torch.Tensor, source: torch.Tensor) -> None:
    """When the current stream comes to it."""
    stream = torch.cuda.current_stream().emulated  # type: ignore[attr-defined]
    into, of = target.detach().numpy(), source.detach().numpy()
    if into.flags.c_contiguous:
        stream.copy(into, of)
        return
    for index in numpy.ndindex(into.shape):  # only pieces of memory can be copied later
        at = (*index[:-1], slice(index[-1], index[-1] + 1))
        stream.copy(into[at], of[at])


def _follow() -> None:
    torch.cuda.current_stream().synchronize()


@contextlib.contextmanager
def _host_follows() -> Iterator[None]:
    """What makes the current stream wait for a process group's call makes the host wait."""
    wait, end = CudaGroupWork.wait, GroupCall.end

    def waits(work: CudaGroupWork, timeout: Any = None) -> bool:
        done = wait(work, timeout)
        _follow()
        return done

    def ends(call: GroupCall, tensors: Any) -> Any:
        handle = end(call, tensors)
        if handle is None:
            _follow()
        return handle

    with mock.patch.object(CudaGroupWork, "wait", waits), mock.patch.object(GroupCall, "end", ends):
        yield


@contextlib.contextmanager
def torch_on(gpu: EmulatedGpu, host_follows: bool = True) -> Iterator[Streams]:
    """Inside, gradients, and whatever a process group is given, are on this GPU."""
    streams = Streams(gpu)
    with contextlib.ExitStack() as stack:
        if host_follows:
            stack.enter_context(_host_follows())
        stack.enter_context(torch_streams_on(gpu))
        stack.enter_context(mock.patch.object(group_call, "operand", streams.operand))
        stack.enter_context(mock.patch.object(group_call, "_copy", _copy))
        for name in ("gpu_of", "completed_on"):
            stack.enter_context(mock.patch.object(device_streams, name, getattr(streams, name)))
        yield streams
