"""Rank processes of test_cuda_async.py: a CUDA graph in each of them."""

from __future__ import annotations

import torch

import dcomm


def replay(rank: int, world_size: int, turns: int) -> float:
    """Replays of three operations, one of them asynchronous, between other calls; how many elements are wrong."""
    count = 5000
    wrong = torch.zeros((), device="cuda")
    x, y, z = (torch.zeros(count, device="cuda") for _ in range(3))
    gathered = torch.zeros(world_size * count, device="cuda")
    with dcomm.init(rank=rank, world_size=world_size) as comm:
        comm.all_reduce(x)  # makes the windows
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work = comm.all_reduce(x, out=y, async_op=True)
            comm.all_gather(x, out=gathered)
            work.wait()
            comm.all_reduce(y, "avg", out=z)
        for turn in range(turns):
            x.fill_(turn + rank)
            graph.replay()
            total = float(world_size * turn + sum(range(world_size)))
            wrong += (y != total).sum() + (z != total).sum()
            wrong += sum((gathered[r * count : (r + 1) * count] != turn + r).sum() for r in range(world_size))
            if turn % 5 == 0:
                comm.all_reduce(z, async_op=True).wait()
                wrong += (z != world_size * total).sum()
        torch.cuda.synchronize()
        graph.reset()
        comm.barrier()
    return float(wrong)
