"""Rank processes of test_rules.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import dcomm


def thread_names() -> list[str]:
    return sorted(path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm"))


def threads_of_communicators(rank: int, world_size: int) -> dict[str, list[str]]:
    """dcomm's threads after init, after three splits, and after asynchronous operations on two communicators."""

    def ours() -> list[str]:
        return [name for name in thread_names() if name.startswith("dcomm")]

    comm = dcomm.init(rank=rank, world_size=world_size, timeout=40)
    found = {"init": ours()}
    children = [comm.split(0, rank) for _ in range(3)]
    comm.all_reduce(np.ones(10))
    found["split"] = ours()
    for each in (comm, children[0]):
        each.all_reduce(np.ones(10), async_op=True).wait()
    found["asynchronous"] = ours()
    for each in (*children, comm):
        each.close()
    return found
