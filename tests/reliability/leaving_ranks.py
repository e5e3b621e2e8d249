"""Rank processes of test_leaving.py: torch ranks that return from main without destroy_process_group."""

from __future__ import annotations

import importlib
import time
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from forked_ranks import run_forked
from torch.nn.parallel import DistributedDataParallel

import dcomm.torch


def leave_in_backend(rank: int, world_size: int, path: str) -> dict[str, Any]:
    """Rank 1 is done after three all-reduces; the others go on."""
    store = dist.FileStore(path, world_size)
    limit = timedelta(seconds=20)
    dist.init_process_group("dcomm", store=store, rank=rank, world_size=world_size, timeout=limit)
    x = torch.ones(1000)
    for _ in range(3):
        dist.all_reduce(x)
    dist.all_reduce(x, async_op=True).wait()
    if rank == 1:
        return {"error": None}
    return error_of(lambda: dist.all_reduce(x))


def leave_in_hook(rank: int, world_size: int, path: str) -> dict[str, Any]:
    """Rank 1 is done after three steps; the others go on, and dcomm reduces their gradients."""
    store = dist.FileStore(path, world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=20))
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Linear(50, 50))
    model.register_comm_hook(dcomm.torch.HookState(), dcomm.torch.all_reduce_hook)
    for _ in range(3):
        model(torch.ones(4, 50)).sum().backward()
    if rank == 1:
        return {"error": None}
    return error_of(lambda: model(torch.ones(4, 50)).sum().backward())


def error_of(call: Any) -> dict[str, Any]:
    start = time.monotonic()
    try:
        call()
    except RuntimeError as error:
        # From a hook, torch's own error has the text of ours.
        is_lost = isinstance(error, dcomm.PeerLostError) or "PeerLostError: " in str(error)
        return {
            "error": type(error).__name__,
            "is_lost": is_lost,
            "text": str(error),
            "seconds": time.monotonic() - start,
        }
    return {"error": None}


def leave_again_and_again(rank: int, world_size: int, how: str, times: int, folder: str) -> list[list[dict[str, Any]]]:
    """By run: what each of three ranks says, all of which then end as programs do."""
    torch.set_num_threads(1)
    if how == "hook":
        importlib.import_module("torch._dynamo")  # which DDP imports, for seconds, in each child otherwise
    body = {"backend": leave_in_backend, "hook": leave_in_hook}[how]
    return [
        run_forked([partial(body, peer, 3, f"{folder}/{number}") for peer in range(3)], through_exit=True)
        for number in range(times)
    ]
