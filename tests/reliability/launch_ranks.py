"""Many launches of rank processes without an interpreter's start each: forked from this process, which never joins.

launch_ranks.py TASK: TASK is the JSON of test_same_bits.py; what the launches computed comes out as JSON lines.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sys
import traceback
from typing import Any

import numpy as np

import dcomm


def values(rank: int, count: int) -> Any:
    """Whose sum depends on the order of summation."""
    rng = np.random.default_rng([count, rank])
    return (rng.standard_normal(count) * 10.0 ** rng.integers(-20, 20, count)).astype(np.float32)


def sha(x: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(x)).hexdigest()


def of_algorithms(comm: dcomm.Communicator, algos: list[str], counts: list[int]) -> dict[str, str]:
    found = {}
    for count in counts:
        shared = comm.empty((count,), "float32")
        for algo in algos:
            x = shared if algo == "direct" else np.empty(count, np.float32)
            x[...] = values(comm.rank, count)
            comm.all_reduce(x, algo=algo)
            found[f"{algo} of {count}"] = sha(x)
    return found


def of_splits(comm: dcomm.Communicator, count: int, num_splits: int) -> dict[str, str]:
    found = {}
    for wire in (None, "float16"):
        for seed in range(num_splits + 1):  # 0: whole
            rng = np.random.default_rng(seed)
            cuts = sorted(rng.integers(0, count + 1, seed and int(rng.integers(1, 9))).tolist())
            x = np.clip(values(comm.rank, count), -1e3, 1e3)
            for begin, end in zip([0, *cuts], [*cuts, count], strict=True):
                comm.all_reduce(x[begin:end], "avg", wire_dtype=wire)
            found[f"wire {wire}, split {seed}"] = sha(x)
    return found


def pin(rank: int, how: str) -> None:
    """how: free, together (all on one CPU), in turn, reversed."""
    cpus = sorted(os.sched_getaffinity(0))
    if how == "together":
        os.sched_setaffinity(0, cpus[:1])
    elif how == "in turn":
        os.sched_setaffinity(0, [cpus[rank % len(cpus)]])
    elif how == "reversed":
        os.sched_setaffinity(0, [cpus[-1 - rank % len(cpus)]])


def play(rank: int, task: dict[str, Any], how: str) -> dict[str, str]:
    pin(rank, how)
    with dcomm.init(
        rank=rank, world_size=task["world_size"], timeout=60, deterministic=task.get("deterministic")
    ) as comm:
        if "algos" in task:
            return of_algorithms(comm, task["algos"], task["counts"])
        return of_splits(comm, task["count"], task["num_splits"])


def launch(task: dict[str, Any], how: str) -> list[dict[str, str]]:
    """What each rank of one launch found."""
    os.environ["DCOMM_JOB_ID"] = secrets.token_hex(8)
    children = []
    for rank in range(task["world_size"]):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.close(read)
                with os.fdopen(write, "w") as stream:
                    json.dump(play(rank, task, how), stream)
                status = 0
            except BaseException:
                traceback.print_exc()
            os._exit(status)
        os.close(write)
        children.append((pid, read))
    found = []
    for pid, read in children:
        with os.fdopen(read) as stream:
            text = stream.read()
        if os.waitpid(pid, 0)[1] != 0:
            raise SystemExit(f"a rank of {task} failed, see above")
        found.append(json.loads(text))
    return found


def main() -> None:
    task = json.loads(sys.argv[1])
    for how in task["launches"]:
        print(json.dumps({"how": how, "ranks": launch(task, how)}), flush=True)


if __name__ == "__main__":
    main()
