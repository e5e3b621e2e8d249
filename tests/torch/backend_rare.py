"""What few programs call: messages from any source, coalesced collectives, object collectives, handles, refusals."""

from __future__ import annotations

import time
import warnings
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol

import dcomm


def run(rank: int, world_size: int) -> dict[str, Any]:
    """What each of them gives on this rank."""
    return {
        "any source": from_any_source(rank, world_size),
        "coalesced": coalesced(rank, world_size),
        "objects": objects(rank, world_size),
        "handle": handle(rank),
        "split": refused(),
        "own limit": own_limit(rank),
    }


def from_any_source(rank: int, world_size: int) -> list[list[float]]:
    """On rank 0 what each other rank has sent, twice, by the rank that torch names."""
    if rank:
        for number in range(2):
            dist.send(torch.tensor([10.0 * rank + number]), 0, tag=3)
        return []
    found: list[list[float]] = [[] for _ in range(world_size)]
    for number in range(2 * (world_size - 1)):
        x = torch.zeros(1)
        if number % 2:
            source = dist.recv(x, tag=3)
        else:
            work = dist.irecv(x, tag=3)
            assert work is not None
            work.wait()
            source = work._source_rank()
        found[source].append(x.item())
    return found


def coalesced(rank: int, world_size: int) -> list[Any]:
    group = dist.group.WORLD
    xs = [torch.full((2,), rank + 1.0), torch.full((1,), 10.0 * rank)]
    gathered = funcol.all_gather_into_tensor_coalesced(xs, group)
    rows = [torch.arange(float(world_size)) + rank, torch.full((2 * world_size,), 1.0)]
    scattered = funcol.reduce_scatter_tensor_coalesced(rows, "sum", [0, 0], group)
    reduced = funcol.all_reduce_coalesced(xs, "sum", group)
    outs = [[torch.zeros(2), torch.zeros(1)] for _ in range(world_size)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated, and still there
        dist.all_gather_coalesced(outs, xs)
    lists = [[tensor.tolist() for tensor in tensors] for tensors in (gathered, scattered, reduced)]
    return [*lists, [[tensor.tolist() for tensor in row] for row in outs]]


def objects(rank: int, world_size: int) -> list[Any]:
    gathered: list[Any] | None = [None] * world_size if rank == 1 else None
    dist.gather_object({"rank": rank}, gathered, dst=1)
    scattered: list[Any] = [None]
    dist.scatter_object_list(scattered, [f"for {each}" for each in range(world_size)] if rank == 0 else None, src=0)
    passed = [None]
    if rank == 0:
        dist.send_object_list([("a", 1)], dst=1)
    elif rank == 1:
        dist.recv_object_list(passed, src=0)
    return [gathered, scattered, passed]


def handle(rank: int) -> list[Any]:
    """Of a large and of a small call: done, well, its result, its future's value."""
    found = []
    for count in (300_000, 2):
        x = torch.full((count,), rank + 1.0)
        work = dist.all_reduce(x, async_op=True)
        assert work is not None
        value = work.get_future().wait()
        found.append([work.wait(), work.is_completed(), work.is_success(), work.result()[0] is x, value[0] is x])
    return found


def refused() -> str:
    try:
        dist.group.WORLD.split_group([0, 1])  # type: ignore[union-attr]
    except NotImplementedError as error:
        return str(error)
    return ""


def own_limit(rank: int) -> list[Any]:
    """A call's own limit, in a group whose limit is longer, where the other rank does not come."""
    group = dist.new_group([0, 1], timeout=timedelta(seconds=30))
    found: list[Any] = []
    if rank == 0:
        options = dist.AllreduceOptions()
        options.timeout = timedelta(seconds=0.3)
        begin = time.monotonic()
        try:
            work = group.allreduce([torch.ones(2)], options)  # type: ignore[union-attr]
            work.wait()
        except dcomm.CollectiveTimeoutError as error:
            found = [str(error), time.monotonic() - begin]
    dist.barrier()
    return found
