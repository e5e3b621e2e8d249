"""Measures every all-reduce algorithm on this host and writes the table that "auto" goes by.

    python benchmarks/tune.py --json benchmarks/results/tuning.json     # measure, then write the table
    python benchmarks/tune.py --from benchmarks/results/tuning.json     # only write csrc/comm/tuning_table.inc
    python benchmarks/tune.py --from benchmarks/results/tuning.json --check

Called from C, in place, every size from 8 B to 4 MiB in powers of two, all algorithms in turn in each round. A group's
rows are the cheapest sequence of algorithms over the sizes: the sum of log(time / best time), plus a price for each
change of algorithm and for each size at which the result would not be in canonical order. So an algorithm must be
clearly faster, and not at one size only. The installed dcomm is built anew from the table by the next `pip install`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "csrc" / "comm" / "tuning_table.inc"
CPP_NAMES = {"one_shot": "kOneShot", "two_shot": "kTwoShot", "ring": "kRing", "tree": "kTree"}
CANONICAL = ("one_shot", "two_shot")
MAX_STEPS = 4  # csrc/comm/selector.h
CHANGE_PRICE = 0.1
OTHER_ORDER_PRICE = 0.1


def measure(ranks: list[int], rounds: int, max_seconds: float) -> dict[str, Any]:
    """The report of each group, with one figure per size and algorithm."""
    from dcomm.bench.options import Options
    from dcomm.bench.run import run

    command = f"python benchmarks/tune.py {shlex.join(sys.argv[1:])}"
    found: dict[str, Any] = {}
    for n in ranks:
        options = Options(
            ranks=n,
            max_bytes=4 << 20,
            algos=tuple(CPP_NAMES),
            levels=("c",),
            in_place_only=True,
            buffers=1,
            rounds=rounds,
            max_seconds=max_seconds,
        )
        report = run(options, command, lambda _share, _text: None)
        wrong = sum(row["num_wrong"] for row in report["rows"])
        if wrong:
            raise SystemExit(f"{n} ranks: {wrong} wrong elements")
        found |= {key: report[key] for key in ("machine", "versions", "date", "command", "commit")}
        times: dict[str, dict[str, float]] = {}
        for row in report["rows"]:
            times.setdefault(str(row["nbytes"]), {})[row["algo"]] = row["p50_us"]
        oversubscribed = n > len(os.sched_getaffinity(0))
        group = {"ranks": n, "oversubscribed": oversubscribed, "state": report["state"], "p50_us": times}
        found.setdefault("groups", []).append(group)
        print(f"{n} ranks: {report['state']}", file=sys.stderr, flush=True)
    return found


def steps(times: dict[str, dict[str, float]]) -> list[tuple[int | None, str]]:
    """The cheapest sequence: (largest bytes or None, algorithm), by dynamic programming over the sizes."""
    sizes = sorted(map(int, times))
    paths: dict[str, tuple[float, list[str]]] = {}
    for nbytes in sizes:
        here = times[str(nbytes)]
        best = min(here.values())
        following: dict[str, tuple[float, list[str]]] = {}
        for algo, us in here.items():
            own = math.log(us / best) + (0.0 if algo in CANONICAL else OTHER_ORDER_PRICE)
            before = [
                (cost + (0.0 if last == algo else CHANGE_PRICE), path)
                for last, (cost, path) in paths.items()
                if len({*path, algo}) <= MAX_STEPS
            ]
            cost, path = min(before, default=(0.0, []))
            following[algo] = (cost + own, [*path, algo])
        paths = following
    chosen = min(paths.values())[1]
    found: list[tuple[int | None, str]] = []
    for index, algo in enumerate(chosen):
        if index + 1 == len(chosen):
            found.append((None, algo))
        elif chosen[index + 1] != algo:
            found.append((sizes[index], algo))
    return found


def table_text(found: dict[str, Any]) -> str:
    machine = found["machine"]
    lines = [
        "// clang-format off",
        "// Written by benchmarks/tune.py from benchmarks/results/tuning.json; do not edit.",
        f"// {machine['cpu']}, {machine['cores']} CPUs, Linux {machine['kernel']}, {machine['isa']} kernels;",
        f"// {found['date']}, commit {found['commit'][:20]}",
        f"// {found['command']}",
    ]
    for group in found["groups"]:
        for most, algo in steps(group["p50_us"]):
            bound = "UINT64_MAX" if most is None else str(most)
            shared = "true" if group["oversubscribed"] else "false"
            lines.append(f"{{{group['ranks']}, {shared}, {bound}, Algo::{CPP_NAMES[algo]}}},  // {group['state']}")
    return "\n".join([*lines, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-n", "--ranks", default="2,3,4,8", help="group sizes, by commas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-seconds", type=float, default=60.0, help="per group")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the measurements here")
    parser.add_argument("--from", dest="source", type=Path, metavar="FILE", help="measure nothing, read them from here")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the table is another one")
    args = parser.parse_args()
    if args.source is not None:
        found = json.loads(args.source.read_text(encoding="utf-8"))
    else:
        found = measure([int(n) for n in args.ranks.split(",")], args.rounds, args.max_seconds)
        if args.json is not None:
            args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    text = table_text(found)
    if args.check:
        if TABLE.read_text(encoding="utf-8") == text:
            return 0
        print("csrc/comm/tuning_table.inc is not what the measurements say; run benchmarks/tune.py --from")
        return 1
    TABLE.write_text(text, encoding="utf-8")
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
