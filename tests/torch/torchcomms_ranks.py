"""Rank processes of test_backend_torchcomms.py: the backend under switches of torch 2.14 that send others elsewhere."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

import dcomm.torch


def collectives(group: dist.ProcessGroup | None) -> dict[str, Any]:
    rank, world_size = dist.get_rank(), dist.get_world_size()
    x = torch.full((3,), rank + 1.0)
    dist.all_reduce(x, group=group)
    gathered = [torch.zeros(2) for _ in range(world_size)] if rank == 0 else None
    dist.gather(torch.full((2,), float(rank)), gathered, dst=0, group=group)  # the switch changes what others pass
    objects: list[Any] = [None] * world_size
    dist.all_gather_object(objects, {"rank": rank}, group=group)
    peer = 1 - rank
    got = torch.zeros(1)
    operations = [
        dist.P2POp(dist.isend, torch.full((1,), float(rank)), peer, group=group),
        dist.P2POp(dist.irecv, got, peer, group=group),
    ]
    for work in dist.batch_isend_irecv(operations):
        work.wait()
    return {
        "sum": x.tolist(),
        "gathered": [each.tolist() for each in gathered or []],
        "objects": [each["rank"] for each in objects],
        "message": got.item(),
    }


def everything(rank: int, world_size: int, folder: str) -> dict[str, Any]:
    """Groups, collectives, messages, a mesh and DDP."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", world_size)
    timeout = timedelta(seconds=60)
    dist.init_process_group("dcomm", store=store, rank=rank, world_size=world_size, timeout=timeout)
    group = dist.new_group([0, 1])
    found: dict[str, Any] = {
        "switch": getattr(dist.distributed_c10d, "_use_torchcomms_enabled", lambda: False)(),
        "classes": [type(each) is dcomm.torch.ProcessGroup for each in (dist.group.WORLD, group)],
        "world": collectives(None),
        "group": collectives(group),
    }
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("dp", "tp"))
    found["mesh"] = [mesh["tp"].size(), type(mesh["tp"].get_group()) is dcomm.torch.ProcessGroup]
    model = DistributedDataParallel(torch.nn.Linear(4, 1, bias=False), process_group=group)
    model(torch.full((1, 4), rank + 1.0)).sum().backward()
    found["grad"] = model.module.weight.grad.tolist()
    try:
        dist.split_group(split_ranks=[[0, 1]])
    except (RuntimeError, NotImplementedError) as error:
        found["split"] = str(error)
    dist.barrier()
    dist.destroy_process_group()
    return found
