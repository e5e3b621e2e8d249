"""What test_containers.py runs inside: contained.py FUNCTION; prints one JSON object."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "support"))

import numpy as np
from forked_ranks import run_forked
from rank_processes import WORKERS, Ranks, process_values

import dcomm


def surroundings() -> dict[str, Any]:
    """So that the test knows that it is a container."""
    try:
        Path("/usr/dcomm-test").touch()
        writable = True
    except OSError:
        writable = False
    shm = os.statvfs("/dev/shm")
    capabilities = re.search(r"^CapEff:\s+(\w+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    return {
        "uid": os.getuid(),
        "writable": writable,
        "shm_bytes": shm.f_blocks * shm.f_frsize,
        "capabilities": capabilities[1] if capabilities else "?",
    }


def death_and_mismatch() -> dict[str, Any]:
    """A rank of four is killed; four ranks disagree."""
    with Ranks(4, WORKERS / "death_ranks.py", "storm", {"mode": "sync", "seed": 3}) as ranks:
        for rank in range(4):
            ranks.wait_for_mark(rank, "storming")
        pid = ranks.processes[2].pid
        sent_ns = ranks.send(2, signal.SIGKILL)
        results = [result for result in ranks.finish(timeout=30) if result.rank != 2]
    lost = [
        {
            "error": result.value["error"],
            "named": f"rank 2 (pid {pid}) died" in result.value["text"],
            "ms": (result.value["at_ns"] - sent_ns) / 1e6,
        }
        for result in results
    ]
    differing = process_values(4, WORKERS / "process_ranks.py", "mismatch", {"what": "count"})
    left = [name for name in os.listdir("/dev/shm") if "dcomm" in name]
    return {**surroundings(), "lost": lost, "differing": differing, "left": left}


def join(rank: int, key: str, force_shm: str) -> dict[str, Any]:
    os.environ |= {"DCOMM_JOB_ID": key, "DCOMM_FORCE_SHM": force_shm}
    start = time.monotonic()
    try:
        with dcomm.init(rank=rank, world_size=2, timeout=10) as comm:
            x = np.ones(2_000_000)  # through every byte of the slots
            for algo in ("two_shot", "ring", "one_shot", "tree"):
                comm.all_reduce(x, "avg", algo=algo)
            assert (x == 1).all()
    except dcomm.DcommError as error:
        return {"error": type(error).__name__, "text": str(error), "seconds": time.monotonic() - start}
    return {"error": None, "text": "", "seconds": time.monotonic() - start}


def small_shm(times: int = 20) -> dict[str, Any]:
    """Windows by default, and with the fallback forced, where /dev/shm is too small for them."""

    def again(force_shm: str) -> list[Any]:
        return [
            value
            for number in range(times)
            for value in run_forked(
                [partial(join, rank, f"{os.getpid()}-{force_shm}-{number}", force_shm) for rank in (0, 1)]
            )
        ]

    left = [name for name in os.listdir("/dev/shm") if "dcomm" in name]
    return {**surroundings(), "memfd": again("0"), "forced": again("1"), "left": left}


if __name__ == "__main__":
    print(json.dumps({"death_and_mismatch": death_and_mismatch, "small_shm": small_shm}[sys.argv[1]]()))
