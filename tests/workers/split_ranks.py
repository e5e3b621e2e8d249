"""Rank processes of test_split.py."""

from __future__ import annotations

import os
import resource
import time
from typing import Any

import numpy as np
from rank_main import error_of, mark

import dcomm


def total(comm: dcomm.Communicator, value: float, count: int = 1000) -> float:
    x = np.full(count, value)
    comm.all_reduce(x, timeout=30)
    assert (x == x[0]).all()
    return float(x[0])


def parity(rank: int, world_size: int) -> dict[str, Any]:
    """Two children in reversed order, both at work at once and with the parent."""
    with dcomm.init(rank=rank, world_size=world_size) as comm:
        child = comm.split(rank % 2, -rank)
        assert child is not None
        members = [peer for peer in reversed(range(world_size)) if peer % 2 == rank % 2]
        assert child.world_size == len(members)
        assert members[child.rank] == rank
        assert child.local_rank == comm.local_rank
        for step in range(50):
            work = comm.all_reduce(np.full(20_000, float(rank)), async_op=True)
            assert total(child, rank + step, 30_000) == sum(members) + step * len(members)
            assert work.wait()[0] == sum(range(world_size))
        ring = child.recv(np.zeros(1, np.int64), (child.rank - 1) % child.world_size, async_op=True)
        child.send(np.array([rank]), (child.rank + 1) % child.world_size)
        assert ring.wait()[0] == members[child.rank - 1]
        some = comm.split(None if rank == 1 else 7)
        assert (some is None) == (rank == 1)
        if some is not None:
            assert some.world_size == world_size - 1
            assert total(some, 1.0) == world_size - 1
            some.close()
        alone = comm.split(rank)
        assert alone is not None
        assert (alone.rank, alone.world_size) == (0, 1)
        assert total(alone, 5.0) == 5
        comm.close()  # the child works on
        assert total(child, 1.0) == len(members)
        child.close()
        return {"members": members}


def _usage() -> tuple[int, int]:
    descriptors = len(os.listdir("/proc/self/fd"))
    with open("/proc/self/maps", encoding="ascii") as file:
        return descriptors, sum("memfd:dcomm" in line or "/dev/shm" in line for line in file)


def repeated(rank: int, world_size: int, times: int) -> dict[str, Any]:
    """What is left of many children: nothing."""
    with dcomm.init(rank=rank, world_size=world_size) as comm:
        counts = []
        for step in range(times):
            child = comm.split(rank % 2 if step % 3 else 0, rank)
            assert child is not None
            assert total(child, 1.0) == child.world_size
            if step % 2:
                child.close()
            del child
            comm.barrier()
            counts.append((*_usage(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
        return {"first": counts[2], "last": counts[-1]}


def nested(rank: int, world_size: int) -> list[int]:
    """Halves of halves, each told from the others by its sum."""
    comm = dcomm.init(rank=rank, world_size=world_size)
    half = comm.split(rank // 2)
    assert half is not None
    quarter = half.split(0, -half.rank)
    assert quarter is not None
    assert quarter.rank == 1 - half.rank
    single = quarter.split(quarter.rank)
    assert single is not None
    sums = [int(total(c, float(rank))) for c in (comm, half, quarter, single)]
    half.close()
    comm.close()
    sums.append(int(total(quarter, float(rank))))
    again = quarter.split(3)
    assert again is not None
    sums.append(int(total(again, float(rank))))
    return sums


def one_dies(rank: int, world_size: int, victim: int) -> dict[str, Any]:
    """The victim's child loses it at once; the other child works until it talks to the parent."""
    comm = dcomm.init(rank=rank, world_size=world_size)
    child = comm.split(rank % 2)
    assert child is not None
    total(child, 1.0)
    mark("split")
    if rank == victim:
        time.sleep(60)
    if rank % 2 == victim % 2:
        lost = error_of(lambda: child.all_reduce(np.ones(100), timeout=30))
        time.sleep(3)  # to leave now would be one more loss for the others
        return lost
    deadline = time.monotonic() + 1.5
    steps = 0
    x = np.ones(1)
    while x[0] > 0:  # both ranks must stop at the same step
        assert total(child, 1.0) == child.world_size
        steps += 1
        x[0] = float(time.monotonic() < deadline)
        child.broadcast(x, 0)
    return error_of(lambda: comm.barrier(timeout=30)) | {"steps": steps}


def dies_during_split(rank: int, world_size: int) -> dict[str, Any]:
    comm = dcomm.init(rank=rank, world_size=world_size)
    comm.barrier()
    if rank == 1:
        mark("ready")
        time.sleep(60)
    mark("ready")
    return error_of(lambda: comm.split(0, timeout=30))


def abort_of_a_child(rank: int, world_size: int) -> dict[str, Any]:
    comm = dcomm.init(rank=rank, world_size=world_size)
    child = comm.split(rank % 2)
    assert child is not None
    result = {"error": None}
    if rank == 0:
        time.sleep(0.2)
        child.abort()
    elif rank == 2:
        result = error_of(lambda: child.barrier(timeout=30))
    else:
        total(child, 1.0)
    assert total(comm, 1.0) == world_size
    if rank == 0:
        child.close()
    fresh = comm.split(0)
    assert fresh is not None
    assert total(fresh, 1.0) == world_size
    return result


def close_of_a_child(rank: int, world_size: int) -> dict[str, Any]:
    """A member that closes the child is lost in the child alone."""
    comm = dcomm.init(rank=rank, world_size=world_size)
    child = comm.split(0)
    assert child is not None
    result = {"error": None}
    if rank == 1:
        child.close()
    else:
        result = error_of(lambda: child.barrier(timeout=30))
    assert total(comm, 1.0) == world_size
    return result


def split_in_a_forked_child(rank: int, world_size: int) -> dict[str, Any]:
    comm = dcomm.init(rank=rank, world_size=world_size)
    child = comm.split(0)
    assert child is not None
    pid = os.fork()
    if pid == 0:
        named = error_of(lambda: child.barrier())["error"] == error_of(lambda: comm.split(0))["error"]
        del child, comm
        os._exit(0 if named else 1)
    status = os.waitpid(pid, 0)[1]
    return {"exit": os.waitstatus_to_exitcode(status), "sum": total(child, 1.0)}


def without_memfd(rank: int, world_size: int) -> float:
    with dcomm.init(rank=rank, world_size=world_size) as comm:
        child = comm.split(0)
        assert child is not None
        return total(child, 1.0)


def too_little_memory(rank: int, world_size: int) -> dict[str, Any]:
    """One rank cannot make its window: all raise, and the parent goes on."""
    comm = dcomm.init(rank=rank, world_size=world_size)
    comm.barrier()
    if rank == 1:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limit[1]))  # no descriptor for it
    result = error_of(lambda: comm.split(0, timeout=20))
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    assert total(comm, 1.0) == world_size
    child = comm.split(rank % 2)
    assert child is not None
    total(child, 1.0)
    return result
