"""Rank processes of test_backend_monitored.py."""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist

import dcomm.torch
from dcomm.errors import CollectiveTimeoutError

LATE_S = 3.0


def barriers(rank: int, world_size: int, folder: str, late: list[int], wait_all_ranks: bool) -> list[str | None]:
    """Errors of a barrier that all reach, of one that the late ones reach too late, of two more; then a sum."""
    store = dist.FileStore(f"{folder}/store", world_size)
    dist.init_process_group("dcomm", store=store, rank=rank, world_size=world_size)
    group = dist.group.WORLD
    told: list[str | None] = []
    for turn in range(4):
        limit = LATE_S if turn == 1 else 60.0
        if turn == 1 and rank in late:
            group.get_group_store().wait(["dcomm/monitored/1/verdict"], timedelta(seconds=60))
        try:
            dcomm.torch.monitored_barrier(None, timedelta(seconds=limit), wait_all_ranks)
            told.append(None)
        except CollectiveTimeoutError as error:
            told.append(str(error))
    x = torch.ones(1)
    dist.all_reduce(x)
    told.append(str(x.item()))
    if rank == 0:
        told += [str(group.get_group_store().check([f"dcomm/monitored/{each}/verdict"])) for each in (2, 3)]
    dist.destroy_process_group()
    return told
