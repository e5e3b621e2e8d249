"""Rank processes of test_async.py."""

from __future__ import annotations

import os
import time

import numpy as np

import dcomm


def exit_with_pending_operations(rank: int, world_size: int, leave: str) -> None:
    """Leaves the interpreter while operations are queued that can never finish."""
    comm = dcomm.init(rank=rank, world_size=world_size)
    comm.barrier()
    if rank == 0:
        arrays = [np.ones(100_000, np.float32) for _ in range(5)]
        works = [comm.all_reduce(x, async_op=True) for x in arrays]
        assert not works[-1].done()
        if leave == "globals":
            globals()["kept"] = (comm, works)  # as a script would have them
        elif leave == "exception":
            raise KeyError("on purpose")
        elif leave == "with":
            with comm:
                raise KeyError("on purpose")
    else:
        time.sleep(0.3)
        try:
            comm.barrier(timeout=20)
        except dcomm.DcommError:
            return
        raise AssertionError("the peer is gone and nothing was raised")


def drop_everything(rank: int, world_size: int) -> float:
    """Handles and arrays are dropped at once; memory is reused by others meanwhile."""
    comm = dcomm.init(rank=rank, world_size=world_size)
    for _ in range(200):
        comm.all_reduce(np.full(20_000, 1.0, np.float32), async_op=True)
        junk = np.full(20_000, -5.0, np.float32)
        assert (junk == -5.0).all()
    last = np.full(20_000, 1.0, np.float32)
    comm.all_reduce(last, async_op=True)
    comm.close()
    return float(last.sum())


def main_thread_is_free(rank: int, world_size: int) -> dict[str, float]:
    """How long the call takes, and how much Python runs beside an operation of 0.3 s."""
    comm = dcomm.init(rank=rank, world_size=world_size)
    x = np.ones(1000, np.float32)
    comm.all_reduce(x, async_op=True).wait()  # starts the progress thread
    comm._core._inject_delay(0.3)
    start = time.monotonic()
    work = comm.all_reduce(x, async_op=True)
    called = time.monotonic() - start
    loops = 0
    while not work.done():
        loops += 1
        time.sleep(0.001)
    ended = time.monotonic() - start
    comm._core._inject_delay(0.0)
    comm.close()
    return {"called_s": called, "ended_s": ended, "loops": loops, "pid": os.getpid()}
