"""Rank processes of test_processes.py: meeting, exchanging, leaving."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from rank_main import wait_for_all

import dcomm


def exchange(comm: dcomm.Communicator) -> dict[str, Any]:
    """A few collectives with known results, and who this rank is."""
    n, rank = comm.world_size, comm.rank
    for algo in ("two_shot", "ring"):
        for count in (1, 1000, 300_000):
            x = np.arange(count, dtype=np.float64) + rank
            comm.all_reduce(x, algo=algo)
            assert np.array_equal(x, n * np.arange(count) + n * (n - 1) / 2), (algo, count)
            x = np.full(count, float(rank), np.float32)
            comm.all_reduce(x, "avg", algo=algo, wire_dtype="bf16")
            assert (x == (n - 1) / 2).all(), (algo, count)
    for src in range(n):
        x = np.full(100_000, rank, np.int32)
        comm.broadcast(x, src)
        assert (x == src).all()
    y = np.full(1000, rank, np.int64)
    comm.all_reduce(y, async_op=True).wait()
    assert (y == n * (n - 1) // 2).all()
    comm.barrier()
    return {"rank": comm.rank, "world_size": comm.world_size, "local_rank": comm.local_rank}


def by_arguments(rank: int, world_size: int) -> dict[str, Any]:
    with dcomm.init(rank=rank, world_size=world_size, timeout=40) as comm:
        return exchange(comm)


def by_environment(rank: int, world_size: int) -> dict[str, Any]:
    with dcomm.init(timeout=40) as comm:
        return exchange(comm)


class FolderStore:
    """The smallest store there is: a file for each key."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def set(self, key: str, value: str) -> None:
        path = self.folder / key.replace("/", "_")
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        partial.write_text(value)
        partial.rename(path)

    def get(self, key: str) -> bytes:
        path = self.folder / key.replace("/", "_")
        deadline = time.monotonic() + 40
        while not path.exists():
            assert time.monotonic() < deadline, f"nobody has set {key}"
            time.sleep(0.005)
        return path.read_bytes()


def by_store(rank: int, world_size: int, kind: str, folder: str, port: int = 0) -> dict[str, Any]:
    store: Any
    if kind == "own":
        store = FolderStore(folder)
    else:
        import torch.distributed as dist

        if kind == "file":
            store = dist.FileStore(f"{folder}/store", world_size)
        else:
            store = dist.TCPStore("127.0.0.1", port, world_size, rank == 0)
    result: dict[str, Any] = {}
    for name in ("", "again", ""):  # several communicators through one store
        with dcomm.init(rank=rank, world_size=world_size, store=store, group_name=name, timeout=40) as comm:
            result = exchange(comm)
    return result


def init_and_report(rank: int, world_size: int, **kwargs: Any) -> dict[str, Any]:
    """init() and its error, if any; `my_rank` and `my_world_size` override."""
    wait_for_all()
    start = time.monotonic()
    my_rank, my_size = kwargs.pop("my_rank", rank), kwargs.pop("my_world_size", world_size)
    time.sleep(kwargs.pop("delay", 0.0))
    try:
        with dcomm.init(rank=my_rank, world_size=my_size, timeout=kwargs.pop("timeout", 30), **kwargs) as comm:
            return {"error": None, **exchange(comm)}
    except (dcomm.DcommError, ValueError) as error:
        ranks = getattr(error, "ranks", None)
        seconds = time.monotonic() - start
        return {"error": type(error).__name__, "text": str(error), "seconds": seconds, "ranks": ranks}


def many_short_lives(rank: int, world_size: int, rounds: int) -> dict[str, Any]:
    """A communicator per round; whoever is done first leaves at once while the others still read its results."""
    x = np.zeros(5000, np.float32)
    for round_number in range(rounds):
        comm = dcomm.init(rank=rank, world_size=world_size, timeout=40)
        x[...] = rank
        comm.all_reduce(x, algo=("two_shot", "ring")[round_number % 2])
        if round_number % 3 == 0:
            comm.close()
        elif round_number % 3 == 1:
            comm.__exit__(None, None, None)
        del comm
        assert (x == world_size * (world_size - 1) / 2).all()
    return {"rounds": rounds}


def exit_after_last_operation(rank: int, world_size: int, hard: bool) -> None:
    comm = dcomm.init(rank=rank, world_size=world_size, timeout=40)
    x = np.full(100_000, 1.0)
    for _ in range(5):
        comm.all_reduce(x)
    assert (x == world_size**5).all()
    if hard:
        sys.stderr.flush()
        os._exit(0)  # no goodbye: the peers see a dead process, after it has done its part


def descriptors_over_cycles(rank: int, world_size: int, cycles: int) -> dict[str, Any]:
    def count() -> tuple[int, int, int]:
        maps = Path("/proc/self/maps").read_text().count("dcomm")
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), maps

    counts = []
    for cycle in range(cycles):
        comm = dcomm.init(rank=rank, world_size=world_size, timeout=40)
        comm.all_reduce(np.ones(1000, np.float32))
        if cycle % 2:
            comm.all_reduce(np.ones(1000, np.float32), async_op=True).wait()
        comm.close()
        del comm
        counts.append(count())
    return {"first": counts[1], "last": counts[-1]}


def fork_and_use(rank: int, world_size: int) -> dict[str, Any]:
    comm = dcomm.init(rank=rank, world_size=world_size, timeout=40)
    comm.all_reduce(np.ones(100), async_op=True).wait()  # the progress thread does not exist in the child
    before = len(os.listdir("/proc/self/fd"))
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        texts = [f"{before - (len(os.listdir('/proc/self/fd')) - 2)}"]
        for call in (
            lambda: comm.all_reduce(np.ones(3)),
            lambda: comm.all_reduce(np.ones(3), async_op=True),
            comm.barrier,
            lambda: comm.broadcast(np.ones(3)),
        ):
            try:
                call()
                texts.append("no error")
            except dcomm.ForkedProcessError as error:
                texts.append(str(error))
        comm.abort()  # does nothing: the parent's communicator goes on
        comm.close()
        os.write(write_end, "\n".join(texts).encode())
        del comm
        sys.exit(7)  # through atexit and destructors
    os.close(write_end)
    with os.fdopen(read_end) as file:
        texts = file.read().split("\n")
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    x = np.ones(1000)
    for _ in range(20):
        comm.all_reduce(x, "avg")
    comm.all_reduce(x, async_op=True).wait()
    comm.close()
    return {"texts": texts, "status": status, "value": float(x[0])}


def mismatch(rank: int, world_size: int, what: str) -> dict[str, Any]:
    comm = dcomm.init(rank=rank, world_size=world_size, timeout=40)
    comm.barrier()
    odd = rank == world_size - 1
    start = time.monotonic()
    try:
        if what == "count":
            comm.all_reduce(np.ones(1001 if odd else 1000, np.float32), timeout=20)
        elif what == "dtype":
            comm.all_reduce(np.ones(1000, np.int32 if odd else np.float32), timeout=20)
        elif odd:
            comm.barrier(timeout=20)
        else:
            comm.all_reduce(np.ones(1000, np.float32), timeout=20)
    except dcomm.DcommError as error:
        return {"error": type(error).__name__, "text": str(error), "seconds": time.monotonic() - start}
    return {"error": None}


def with_block(rank: int, world_size: int) -> dict[str, Any]:
    with dcomm.init(rank=rank, world_size=world_size, timeout=40) as comm:
        total = float(comm.all_reduce(np.ones(3))[0])
        inside = comm.closed
    return {"sum": total, "inside": inside, "after": comm.closed}


def counts_disagree(rank: int, world_size: int) -> dict[str, Any]:
    """Rank 1 sends rank 0 seven rows of two, where rank 0 expects five."""
    comm = dcomm.init(rank=rank, world_size=world_size, timeout=40)
    comm.barrier()
    send = [5] * world_size
    if rank == 1:
        send[0] = 7
    start = time.monotonic()
    try:
        comm.all_to_all(np.ones((sum(send), 2)), send_counts=send, recv_counts=[5] * world_size, timeout=20)
        comm.barrier(timeout=20)
    except dcomm.DcommError as error:
        return {"error": type(error).__name__, "text": str(error), "seconds": time.monotonic() - start}
    return {"error": None}
