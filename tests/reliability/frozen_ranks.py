"""Rank processes of test_frozen_and_slow.py."""

from __future__ import annotations

import ctypes
import os
import time
from typing import Any

import numpy as np
from rank_main import mark

import dcomm


def reduce_until_told(rank: int, world_size: int, timeout: float) -> dict[str, Any]:
    """All-reduces with a known sum until rank 0 sees the file; each is checked on every rank."""
    release = os.environ["DCOMM_TEST_RELEASE"]
    comm = dcomm.init(rank=rank, world_size=world_size, timeout=40)
    step, x, last = 0, np.empty(20_000), np.zeros(1)
    while last[0] == 0:
        x[...] = step + rank
        start = time.monotonic()
        try:
            comm.all_reduce(x, timeout=timeout)
            last[0] = rank == 0 and os.path.exists(release)
            comm.all_reduce(last, "max", timeout=timeout)
        except dcomm.DcommError as error:
            waited = time.monotonic() - start
            return {"error": type(error).__name__, "text": str(error), "waited_s": waited, "steps": step}
        assert (x == world_size * step + world_size * (world_size - 1) / 2).all()
        step += 1
        if step == 20:
            mark("reducing")
    comm.close()
    return {"error": None, "steps": step}


def one_rank_is_late(rank: int, world_size: int, late: int, how: str, seconds: float, timeout: float) -> dict[str, Any]:
    """Rank `late` sleeps, computes, or holds the GIL in C before it calls; the others wait for it."""
    comm = dcomm.init(rank=rank, world_size=world_size, timeout=40)
    x = np.full(1000, float(rank))
    comm.all_reduce(x, async_op=True).wait()
    comm.barrier()
    x[...] = rank
    work = None
    if rank == late:
        if how == "queued":
            work = comm.all_reduce(x, async_op=True)
        if how in ("holds the GIL", "queued"):
            # A call through PyDLL keeps the GIL, and this one sleeps.
            ctypes.PyDLL(None).usleep(int(1e6 * seconds))
        elif how == "computes":
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                pass
        else:
            time.sleep(seconds)
    start = time.monotonic()
    try:
        if work is None:
            comm.all_reduce(x, timeout=timeout)
        else:
            work.wait()
    except dcomm.DcommError as error:
        return {"error": type(error).__name__, "text": str(error), "waited_s": time.monotonic() - start}
    assert (x == world_size * (world_size - 1) / 2).all()
    return {"error": None, "waited_s": time.monotonic() - start}
