"""Rank processes of test_operators_cuda.py and tests/gpu/test_operators_on_gpu.py: compiled models on a GPU.

library: that of the emulated GPU, in whose memory every tensor lies that dcomm is given; None: the machine's own.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import dcomm
from dcomm import arrays, cuda_operation
from dcomm.torch import functional


@contextlib.contextmanager
def every_tensor_on(library: str) -> Iterator[Any]:
    """Inside, what dcomm is given is on an emulated GPU, and the host waits for it as torch's streams would."""
    from emulated_gpu import EmulatedGpu
    from emulated_torch_streams import torch_streams_on

    gpu = EmulatedGpu(Path(library))
    kept: list[torch.Tensor] = []  # memory that was taken for the GPU's is not used again

    def view(tensor: torch.Tensor) -> arrays.View:
        storage = tensor.untyped_storage()
        kept.append(tensor.detach())
        gpu.library.emulated_place(storage.data_ptr(), storage.nbytes(), 0)
        return dataclasses.replace(plain_view(tensor), device=0)

    def run(*args: Any) -> Any:
        result = plain_run(*args)
        torch.cuda.current_stream().synchronize()
        return result

    plain_view, plain_run = arrays._torch_view, cuda_operation.run
    with (
        gpu.in_use(),
        torch_streams_on(gpu),
        mock.patch.object(arrays, "_torch_view", view),
        mock.patch.object(cuda_operation, "run", run),
    ):
        yield gpu


class Model(torch.nn.Module):
    """Collectives of every kind that has a gradient between layers."""

    def __init__(self, comm: dcomm.Communicator) -> None:
        super().__init__()
        self.comm = comm
        self.first, self.last = torch.nn.Linear(8, 16), torch.nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(functional.all_reduce(self.first(x), self.comm, "avg"))
        h = functional.reduce_scatter(functional.all_gather(h, self.comm), self.comm)
        h = h + functional.broadcast(h, self.comm, src=0)
        return functional.sum_over_ranks(self.last(functional.sum_gradients(h, self.comm)), self.comm)


def in_place(x: torch.Tensor, comm: dcomm.Communicator) -> torch.Tensor:
    y = x * 2
    functional.all_reduce_(y, comm)
    functional.broadcast_(y, comm, src=comm.world_size - 1)
    return y + 1


def results(rank: int, comm: dcomm.Communicator, device: str, backend: str | None) -> list[torch.Tensor]:
    """Outputs and gradients of two steps, and of the in-place operators; on the CPU."""
    torch.manual_seed(5)
    model = Model(comm).to(device)
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(rank)).to(device)
    call: Any = model if backend is None else torch.compile(model, fullgraph=True, backend=backend)
    change: Any = in_place if backend is None else torch.compile(in_place, fullgraph=True, backend=backend)
    found = []
    for _ in range(2):
        y = call(x)
        y.square().mean().backward()
        found += [y.detach(), *(p.grad.clone() for p in model.parameters())]
        model.zero_grad()
    found.append(change(x, comm))
    return [each.cpu() for each in found]


def compare(rank: int, world_size: int, library: str | None, backend: str) -> dict[str, float]:
    """The worst difference from what the CPU computes without a compiler; how many operations the GPU's ranks made."""
    torch.set_num_threads(1)
    with dcomm.init(rank=rank, world_size=world_size, group_name="cpu") as comm:
        expected = results(rank, comm, "cpu", None)
    with contextlib.ExitStack() as stack:
        gpu = None if library is None else stack.enter_context(every_tensor_on(library))
        device = "cuda" if gpu is None else "cpu"
        comm = stack.enter_context(dcomm.init(rank=rank, world_size=world_size, group_name="gpu"))
        if gpu is None:
            comm._core.open_cuda(torch.cuda.current_device())
        uncompiled = results(rank, comm, device, None)
        found = results(rank, comm, device, backend)
        comm.barrier()
        launched = -1 if gpu is None else gpu.num_launched
        on_gpu = comm._core.cuda_device
    worst = [
        max(float((mine - right).abs().max()) for mine, right in zip(each, expected, strict=True))
        for each in (uncompiled, found)
    ]
    return {"uncompiled": worst[0], "compiled": worst[1], "launched": launched, "device": on_gpu}
