"""Two processes that make and close communicator after communicator: what they hold must not grow.

python tests/reliability/many_lives.py 1000     prints JSON: descriptors, threads and bytes, early and at the end
"""

from __future__ import annotations

import gc
import json
import os
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
sys.path.append(str(Path(__file__).resolve().parents[1] / "support"))

import numpy as np
from killable_ranks import ForkedRanks, prepare

import dcomm

EARLY = 50  # by then every cache is warm
PAGE_BYTES = os.sysconf("SC_PAGESIZE")


def held() -> dict[str, int]:
    gc.collect()
    with open("/proc/self/statm") as file:
        resident_bytes = int(file.read().split()[1]) * PAGE_BYTES
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "bytes": resident_bytes,
    }


def live(lives: int, rank: int, say: Callable[[str], None]) -> None:
    """Every kind of end in turn, also after asynchronous work and of parts."""
    seen = []
    for life in range(lives):
        if life in (EARLY, lives - 1):
            seen.append(held())
        comm = dcomm.init(rank=rank, world_size=2, timeout=20)
        x = np.full(1000, rank + 1, np.float32)
        comm.all_reduce(x, async_op=life % 2 == 1)
        if life % 3 == 0:
            part = comm.split(0)
            assert part is not None
            part.all_reduce(x)
        if life % 4 == 0:
            array = comm.empty(1000)
            comm.all_reduce(array, algo="direct")
        comm.barrier()
        if life % 5 == 0:
            with comm:
                pass
        elif life % 5 != 1:  # else dropped without close()
            comm.close()
    say(json.dumps(seen))


def main() -> int:
    lives = int(sys.argv[1])
    prepare()
    job = secrets.token_hex(8)
    start = time.monotonic()
    with ForkedRanks(2, lambda rank, say: live(lives, rank, say), lambda _: {"DCOMM_JOB_ID": job}) as ranks:
        while not all(rank.ended for rank in ranks.ranks):
            for _ in ranks.news(time.monotonic() + 1):
                pass
        seen = [json.loads(rank.lines[-1]) for rank in ranks.ranks if rank.lines]
    print(json.dumps({"lives": lives, "seconds": round(time.monotonic() - start, 1), "ranks": seen}))
    return 0 if len(seen) == 2 else 1


if __name__ == "__main__":
    sys.exit(main())
