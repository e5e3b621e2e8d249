"""Measures all-reduces of large arrays that all ranks reach, where they lie and staged, hot and cold.

    python benchmarks/direct.py --json benchmarks/results/direct.json

The gradients of a model, 96 MB of float32, in buckets: "cold", every bucket after all of them have been written, as
GradientSynchronizer does it in finish(), and "hot", each as soon as it has been written, as it would be beside
backward. direct: the ranks reduce where the arrays lie (comm.empty); staged: two_shot through the window, on ordinary
memory. A time is the sum of the buckets' all-reduces on the slower rank. All in turn in each round; the state of the
cores is probed in between, and here every state has a row of its own: it decides which way is the faster one.

Exit status: 0; 1 wrong data, or a rank failed.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from dcomm.bench import worker
from dcomm.bench.machine import describe
from dcomm.bench.ranks import RankError, Ranks
from dcomm.bench.rounds import Turns

COUNT = 24 << 20
BUCKETS = (1 << 20, 4 << 20, 25 << 20)
ALGOS = {"direct": "direct", "staged": "two_shot"}
CASES = list(product(("hot", "cold"), BUCKETS, ALGOS))


class BucketsWorker(worker.Worker):
    """One rank: an array that all ranks reach, an ordinary one, and the time of reducing either by buckets."""

    def carry_out(self, do: str, say: Callable[[dict[str, Any]], None], **order: Any) -> dict[str, Any]:
        """The answer to one order; "buckets" times one pass."""
        return self._time(**order) if do == "buckets" else super().carry_out(do, say, **order)

    def _time(self, when: str, bucket_bytes: int, algo: str) -> dict[str, Any]:
        if not hasattr(self, "_arrays"):
            self._arrays = {"direct": self._comm.empty((COUNT,), np.float32), "staged": np.empty(COUNT, np.float32)}
        array = self._arrays[algo]
        length = bucket_bytes // array.itemsize
        parts = [array[first : first + length] for first in range(0, COUNT, length)]
        rank_value = self._comm.rank + 1.0
        elapsed = 0
        self._comm.barrier()
        if when == "cold":
            array.fill(rank_value)
            self._comm.barrier()
        for part in parts:
            if when == "hot":
                part.fill(rank_value)
            start = time.perf_counter_ns()
            self._comm.all_reduce(part, algo=ALGOS[algo])
            elapsed += time.perf_counter_ns() - start
        total = sum(range(1, self._comm.world_size + 1))
        return {"ms": elapsed / 1e6, "num_wrong": int(np.count_nonzero(array != total))}


def measure(ranks: Ranks, args: argparse.Namespace) -> dict[str, Any]:
    """Rounds of all cases: the states, the times, the wrong elements."""
    names = [f"{when} {bucket >> 20} MiB {algo}" for when, bucket, algo in CASES]
    ms: dict[str, list[float]] = {name: [] for name in names}
    num_wrong = 0
    begin = time.monotonic()
    turns = Turns(names)
    while True:
        start = time.monotonic()
        for name, (when, bucket_bytes, algo) in zip(names, CASES, strict=True):
            times = []
            with turns.turn(name):
                for _ in range(args.passes):
                    ranks.send({"do": "buckets", "when": when, "bucket_bytes": bucket_bytes, "algo": algo})
                    answers = ranks.receive()
                    times.append(max(answer["ms"] for answer in answers))
                    num_wrong += sum(answer["num_wrong"] for answer in answers)
            ms[name].append(round(statistics.median(times), 3))
        now = time.monotonic()
        if now - begin + (now - start) > args.max_seconds:
            return {"states": turns.states, "ms": ms, "num_wrong": num_wrong}


def summarise(found: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each case and state in which it was measured: the median over the rounds, and their number."""
    rows = []
    for (when, bucket_bytes, algo), (name, times) in zip(CASES, found["ms"].items(), strict=True):
        for state in ("near", "far", "smt", "unknown"):
            mine = [ms for ms, seen in zip(times, found["states"][name], strict=True) if seen == state]
            if mine:
                row = {"when": when, "bucket_bytes": bucket_bytes, "algo": algo, "state": state}
                rows.append(row | {"rounds": len(mine), "ms": round(statistics.median(mine), 3)})
    return rows


def main() -> int:
    """Be the parent, or, started by it, a rank."""
    if "--pipes" in sys.argv:
        return worker.main(BucketsWorker)
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("-n", "--ranks", type=int, default=2, help="rank processes")
    parser.add_argument("--passes", type=int, default=3, help="of each case in a round; their median counts")
    parser.add_argument("--max-seconds", type=float, default=120.0, help="start no round that would end later")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything here")
    args = parser.parse_args()
    try:
        with Ranks(args.ranks, program=[str(Path(__file__).resolve())]) as ranks:
            isa = ranks.receive()[0]["isa"]
            found = measure(ranks, args)
            ranks.leave()
    except RankError as error:
        print(f"FAILED: {error}")
        return 1
    command = f"python benchmarks/direct.py {shlex.join(sys.argv[1:])}".strip()
    report = describe(command, {}, isa) | {"ranks": args.ranks, "count": COUNT, **found, "rows": summarise(found)}
    for row in report["rows"]:
        bucket = f"{row['bucket_bytes'] >> 20} MiB"
        print(
            f"{row['when']:5} {bucket:>7} {row['algo']:7} {row['state']:5} {row['ms']:8.2f} ms ({row['rounds']} rounds)"
        )
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if report["num_wrong"]:
        print(f"FAILED: {report['num_wrong']} wrong elements")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
