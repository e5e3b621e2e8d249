"""Rank processes of test_message_processes.py."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from rank_main import error_of, mark

import dcomm


def messages(rank: int, world_size: int) -> list[float]:
    with dcomm.init(rank=rank, world_size=world_size) as comm:
        right, left = (rank + 1) % world_size, (rank - 1) % world_size
        big = 16 << 20
        comm.send(np.full(big, rank, np.float32), right)  # all send first
        got = comm.recv(np.zeros(big, np.float32), left)
        assert (got == left).all()
        times = []
        for count in (1, 100_000):
            x, y = np.full(count, float(rank)), np.zeros(count)
            start = time.monotonic()
            for _ in range(200):
                works = [comm.recv(y, left, async_op=True), comm.send(x, right, async_op=True)]
                for work in works:
                    work.wait(timeout=30)
                x, y = y, x
            times.append((time.monotonic() - start) / 200)
            assert (x == (rank - 200) % world_size).all()
        comm.barrier()
        start = time.monotonic()
        for i in range(1000):
            if rank == 0:
                comm.send(np.array([i]), 1)
            elif rank == 1:
                assert comm.recv(np.zeros(1, np.int64), 0)[0] == i
        times.append((time.monotonic() - start) / 1000)
        comm.barrier()
        return times


def peer_dies(rank: int, world_size: int, role: str) -> dict[str, Any]:
    """Rank 1 is killed while rank 0 waits for it; rank 2 is not concerned and then is."""
    comm = dcomm.init(rank=rank, world_size=world_size)
    comm.barrier()
    if rank == 1:
        if role == "recv":
            comm.send(np.full(10, 3.0), 0, tag=4)  # will still be received
        mark("ready")
        time.sleep(60)
    mark("ready")
    if rank == 2:
        return error_of(lambda: comm.recv(np.zeros(1), 0, timeout=30))
    if role == "recv":
        result = error_of(lambda: comm.recv(np.zeros(10), 1, tag=5, timeout=30))
    elif role == "async":
        works = [comm.recv(np.zeros(10), 1, async_op=True), comm.send(np.zeros(1_000_000), 1, async_op=True)]
        result = error_of(works[0].wait)
        assert error_of(works[1].wait)["error"] == "PeerLostError"
    else:
        result = error_of(lambda: comm.send(np.zeros(4 << 20), 1, timeout=30))
    return result


def published_before_death(rank: int, world_size: int) -> dict[str, Any]:
    comm = dcomm.init(rank=rank, world_size=world_size)
    comm.barrier()
    if rank == 1:
        comm.send(np.full(10, 3.0), 0)
        mark("sent")
        time.sleep(60)
    mark("ready")
    time.sleep(1.0)  # the kill comes in between
    got = comm.recv(np.zeros(10), 1)
    return error_of(lambda: comm.recv(np.zeros(10), 1, timeout=30)) | {"got": float(got[0])}


def interrupted(rank: int, world_size: int) -> dict[str, Any]:
    comm = dcomm.init(rank=rank, world_size=world_size)
    comm.barrier()
    mark("waiting")
    first = error_of(lambda: comm.recv(np.zeros(3), 1 - rank, timeout=30))
    return first | {"second": error_of(lambda: comm.send(np.zeros(3), 1 - rank))["error"]}
