"""Rank processes of test_rules.py."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import seccomp
from rank_main import store_value

import dcomm


def thread_names() -> list[str]:
    return sorted(path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm"))


def threads_of_communicators(rank: int, world_size: int) -> dict[str, list[str]]:
    """dcomm's threads after init, after three splits, and after asynchronous operations on two communicators."""

    def ours(num: int) -> list[str]:
        """A thread gives itself its name, some time after it was started."""
        end = time.monotonic() + 5
        while True:
            names = [name for name in thread_names() if name.startswith("dcomm")]
            if len(names) >= num or time.monotonic() > end:
                return names
            time.sleep(0.01)

    comm = dcomm.init(rank=rank, world_size=world_size, timeout=40)
    found = {"init": ours(1)}
    children = [comm.split(0, rank) for _ in range(3)]
    comm.all_reduce(np.ones(10))
    found["split"] = ours(1)
    for each in (comm, children[0]):
        each.all_reduce(np.ones(10), async_op=True).wait()
    found["asynchronous"] = ours(3)
    for each in (*children, comm):
        each.close()
    return found


def operations_under_a_filter(rank: int, world_size: int, calls: int, asks: bool) -> None:
    """Operations in a process that getpid ends. asks: it is called at the end. Closing is no operation."""
    comm = dcomm.init(rank=rank, world_size=world_size, timeout=40)
    small, large, out = np.ones(2, np.float32), np.ones(200_000, np.float32), np.ones(2, np.float32)

    def once() -> None:
        comm.all_reduce(small, "max")
        comm.all_reduce(small, "max", async_op=True).wait()

    def each_way() -> None:
        for algo in ("one_shot", "two_shot", "ring", "tree"):
            comm.all_reduce(large, "max", algo=algo)
        comm.broadcast(small)
        comm.barrier()
        work = comm.send(small, (rank + 1) % world_size, async_op=True)
        comm.recv(out, (rank - 1) % world_size)
        work.wait()

    once()
    each_way()
    try:
        seccomp.die_of("getpid")
    except OSError as error:
        store_value({"no_filter": str(error)})
        os._exit(0)
    for _ in range(calls):
        once()
    each_way()
    if asks:
        os.getpid()
    store_value({"calls": calls})
    os._exit(0)
