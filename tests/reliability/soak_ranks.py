"""Rank processes of test_soak.py: a little of everything, again and again, at a pace that leaves the machine to others.

Numbers of operations and messages begin just below 2^32 in every communicator (DCOMM_TEST_FIRST_NUMBER), and each
result is checked.
"""

from __future__ import annotations

import gc
import os
import time
from typing import Any

import numpy as np

import dcomm

WARM_UP_TURNS = 200  # without a pause: caches and the allocator's arenas fill by what was done, not by time
PAUSE_S = 0.1  # after each round of work, of some 30 ms
SAMPLE_EVERY_S = 2.0
COUNTS = (1, 17, 1000, 9_999, 120_001)


def checked_sums(comm: dcomm.Communicator, turn: int) -> None:
    n = comm.world_size
    total = n * (n + 1) // 2
    for algo in ("one_shot", "two_shot", "ring", "tree"):
        count = COUNTS[(turn + len(algo)) % len(COUNTS)]
        x = np.full(count, comm.rank + 1, np.float32)
        comm.all_reduce(x, algo=algo)
        assert (x == total).all(), (algo, count)
    works = [comm.all_reduce(np.full(200, comm.rank + index, np.int64), async_op=True) for index in range(8)]
    for index, work in enumerate(works):
        assert (work.wait() == n * (n - 1) // 2 + n * index).all()
    if turn % 16 == 0:
        x = np.full(1 << 20, comm.rank + 1, np.float32)  # 4 MiB: many tiles
        comm.all_reduce(x, wire_dtype="float16")
        assert (x == total).all()


def checked_moves(comm: dcomm.Communicator, turn: int) -> None:
    n, rank = comm.world_size, comm.rank
    own = np.full(500, rank, np.int32)
    assert (comm.all_gather(own).reshape(n, -1) == np.arange(n)[:, None]).all()
    root = turn % n
    x = np.full(3000, rank, np.float64)
    comm.broadcast(x, root)
    assert (x == root).all()
    assert (comm.reduce_scatter(np.ones(4 * n, np.float32)) == n).all()
    assert (comm.all_to_all(np.full(2 * n, rank, np.uint8)).reshape(n, 2) == np.arange(n)[:, None]).all()
    gathered = comm.gather(own, dst=root)
    assert gathered is None or gathered.size == 500 * n
    comm.barrier()


def checked_messages(comm: dcomm.Communicator, turn: int) -> None:
    peer, other = (comm.rank + 1) % comm.world_size, (comm.rank - 1) % comm.world_size
    for count in (1, 30_000 + turn % 100):
        work = comm.send(np.full(count, comm.rank, np.int32), peer, tag=turn % 1000, async_op=True)
        x = np.empty(count, np.int32)
        comm.recv(x, other, tag=turn % 1000)
        work.wait()
        assert (x == other).all()


def checked_splits(comm: dcomm.Communicator, turn: int) -> None:
    child = comm.split(0, key=-comm.rank)
    assert child is not None
    with child:
        for _ in range(4):  # past 2^32, by calls and by tiles
            checked_moves(child, turn)
            checked_sums(child, turn)
    shared = comm.empty((5000,), "float32")
    shared[...] = 1
    comm.all_reduce(shared)
    assert (shared == comm.world_size).all()


def another_meeting(rank: int, world_size: int) -> None:
    with dcomm.init(rank=rank, world_size=world_size, timeout=300) as comm:
        checked_sums(comm, 0)
        checked_messages(comm, 0)


def sample() -> dict[str, float]:
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    with open("/proc/self/maps") as file:
        num_maps = sum(1 for _ in file)
    return {
        "s": time.monotonic(),
        "rss_mib": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "mappings": num_maps,
    }


def one_split(comm: dcomm.Communicator, turn: int) -> None:
    child = comm.split(0)
    assert child is not None
    with child:
        child.barrier()


PARTS = {"sums": checked_sums, "moves": checked_moves, "messages": checked_messages, "splits": one_split}


def repeat(rank: int, world_size: int, part: str, times: int) -> list[float]:
    """MiB of memory after each tenth of so many calls of a part."""
    comm = dcomm.init(rank=rank, world_size=world_size, timeout=300)
    found = []
    for turn in range(times):
        if part == "meetings":
            another_meeting(rank, world_size)
        else:
            PARTS[part](comm, turn)
        if (turn + 1) % (times // 10) == 0:
            gc.collect()
            found.append(sample()["rss_mib"])
    comm.close()
    return found


def soak(rank: int, world_size: int, seconds: float, warm_up_turns: int = WARM_UP_TURNS) -> dict[str, Any]:
    """Samples over time, taken where nothing is under way, and how much was done."""
    os.nice(10)
    comm = dcomm.init(rank=rank, world_size=world_size, timeout=300)
    names = list(sample())
    # Memory that is there before the first sample: a list of them would grow by as much as the test looks for.
    samples = np.full((int(seconds / SAMPLE_EVERY_S) + 20, len(names)), -1.0)
    num_samples = 0
    next_sample = 0.0
    turn = num_splits = num_meetings = 0
    goes_on = np.ones(1, np.int32)
    start_ns = time.monotonic_ns()
    while goes_on[0]:
        is_warm = turn >= warm_up_turns
        if not is_warm:
            start_ns = time.monotonic_ns()
        checked_sums(comm, turn)
        checked_moves(comm, turn)
        checked_messages(comm, turn)
        if turn % 2 == 0:
            checked_splits(comm, turn)
            num_splits += 1
        if turn % 20 == 0:
            another_meeting(rank, world_size)
            num_meetings += 1
        turn += 1
        elapsed_s = (time.monotonic_ns() - start_ns) / 1e9
        if is_warm and elapsed_s >= next_sample:
            gc.collect()
            samples[num_samples] = list(sample().values())
            num_samples += 1
            next_sample = elapsed_s + SAMPLE_EVERY_S
        goes_on[0] = elapsed_s < seconds
        comm.broadcast(goes_on, 0)
        if is_warm:
            time.sleep(PAUSE_S)
    stats = comm.stats()
    comm.close()
    return {
        "samples": [dict(zip(names, row, strict=True)) for row in samples[:num_samples].tolist()],
        "turns": turn,
        "splits": num_splits,
        "meetings": num_meetings,
        "operations": stats["num_operations"],
        "cpu_s": time.process_time(),
        "first_number": int(os.environ["DCOMM_TEST_FIRST_NUMBER"]),
    }
