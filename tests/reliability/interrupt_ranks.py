"""Rank processes of test_interrupts.py: a communicator for each round, which ends when one rank is interrupted."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from rank_main import mark

import dcomm

# Made before any interrupt comes: NumPy's own import of its generators swallows a KeyboardInterrupt.
SIZES = [int(2**exponent) for exponent in np.random.default_rng(7).uniform(0, 17, 500)]


def operate(comm: dcomm.Communicator, mode: str, room: np.ndarray) -> None:
    """All-reduces of 8 B to 1 MB for ever; with "sleepy", one rank is late, so that most moments lie in a wait."""
    for number in range(10**9):
        x = room[: SIZES[number % len(SIZES)]]
        if mode == "sleepy" and comm.rank == number % comm.world_size:
            time.sleep(0.02)
        if mode == "async":
            works = [comm.all_reduce(x, "avg", async_op=True, timeout=20) for _ in range(4)]
            works[-1].wait()
        else:
            comm.all_reduce(x, "avg", timeout=20)


def interrupted_in_rounds(rank: int, world_size: int, modes: list[str]) -> list[dict[str, Any]]:
    """What ended each round on this rank, and when."""
    room = np.zeros(1 << 17)
    results = []
    for number, mode in enumerate(modes):
        comm = dcomm.init(rank=rank, world_size=world_size, timeout=40)
        comm.barrier()
        try:
            mark(f"round-{number}")
            operate(comm, mode, room)
        except (KeyboardInterrupt, dcomm.DcommError) as error:
            results.append({"error": type(error).__name__, "text": str(error), "at_ns": time.monotonic_ns()})
        comm.close()
    return results
