"""Rank processes of test_death.py: working until something happens to one of them."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import numpy as np
from rank_main import mark, store_value

import dcomm


def init(rank: int, world_size: int) -> dcomm.Communicator:
    comm = dcomm.init(rank=rank, world_size=world_size, timeout=40)
    comm.barrier()
    return comm


def described(error: BaseException) -> dict[str, Any]:
    told = {"error": type(error).__name__, "text": str(error), "at_ns": time.monotonic_ns()}
    if isinstance(error, dcomm.PeerLostError):
        told |= {"rank": error.rank, "pid": error.pid, "last_seq": error.last_seq}
    return told


def storm(rank: int, world_size: int, mode: str, seed: int) -> dict[str, Any]:
    """All-reduces of 8 B to 4 MB until a peer is lost."""
    comm = init(rank, world_size)
    rng = np.random.default_rng(seed)  # the same sizes on every rank
    room = np.zeros(500_000, np.float64)
    num_operations = 0
    if mode == "forked" and rank == 1 and os.fork() == 0:  # as a data loader's worker
        time.sleep(8)  # longer than the test allows for
        os._exit(0)
    try:
        while True:
            x = room[: int(2 ** rng.uniform(0, 18.9))]
            if mode == "async":
                works = [comm.all_reduce(x, "avg", async_op=True) for _ in range(4)]
                works[-1].wait()
            else:
                comm.all_reduce(x, "avg", algo=("two_shot", "ring")[num_operations % 2])
            num_operations += 1
            if num_operations == 20:
                mark("storming")
    except dcomm.DcommError as error:
        result = {**described(error), "num_operations": num_operations, "pids": comm._core.pids}
    try:
        comm.barrier()
        result["second"] = "no error"
    except dcomm.DcommError as error:
        result["second"] = str(error)
    return result


def wait_for_a_peer_that_never_calls(rank: int, world_size: int, how: str, absent: int) -> dict[str, Any] | None:
    """Every rank but `absent` waits; Ctrl-C comes to one of them."""
    comm = init(rank, world_size)
    x = np.ones(1000)
    comm.all_reduce(x, async_op=True).wait()
    comm.barrier()
    if rank == absent:
        mark("waiting")
        time.sleep(0.3)
        try:
            while True:  # in Python, so that the abort is met in the next call
                time.sleep(0.01)
                if os.path.exists(os.environ["DCOMM_TEST_RELEASE"]):
                    comm.barrier(timeout=20)
        except dcomm.DcommError as error:
            return described(error)
    mark("waiting")
    try:
        if how == "sync":
            comm.all_reduce(x, timeout=40)
        elif how == "work":
            comm.all_reduce(x, async_op=True, timeout=40).wait()
        elif how == "queued":  # a synchronous call behind an asynchronous one
            comm.all_reduce(x, async_op=True, timeout=40)
            comm.all_reduce(np.ones(7), timeout=40)
    except KeyboardInterrupt as error:
        result = described(error)
        try:
            comm.barrier()
        except dcomm.DcommError as later:
            result["second"] = f"{type(later).__name__}: {later}"
        return result
    except dcomm.DcommError as error:
        return described(error)
    return None


def interrupted_in_init(rank: int, world_size: int) -> dict[str, Any]:
    mark("waiting")
    try:
        dcomm.init(rank=rank, world_size=world_size + 1, timeout=40)
    except KeyboardInterrupt as error:
        return described(error)
    return {"error": None}


def train_until_stopped(rank: int, world_size: int, timeout: float, steps: int) -> dict[str, Any]:
    """Steps with a rank that is stopped and perhaps continued."""
    comm = init(rank, world_size)
    for step in range(steps):
        x = np.full(10_000, float(step))
        start = time.monotonic()
        try:
            comm.all_reduce(x, timeout=timeout)
        except dcomm.DcommError as error:
            return {**described(error), "waited_s": time.monotonic() - start, "step": step}
        assert (x == step * world_size).all()
        if step == 20:
            mark("training")
        time.sleep(0.002)
    return {"error": None}


KEPT: list[dcomm.Communicator] = []


def exit_early(rank: int, world_size: int, how: str) -> dict[str, Any] | None:
    """Rank 1 leaves while the others need it."""
    comm = init(rank, world_size)
    if rank == 1:
        store_value(None)
        if how in ("return", "exit"):
            KEPT.append(comm)  # a local variable would go, and with it the communicator, before the program ends
        if how in ("return", "dropped"):
            return None
        if how == "exception":
            raise KeyError("on purpose")
        if how == "close":
            comm.close()
            time.sleep(1.0)
            return None
        sys.exit(3)
    start = time.monotonic()
    try:
        comm.all_reduce(np.ones(1000), timeout=30)
    except dcomm.DcommError as error:
        return {**described(error), "seconds": time.monotonic() - start}
    return {"error": None}
