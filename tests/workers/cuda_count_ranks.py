"""Rank processes of test_cuda_hot_path.py."""

from __future__ import annotations

from pathlib import Path

from counted_gpu import Array, CountedGpu

import dcomm


def count(rank: int, world_size: int, library: str, warm_up: int, calls: int, count: int) -> dict[str, int]:
    """What the calls of one process call, once it is warm."""
    gpu = CountedGpu(Path(library))
    with gpu.in_use(), dcomm.init(rank=rank, world_size=world_size) as comm:
        x, y = Array(count), comm.empty(count, device=0)

        def rounds(number: int) -> None:
            for _ in range(number):
                comm.all_reduce(x)
                comm.all_reduce(y, algo="direct")
                comm.all_reduce(Array(count), async_op=True).wait(stream=32)

        rounds(warm_up)
        comm.barrier()
        gpu.take()
        rounds(calls)
        found = gpu.take()
        comm.barrier()
        return found
