"""Body of test_failing_calls.py: init() of two ranks, again and again, with one system call failing each time."""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from forked_ranks import run_forked

import dcomm

TIMEOUT_S = 1.0


def left_behind(before: set[str]) -> list[str]:
    """What this process has now of descriptors, threads and windows, and had not before."""
    gc.collect()
    maps = [line for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:" in line or "/dev/shm" in line]
    threads = [f"thread {name}" for name in os.listdir("/proc/self/task")][1:]
    return sorted(descriptors() - before) + threads + maps


def descriptors() -> set[str]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
        except FileNotFoundError:
            continue  # the listing's own
    return found


def join(rank: int, key: str, armed: bool, function: str, n: int, error: int) -> dict[str, Any]:
    """init(), one all_reduce, close(); in `armed` ranks the n-th call of `function` in init() fails."""
    os.environ["DCOMM_JOB_ID"] = key
    shim = ctypes.CDLL(os.environ["LD_PRELOAD"])
    before = descriptors()
    shim.fail_call(function.encode() if armed else b"", n, error)
    start = time.monotonic()
    result: dict[str, Any] = {"error": None, "text": ""}
    comm = None
    try:
        try:
            comm = dcomm.init(rank=rank, world_size=2, timeout=TIMEOUT_S)
        finally:
            calls = shim.num_calls()
            shim.fail_call(b"", 0, 0)
        x = comm.all_reduce(np.ones(10_000), timeout=TIMEOUT_S)
        assert (x == 2).all()
    except Exception as error:
        is_typed = isinstance(error, dcomm.DcommError | ValueError)
        result = {"error": type(error).__name__, "text": str(error), "typed": is_typed}
    if comm is not None:
        comm.close()
    del comm
    return {**result, "seconds": time.monotonic() - start, "calls": calls, "left": left_behind(before)}


def fail_every_call(rank: int, world_size: int, functions: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """For each function, each n up to the number of its calls in init(), on each of both ranks: what both ranks say."""
    outcomes = []
    for function, error_name in functions:
        error = getattr(errno, error_name)
        counted = run_forked(
            [partial(join, peer, f"{os.getpid()}-{function}-count", True, function, 0, 0) for peer in (0, 1)]
        )
        for victim in (0, 1):
            for n in range(1, counted[victim]["calls"] + 1):
                key = f"{os.getpid()}-{function}-{victim}-{n}"
                bodies = [partial(join, peer, key, peer == victim, function, n, error) for peer in (0, 1)]
                values = run_forked(bodies, timeout=10)
                outcomes.append({"function": function, "errno": error_name, "victim": victim, "n": n, "values": values})
    return outcomes


def refused_thread(rank: int, key: str) -> dict[str, Any]:
    """The first asynchronous call finds no thread and raises; the second one is as if nothing had happened."""
    os.environ["DCOMM_JOB_ID"] = key
    shim = ctypes.CDLL(os.environ["LD_PRELOAD"])
    x = np.full(1000, float(rank))
    with dcomm.init(rank=rank, world_size=2, timeout=10) as comm:
        shim.fail_call(b"pthread_create", 1, errno.EAGAIN)
        try:
            comm.all_reduce(x, async_op=True)
            text = "no error"
        except dcomm.DcommError as error:
            text = str(error)
        comm.all_reduce(x, async_op=True).wait(timeout=10)
    return {"text": text, "sum": float(x[0])}


def refuse_threads(rank: int, world_size: int) -> list[dict[str, Any]]:
    return run_forked([partial(refused_thread, peer, f"{os.getpid()}-thread") for peer in (0, 1)])
