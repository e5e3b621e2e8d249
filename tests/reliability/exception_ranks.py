"""Rank processes of test_exceptions.py: one of them fails in the program's own code, the others wait for it."""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
from rank_main import store_value

import dcomm

KEPT: list[dcomm.Communicator] = []


def look_up(table: dict[str, int]) -> int:
    return table["not there"]  # fails here


def wait_for_all(comm: dcomm.Communicator) -> str:
    try:
        comm.all_reduce(np.ones(1000), timeout=30)
    except dcomm.DcommError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def failing_program(rank: int, world_size: int, how: str) -> Any:
    comm = dcomm.init(rank=rank, world_size=world_size, timeout=40)
    comm.barrier()
    if rank != 1:
        return wait_for_all(comm)
    store_value(None)
    if how == "with":
        with comm:
            look_up({})
    elif how == "with, queued":
        with comm:
            comm.all_reduce(np.ones(10), async_op=True)
            comm.all_reduce(np.ones(10), async_op=True)
            look_up({})
    elif how == "abort":
        comm.abort("loss is NaN at step 7")
        time.sleep(1)
    elif how == "long":
        with comm:
            raise ValueError("ä" * 1000 + "\nsecond line")
    elif how == "exit":
        KEPT.append(comm)  # a local variable would go, and with it the communicator, before the program ends
        sys.exit(3)
    elif how == "dropped":
        sys.exit(4)
    look_up({})
    return None
