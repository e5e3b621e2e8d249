"""Rank processes of test_threads.py: eight threads and one or eight communicators."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import numpy as np

import dcomm


def threads_against_groups(rank: int, world_size: int, num_threads: int, num_groups: int, each: int) -> dict[str, Any]:
    """`each` operations per group, done by whichever thread gets in; a thread that is refused tries another group.

    All operations of a group are alike, so that it does not matter which thread does which of them.
    """
    root = dcomm.init(rank=rank, world_size=world_size, timeout=40)
    groups = [root] if num_groups == 1 else [root.split(0, rank) for _ in range(num_groups)]
    left = [each] * num_groups
    lock = threading.Lock()
    counts = {"right": 0, "refused": 0, "wrong": 0}
    texts: set[str] = set()

    def work(number: int) -> None:
        rng = random.Random(number)
        x = np.empty(3000)
        while True:
            with lock:
                open_groups = [group for group in range(num_groups) if left[group] > 0]
                if not open_groups:
                    return
                group = rng.choice(open_groups)
                left[group] -= 1
            x[...] = rank + group
            try:
                groups[group].all_reduce(x, timeout=20)
            except dcomm.ConcurrentUseError as error:
                with lock:
                    left[group] += 1
                    counts["refused"] += 1
                    texts.add(str(error))
                time.sleep(0.0005)  # seven threads that spin would keep the GIL from the one that is inside
                continue
            except dcomm.DcommError as error:
                with lock:
                    texts.add(f"{type(error).__name__}: {error}")
                    counts["wrong"] += 1
                return
            expected = world_size * group + world_size * (world_size - 1) / 2
            with lock:
                counts["right" if (x == expected).all() else "wrong"] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(num_threads)]
    if rank == 1:
        time.sleep(0.2)  # rank 0's first thread stays inside for as long, so that its other ones meet it
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    root.barrier()
    for group in groups:
        group.close()
    return {**counts, "texts": sorted(texts)}
