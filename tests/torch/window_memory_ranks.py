"""Rank processes of test_window_memory.py: FSDP2 whose buffers the process group allocates."""

from __future__ import annotations

import gc
import hashlib
import logging
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

sys.path.insert(0, str(Path(__file__).parent))
from parallel_ranks import Block, full

STEPS = 4
WIDE = 64  # blocks times their width, so that their messages are large enough


def start(rank: int, world_size: int, folder: str, name: str, backend: str = "dcomm") -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/{name}", world_size)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=60))


def sharded(mesh: DeviceMesh | None, mixed: bool, from_group: bool) -> torch.nn.Module:
    torch.manual_seed(7)
    model = torch.nn.Sequential(*(Block(WIDE) for _ in range(3)), torch.nn.Linear(WIDE, 8))
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if mixed else MixedPrecisionPolicy()
    for layer in model:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    if from_group:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_allocate_memory_from_process_group_for_comm(True)
    return model


def inputs(step: int, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1000 * step + index)
    return torch.randn(8, WIDE, generator=random), torch.randn(8, 8, generator=random)


def train(model: torch.nn.Module, index: int, after_step: Any = lambda: None) -> str:
    """A hash of the losses and of the whole weights."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    digest = hashlib.sha256()
    for step in range(STEPS):
        x, y = inputs(step, index)
        loss = torch.nn.functional.mse_loss(model(x).float(), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        digest.update(loss.detach().numpy().tobytes())
        after_step()
    for parameter in model.parameters():
        digest.update(full(parameter).numpy().tobytes())
    return digest.hexdigest()


def two_ranks(rank: int, world_size: int, folder: str) -> dict[str, Any]:
    """All that two ranks do, one after the other: to start them takes longer."""
    found: dict[str, Any] = {str(mixed): fsdp(rank, world_size, folder, mixed) for mixed in (False, True)}
    os.environ["DCOMM_TENSOR_BYTES"] = "1000000"
    found["small"] = small_window(rank, world_size, folder)
    os.environ["DCOMM_TENSOR_BYTES"] = "0"
    start(rank, world_size, folder, "off")
    found["off"] = dist.group.WORLD.supports_tensor_alloc(torch.device("cpu"))
    dist.barrier()
    dist.destroy_process_group()
    return found


def fsdp(rank: int, world_size: int, folder: str, mixed: bool) -> dict[str, Any]:
    """The same training on gloo, on dcomm through slots, and on dcomm where the buffers lie."""
    found: dict[str, Any] = {}
    for name, backend in (("gloo", "gloo"), ("staged", "dcomm"), ("direct", "dcomm")):
        start(rank, world_size, folder, f"{name} {mixed}", backend)
        memory: list[int] = []
        group = dist.group.WORLD
        model = sharded(None, mixed, name == "direct")
        if backend == "gloo":
            found[name] = {"hash": train(model, rank)}
        else:
            before = group.communicator.stats()
            found[name] = {"hash": train(model, rank, lambda: memory.append(group._tensors.committed_bytes))}  # noqa: B023
            del model
            gc.collect()
            found[name] |= {
                key: group.communicator.stats()[key] - before[key] for key in ("num_direct", "num_sent_bytes")
            }
            found[name] |= {"memory": memory, "used": group._tensors.used_bytes}
        dist.barrier()
        dist.destroy_process_group()
    return found


def subgroups(rank: int, world_size: int, folder: str) -> list[int]:
    """Rows of a mesh, each with memory of its own; and HSDP, whose sums of rows cross them."""
    start(rank, world_size, folder, "subgroups")
    mesh = init_device_mesh("cpu", (2, world_size // 2), mesh_dim_names=("replicate", "shard"))
    hashes = [train(sharded(mesh, False, from_group), rank) for from_group in (False, True)]
    assert hashes[0] == hashes[1]
    row = mesh["shard"].get_group()
    found = [group.communicator.stats()["num_direct"] for group in (row, dist.group.WORLD)]
    dist.barrier()
    dist.destroy_process_group()
    return found


def small_window(rank: int, world_size: int, folder: str) -> dict[str, Any]:
    """Tensors beyond the window are ordinary, on one rank too, and what they travel by is found out by all."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("dcomm").addHandler(handler)
    start(rank, world_size, folder, "small")
    group = dist.group.WORLD
    direct = []

    def gather(x: torch.Tensor) -> None:
        x.fill_(rank)
        before = group.communicator.stats()["num_direct"]
        out = torch.empty(world_size * x.numel())
        dist.all_gather_into_tensor(out, x)
        assert (out[0], out[-1]) == (0, world_size - 1)
        direct.append(group.communicator.stats()["num_direct"] - before)

    def tensor(count: int) -> torch.Tensor:
        return group.allocate_tensor(count, dtype=torch.float32, device=torch.device("cpu"))

    first = tensor(100_000)
    gather(first)
    kept = first[50_000:60_000] if rank == 1 else None  # a view keeps the whole
    del first
    second = tensor(200_000)  # for which there is no room beside it
    gather(second)
    place = second.data_ptr()
    del kept, second
    third = tensor(200_000)
    gather(third)
    shapes = [tuple(group.allocate_tensor(size, dtype=torch.bfloat16, device="cpu").shape) for size in (0, 3, (2, 5))]
    found = {
        "direct": direct,
        "lines": lines,
        "shapes": shapes,
        "moved": third.data_ptr() != place,
        "cuda": group.supports_tensor_alloc(torch.device("cuda")),
        "cpu": group.supports_tensor_alloc(torch.device("cpu")),
    }
    dist.barrier()
    dist.destroy_process_group()
    third += 1  # outlives its group
    return {**found, "after": float(third[-1])}
