"""Rank processes of test_backend_overloads.py: every short form of a group's methods, beside gloo's."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

import dcomm.torch  # noqa: F401


def forms(rank: int, world_size: int, folder: str, backend: str) -> dict[str, Any]:
    """What each form gives."""
    store = dist.FileStore(f"{folder}/{backend}", world_size)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=60))
    group = dist.group.WORLD
    limit = timedelta(seconds=50)
    found: dict[str, Any] = {}

    def mine() -> torch.Tensor:
        return torch.tensor([rank + 1.0, 2.0])

    def each() -> list[torch.Tensor]:
        return [torch.full((2,), 10.0 * rank + other) for other in range(world_size)]

    def keep(name: str, work: Any, *tensors: torch.Tensor) -> None:
        work.wait()
        found[name] = [tensor.tolist() for tensor in tensors]

    x = mine()
    keep("allreduce", group.allreduce(x), x)
    x = mine()
    keep("allreduce list", group.allreduce([x]), x)
    x = mine()
    keep("allreduce op", group.allreduce(x, dist.ReduceOp.MAX), x)
    x = mine()
    keep("allreduce list, op, timeout", group.allreduce([x], dist.ReduceOp.MIN, limit), x)
    x = mine()
    keep("allreduce named", group.allreduce(x, op=dist.ReduceOp.PRODUCT), x)
    x = mine()
    keep("broadcast", group.broadcast(x, 1), x)
    x = mine()
    keep("broadcast named", group.broadcast(x, root=1, timeout=limit), x)
    x = mine()
    work = group.reduce(x, 1, dist.ReduceOp.MAX)
    keep("reduce", work, *([x] if rank == 1 else []))
    outs = each()
    keep("allgather", group.allgather(outs, mine()), *outs)
    outs = each() if rank == 1 else []
    keep("gather", group.gather(outs, mine(), 1), *outs)
    x = mine()
    keep("scatter", group.scatter(x, each() if rank == 1 else [], 1), x)
    x = mine()
    keep("reduce_scatter", group.reduce_scatter(x, each()), x)
    x = mine()
    keep("reduce_scatter op", group.reduce_scatter(x, each(), dist.ReduceOp.MAX), x)
    outs = each()
    keep("alltoall", group.alltoall(outs, each()), *outs)
    x = torch.zeros(world_size)
    keep("alltoall_base", group.alltoall_base(x, torch.arange(world_size) + 10.0 * rank, [], [], limit), x)
    keep("barrier", group.barrier())
    keep("barrier timeout", group.barrier(limit))
    keep("barrier named", group.barrier(timeout=limit))
    if backend == "dcomm":
        for name, call in (
            ("few", lambda: group.broadcast()),
            ("many", lambda: group.broadcast(mine(), 0, limit, 1)),
            ("name", lambda: group.broadcast(mine(), source=0)),
        ):
            try:
                call()
            except TypeError as error:
                found[f"refused {name}"] = str(error)
    dist.destroy_process_group()
    return found
