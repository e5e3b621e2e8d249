"""Rank processes of test_rules.py."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

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
