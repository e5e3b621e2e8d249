"""Rank processes of test_message_processes.py."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from message_storm import Storm
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


def side_by_side(rank: int, world_size: int) -> float:
    """Receives of named ranks and of any wait together; rank 0 tells each rank when to send, the last one first."""
    with dcomm.init(rank=rank, world_size=world_size) as comm:
        comm.barrier()
        if rank != 0:
            assert comm.recv(np.zeros(1), 0, tag=1)[0] == rank
            comm.send(np.full(100_000, float(rank)), 0, tag=2)
            comm.send(np.full(1, float(rank)), 0, tag=3)
            comm.barrier()
            return 0.0
        arrays = {peer: np.zeros(100_000) for peer in range(1, world_size)}
        works = {peer: comm.recv(arrays[peer], peer, tag=2, async_op=True) for peer in arrays}
        y = np.zeros(1)
        longest = 0.0
        for peer in reversed(arrays):
            any_source = comm.recv_any(y, tag=3, async_op=True)
            start = time.monotonic()
            comm.send(np.full(1, float(peer)), peer, tag=1)
            works[peer].wait(timeout=30)
            assert any_source.wait(timeout=30) == peer
            longest = max(longest, time.monotonic() - start)
            assert (arrays[peer] == peer).all()
            assert y[0] == peer
            assert not any(works[other].done() for other in range(1, peer))
        comm.barrier()
        return longest


def peer_dies_beside_any(rank: int, world_size: int) -> dict[str, Any]:
    """Rank 1 is killed while rank 0 receives from any rank, although rank 2 is alive."""
    comm = dcomm.init(rank=rank, world_size=world_size)
    comm.barrier()
    if rank == 2:
        comm.send(np.full(1, 5.0), 0)
    mark("ready")
    if rank != 0:
        if rank == 1:
            time.sleep(60)
        return error_of(lambda: comm.barrier(timeout=30))
    y = np.zeros(1)
    assert comm.recv_any(y) == 2
    works = [comm.recv(np.zeros(1), 2, tag=9, async_op=True), comm.recv_any(y, async_op=True)]
    result = error_of(works[1].wait)
    assert error_of(works[0].wait)["error"] == "PeerLostError"
    return result


def storm(rank: int, world_size: int, seed: int) -> None:
    with dcomm.init(rank=rank, world_size=world_size) as comm:
        for number in range(4):
            Storm(world_size, 10 * seed + number).run(comm)
