"""Rank processes of test_backend_overlap.py: DDP over the "dcomm" backend, slow all-reduces beside a slow backward."""

from __future__ import annotations

import contextlib
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import dcomm.torch

LAYERS, WIDTH = 16, 512
LAYER_S = 0.006  # of backward, for each layer
DELAY_S = 0.008  # of each all-reduce


class SlowBackward(torch.autograd.Function):
    """Stands for the work of a layer's backward pass, without needing a core: the machine may have few."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        time.sleep(LAYER_S)
        return gradient


class Layers(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = SlowBackward.apply(layer(x))
        return x


def step_times(rank: int, world_size: int, folder: str) -> dict[str, Any]:
    """Milliseconds of backward without communication, with it, and with it as DCOMM_ASYNC=0 has it."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", world_size)
    dist.init_process_group("dcomm", store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=60))
    models: dict[str, Any] = {}
    for name in ("none", "overlapped", "blocking"):
        group = dist.new_group(list(range(world_size)))
        assert isinstance(group, dcomm.torch.ProcessGroup)
        group._overlap = name != "blocking"
        group.communicator._core._inject_delay(DELAY_S)
        torch.manual_seed(1)
        models[name] = DistributedDataParallel(Layers(), process_group=group, bucket_cap_mb=2.5)
    x = torch.randn(4, WIDTH) * (rank + 1)
    times: dict[str, list[float]] = {name: [] for name in models}
    num_reduced = 0
    for number in range(9):
        for name, model in models.items():
            model.zero_grad()
            before = model.process_group.communicator.stats()["num_operations"]
            with model.no_sync() if name == "none" else contextlib.nullcontext():
                loss = model(x).sum()
                dist.barrier()
                begin = time.perf_counter()
                loss.backward()
            if number:  # DDP rebuilds its buckets in the first step
                times[name].append(1e3 * (time.perf_counter() - begin))
            num_reduced = model.process_group.communicator.stats()["num_operations"] - before
    gradients = [[each.grad for each in models[name].parameters()] for name in ("overlapped", "blocking")]
    same = all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    dist.destroy_process_group()
    best: dict[str, Any] = {name: min(each) for name, each in times.items()}  # the others had less of the machine
    return best | {"num_reduced": num_reduced, "same": same}
