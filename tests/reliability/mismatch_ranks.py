"""Rank processes of test_mismatches.py."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from disagreements import make_case, run_case

import dcomm


def many_cases(rank: int, world_size: int, seeds: list[int]) -> list[dict[str, Any]]:
    """One new communicator for each case: after an error there is no other way on."""
    told = []
    for seed in seeds:
        comm = dcomm.init(rank=rank, world_size=world_size, timeout=40)
        told.append(run_case(comm, make_case(seed, world_size)))
        comm.close()
    return told


def skipped_call(rank: int, world_size: int) -> str:
    """Rank 1 does not make the third call, and is elsewhere."""
    comm = dcomm.init(rank=rank, world_size=world_size, timeout=40)
    x = np.ones(100, np.float32)
    comm.all_reduce(x)
    comm.all_reduce(x)
    try:
        if rank != 1:
            comm.all_reduce(x, timeout=0.5)  # skipped by rank 1
        comm.recv(x, (rank + 1) % world_size, timeout=10)  # rank 1 is here
    except dcomm.DcommError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def another_call(rank: int, world_size: int) -> str:
    """Rank 1 does not make the third call, but its fourth."""
    comm = dcomm.init(rank=rank, world_size=world_size, timeout=40)
    x = np.ones(100, np.float32)
    comm.all_reduce(x)
    try:
        if rank != 1:
            comm.all_reduce(x)  # not by rank 1
        comm.barrier()  # by all
    except dcomm.DcommError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def swapped_groups(rank: int, world_size: int) -> str:
    comm = dcomm.init(rank=rank, world_size=world_size, timeout=40)  # the first one is made here
    pair = comm.split(0)  # the second one is made here
    assert pair is not None
    x = np.ones(100, np.float32)
    try:
        if rank == 1:
            pair.all_reduce(x, timeout=1)  # rank 1 uses the second one first
            comm.all_reduce(x, timeout=1)
        else:
            comm.all_reduce(x, timeout=1)  # the others use the first one first
            pair.all_reduce(x, timeout=1)
    except dcomm.DcommError as error:
        time.sleep(0.5)  # the others' deadlines pass as well, before they find this rank gone
        return f"{type(error).__name__}: {error}"
    return "no error"


def asynchronous(rank: int, world_size: int) -> str:
    comm = dcomm.init(rank=rank, world_size=world_size, timeout=40)
    work = comm.all_reduce(np.ones(100 + rank, np.float32), async_op=True)  # queued here
    try:
        work.wait()
    except dcomm.DcommError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"
