"""Jobs of test_meeting_*.py: each a launcher process that forks its ranks, many times over."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from forked_ranks import run_forked

import dcomm


def one_rank(rank: int, world_size: int, job: int, start_at: float, linger_s: float, timeout: float) -> dict[str, Any]:
    """Joins, checks who else has, and stays so long that a rank of the other job cannot come afterwards."""
    time.sleep(max(0.0, start_at - time.monotonic()))
    start = time.monotonic()
    try:
        comm = dcomm.init(rank=rank, world_size=world_size, timeout=timeout)
    except (dcomm.DcommError, ValueError) as error:
        seconds = time.monotonic() - start
        return {"error": type(error).__name__, "text": str(error), "seconds": seconds}
    try:
        jobs = comm.all_gather(np.array([job]))
        total = comm.all_reduce(np.full(1000, float(rank)))
        assert (total == world_size * (world_size - 1) / 2).all()
        time.sleep(linger_s)
        comm.close()
    except dcomm.DcommError as error:
        return {"error": type(error).__name__, "text": f"after init: {error}", "seconds": time.monotonic() - start}
    return {"error": None, "jobs": sorted({int(other) for other in jobs})}


def launch_again_and_again(
    rank: int, world_size: int, num_ranks: int, times: int, folder: str, keys: list[str], timeout: float
) -> list[list[dict[str, Any]]]:
    """`rank` is the job's number: `times` times its ranks start at the moment at which those of the other job do."""
    os.environ["DCOMM_JOB_ID"] = keys[rank]
    results = []
    for number in range(times):
        # Both say when they could start, on the clock that all processes share; the later one holds.
        partial_path = Path(folder, f"{number}.{rank}.partial")
        partial_path.write_text(str(time.monotonic() + 0.1))
        partial_path.rename(partial_path.with_suffix(".start"))
        paths = [Path(folder, f"{number}.{job}.start") for job in range(world_size)]
        deadline = time.monotonic() + 40
        while not all(path.exists() for path in paths):
            assert time.monotonic() < deadline, "the other job has ended"
            time.sleep(0.0005)
        start_at = max(float(path.read_text()) for path in paths)
        bodies = [partial(one_rank, peer, num_ranks, rank, start_at, 0.2, timeout) for peer in range(num_ranks)]
        results.append(run_forked(bodies))
    return results
