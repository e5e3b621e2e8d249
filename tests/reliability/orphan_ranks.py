"""Rank processes of test_orphans.py."""

from __future__ import annotations

import os
import time
from typing import Any

from descriptors import descriptors
from rank_main import mark, store_value

import dcomm


def exit_before_children(rank: int, world_size: int) -> dict[str, Any] | None:
    """Rank 0 ends while a child that it forked lives on; the child then counts what it still has of dcomm."""
    before = descriptors()
    comm = dcomm.init(rank=rank, world_size=world_size, timeout=40)
    comm.barrier()
    of_dcomm = descriptors() - before
    maps_before = dcomm_maps()
    parent = os.getpid()
    if rank == 0 and os.fork() == 0:
        while os.getppid() == parent:
            time.sleep(0.005)
        time.sleep(0.1)
        held = len(of_dcomm & descriptors())
        store_value({"of_dcomm": len(of_dcomm), "held": held, "maps": [maps_before, dcomm_maps()]})
        mark("counted")
        os._exit(0)
    if rank == 0:
        os._exit(0)
    start = time.monotonic()
    try:
        comm.barrier(timeout=20)
    except dcomm.DcommError as error:
        return {"error": type(error).__name__, "seconds": time.monotonic() - start}
    return {"error": None}


def dcomm_maps() -> int:
    with open("/proc/self/maps", encoding="ascii", errors="replace") as maps:
        return sum("memfd:dcomm" in line for line in maps)
