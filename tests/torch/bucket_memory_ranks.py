"""Rank processes of test_bucket_memory.py: DDP's own buckets as memory that all ranks reach."""

# No `from __future__ import annotations`: DDP compares the annotations of hooks with the classes themselves.
import copy
import gc
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

sys.path.append(str(Path(__file__).parent))
from hook_ranks import start, stop
from torch.nn.parallel import DistributedDataParallel

import dcomm.torch

NUM_STEPS = 6


def is_shared(tensor: torch.Tensor) -> bool:
    """Whether the middle of its memory is a shared mapping."""
    address = tensor.data_ptr() + tensor.nbytes // 2
    with open("/proc/self/maps", encoding="ascii") as lines:
        for line in lines:
            begin, end = (int(number, 16) for number in line.split()[0].split("-"))
            if begin <= address < end:
                return line.split()[1].endswith("s")
    raise AssertionError("not mapped")


class Buckets:
    """A hook that notes which memory DDP gave it and how many bytes travelled."""

    def __init__(self, state: dcomm.torch.HookState) -> None:
        self.state = state
        self.tensors: dict[int, torch.Tensor] = {}
        self.sent: list[int] = []

    def end_step(self) -> None:
        assert self.state.communicator is not None
        self.sent.append(self.state.communicator.stats()["num_sent_bytes"])

    def hook(self, state: dcomm.torch.HookState, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        self.tensors[bucket.index()] = bucket.buffer()
        return dcomm.torch.all_reduce_hook(state, bucket)


def train(rank: int, world_size: int, folder: str, settings: dict[str, Any], ddp: dict[str, Any]) -> dict[str, Any]:
    start(rank, world_size, folder)
    plain = torch.nn.Sequential(torch.nn.Linear(120, 300), torch.nn.ReLU(), torch.nn.Linear(300, 200))
    ours = copy.deepcopy(plain)
    reference = DistributedDataParallel(plain, **ddp)
    hooked = DistributedDataParallel(ours, **ddp)
    state = dcomm.torch.HookState(**settings)
    buckets = Buckets(state)
    hooked.register_comm_hook(state, buckets.hook)
    generator = torch.Generator().manual_seed(rank)
    bitwise = True
    for _ in range(NUM_STEPS):
        x = torch.randn(8, 120, generator=generator)
        for model in (reference, hooked):
            model.zero_grad()
            model(x).pow(2).sum().backward()
        buckets.end_step()
        bitwise &= all(torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), ours.parameters(), strict=True))
    shared = [is_shared(tensor) for tensor in buckets.tensors.values()]
    kept = [(tensor, tensor.clone()) for tensor in buckets.tensors.values()]
    del hooked
    gc.collect()
    state.close()
    result = {
        "bitwise": bitwise,
        "shared": all(shared) and len(shared) > 0,
        "private_after": not any(is_shared(tensor) for tensor, _ in kept),
        "kept": all(torch.equal(tensor, before) for tensor, before in kept),
        "sent": [after - before for before, after in zip([0, *buckets.sent], buckets.sent, strict=False)],
    }
    stop()
    return result


class FakeBucket:
    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def buffer(self) -> torch.Tensor:
        return self.tensor

    def index(self) -> int:
        return 0

    def parameters(self) -> list[torch.Tensor]:
        return []

    def gradients(self) -> list[torch.Tensor]:
        return []


def move(rank: int, world_size: int, folder: str, count: int) -> dict[str, Any]:
    """Rank 0's bucket moves after it was registered; later every rank's gets another size."""
    start(rank, world_size, folder)
    state = dcomm.torch.HookState()
    first, second = torch.empty(count), torch.empty(count)
    wrong = 0
    for step in range(8):
        tensor = second if step >= 5 and rank == 0 else first
        tensor.fill_(float(step + rank))
        dcomm.torch.all_reduce_hook(state, FakeBucket(tensor)).wait()  # type: ignore[arg-type]
        wrong += int((tensor != step + (world_size - 1) / 2).sum())
    was_shared = is_shared(first)
    longer = torch.empty(2 * count)
    for step in range(4):
        longer.fill_(float(step + rank))
        dcomm.torch.all_reduce_hook(state, FakeBucket(longer)).wait()  # type: ignore[arg-type]
        wrong += int((longer != step + (world_size - 1) / 2).sum())
    result = {"wrong": wrong, "was_shared": was_shared, "first": is_shared(first), "longer": is_shared(longer)}
    state.close()
    stop()
    return result
