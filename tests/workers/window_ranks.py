"""Rank processes of test_window_arrays.py."""

from __future__ import annotations

import gc
import hashlib
import os
from typing import Any

import numpy as np
from rank_main import error_of, mark

import dcomm


def usage() -> list[int]:
    """Descriptors, and mappings of dcomm's shared memory."""
    descriptors = len(os.listdir("/proc/self/fd"))
    with open("/proc/self/maps", encoding="ascii") as file:
        return [descriptors, sum("memfd:dcomm" in line or "/dev/shm" in line for line in file)]


def reduce_everything(rank: int, world_size: int) -> str:
    """A hash of all results; each is that of two_shot on other memory."""
    digest = hashlib.sha256()
    with dcomm.init(rank=rank, world_size=world_size) as comm:
        memory = comm.empty(4_000_000, np.uint8)
        other = comm.empty(4_000_000, np.uint8)
        random = np.random.default_rng(rank)
        for dtype in ("float32", "float16", "float64", "int32", "uint8"):
            for count, offset in ((1, 0), (1000, 8), (70_001, 16), (400_000, 48)):
                for op in ("sum", "max"):
                    data = random.integers(0, 50, count).astype(dtype)
                    x = memory[offset:][: data.nbytes].view(dtype)
                    x[:] = data
                    out = x if op == "sum" else other[: data.nbytes].view(dtype)
                    comm.all_reduce(x, op, out=None if out is x else out, algo="direct")
                    comm.all_reduce(data, op, algo="two_shot")
                    assert out.tobytes() == data.tobytes(), (dtype, count, op)
                    digest.update(out.tobytes())
    return digest.hexdigest()


def allocate_and_drop(rank: int, world_size: int, rounds: int) -> dict[str, Any]:
    with dcomm.init(rank=rank, world_size=world_size) as comm:
        comm.all_reduce(comm.empty(10_000))
        gc.collect()
        before = usage()
        for step in range(rounds):
            x = comm.empty(10_000)
            x[:] = step
            assert comm.all_reduce(x)[-1] == step * world_size
            kept = usage()
            del x
        gc.collect()
        return {"before": before, "kept": kept, "after": usage()}


def fork_child(rank: int, world_size: int) -> dict[str, Any]:
    """A child reads its parent's array, writes to it and drops it."""
    with dcomm.init(rank=rank, world_size=world_size) as comm:
        x = comm.empty(10_000)
        x[:] = 5
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.read(read, 1)
            fine = x[-1] == 6 and usage()[1] == 1  # its parent's array, and nothing of the peers'
            x[0] = 7
            del x
            gc.collect()
            os._exit(0 if fine and usage()[1] == 0 else 1)
        x[:] = 6
        os.write(write, b"x")
        _, status = os.waitpid(child, 0)
        seen = float(x[0])
        x[:] = rank + 1
        return {"child": os.waitstatus_to_exitcode(status), "sum": float(comm.all_reduce(x)[-1]), "seen": seen}


def drop_on_one_rank(rank: int, world_size: int) -> float:
    """The others go on using theirs, alone; a new array at the old address is another one."""
    with dcomm.init(rank=rank, world_size=world_size) as comm:
        for _ in range(10):
            x = comm.empty(100_000)
            x[:] = 1
            comm.all_reduce(x)
            if rank == 1:
                x = np.ones(100_000, np.float32)
                gc.collect()
            comm.barrier()
            x[:] = rank
            assert x[-1] == rank
            assert comm.all_reduce(x, algo="two_shot")[0] == sum(range(world_size))
            comm.barrier()
        return float(x[-1])


def no_memory(rank: int, world_size: int) -> dict[str, Any]:
    with dcomm.init(rank=rank, world_size=world_size) as comm:
        result = error_of(lambda: comm.empty(1 << 46, np.uint8))
        x = comm.empty(10_000)
        x[:] = 1
        return {**result, "sum": float(comm.all_reduce(x)[0])}


def die_in_between(rank: int, world_size: int) -> dict[str, Any]:
    comm = dcomm.init(rank=rank, world_size=world_size)
    x = comm.empty(2_000_000)

    def run() -> None:
        for step in range(100_000):
            comm.all_reduce(x, algo="direct", timeout=20)
            if step == 10:
                mark("running")

    result = error_of(run)
    x[:] = 1  # its memory is its own as before
    return {**result, "readable": float(x.sum()) == x.size}
