"""Measures all_reduce on this host, beside gloo, with every element of every result checked.

    python benchmarks/all_reduce.py -n 2 --compare gloo --wire none,float16 --json benchmarks/results/all_reduce_2.json
    python benchmarks/all_reduce.py -n 2 --check-figures

It starts its own ranks. A batch is 16 calls in place one after the other (4 from 2 MiB up); before each batch the
buffers are refilled, outside the clock, with data whose sums are exact, and afterwards all of it is compared. A
time is that of the slowest rank. Everything is measured in turn in every round, and each round is stamped with the
state of the cores (core_state.py) and its own 8-byte time. p50 is the median over the rounds in the state that was
seen most, of each round's median batch; p90 is over all batches of these rounds. gloo counts with its best round,
with 1 or 2 threads, whichever is faster.

Exit status: 0; 1 wrong data or a rank failed; 2 a figure of --check-figures was not reached.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy
from core_state import CoreState, probe

import dcomm
from dcomm.__main__ import bandwidths, cpu_model, kernel_version, nbytes_text
from dcomm.demo import Measured, RankError, Ranks, exact_calls

ROOT = Path(__file__).resolve().parents[1]
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
GLOO_THREADS = (1, 2)
LARGE = 2 << 20
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def parse_nbytes(text: str) -> int:
    plain = text.upper().removesuffix("B").removesuffix("I")
    factor = UNITS.get(plain[-1:], 1)
    value = int(plain[:-1] if factor > 1 else plain) * factor
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected at least one byte")
    return value


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("-n", "--ranks", type=int, default=2, help="rank processes")
    add("-b", "--minbytes", type=parse_nbytes, default="8", help="smallest message")
    add("-e", "--maxbytes", type=parse_nbytes, default="128M", help="largest message")
    add("-f", "--stepfactor", type=int, default=8, help="factor between messages")
    add("-d", "--dtype", choices=ITEM_BYTES, default="float32")
    add("-w", "--wire", default="none", help="wire dtypes, by commas: none, float16, bfloat16")
    add("-a", "--algo", default="auto", help="algorithms, by commas: auto, ring, two_shot")
    add("--compare", choices=("none", "gloo"), default="none", help="measure a peer in the same rounds")
    add("--rounds", type=int, default=5, help="rounds, all cases in turn in each")
    add("--max-seconds", type=float, default=120.0, help="start no round that would end later")
    add("--json", type=Path, metavar="FILE", help="write everything here")
    add("--check-figures", action="store_true", help="check the promised figures; implies gloo, both wires")
    args = parser.parse_args(argv)
    if args.check_figures:
        args.compare, args.wire, args.algo, args.dtype = "gloo", "none,float16", "auto", "float32"
    args.wire = [None if wire in ("none", args.dtype) else wire for wire in args.wire.split(",")]
    args.algo = args.algo.split(",")
    if set(args.wire) - {None, "float16", "bfloat16"} or set(args.algo) - {"auto", "ring", "two_shot"}:
        parser.error("unknown --wire or --algo")
    if args.dtype != "float32" and args.wire != [None]:
        parser.error("--wire is for float32")
    if args.compare == "gloo" and importlib.util.find_spec("torch") is None:
        parser.error("--compare gloo needs torch")
    if args.ranks < 2 or args.stepfactor < 2 or args.rounds < 1:
        parser.error("expected -n >= 2, -f >= 2, --rounds >= 1")
    return args


def message_sizes(args: argparse.Namespace) -> list[int]:
    found = [max(args.minbytes, ITEM_BYTES[args.dtype])]
    while found[-1] * args.stepfactor <= args.maxbytes:
        found.append(found[-1] * args.stepfactor)
    return found


def plan(args: argparse.Namespace) -> list[dict[str, Any]]:
    """All cases of a round, in turn: dcomm's variants, then the peer's, size by size."""
    cases = []
    for nbytes in message_sizes(args):
        hows = [{"lib": "dcomm", "algo": algo, "wire": wire} for algo in args.algo for wire in args.wire]
        if args.compare == "gloo":
            hows += [{"lib": "gloo", "threads": threads} for threads in GLOO_THREADS]
        for how in hows:
            carrier = how.get("wire") or args.dtype
            calls = exact_calls(args.ranks, 16 if nbytes < LARGE else 4, carrier)
            batches = 3 if how["lib"] == "gloo" or nbytes >= LARGE else 25
            count = nbytes // ITEM_BYTES[args.dtype]
            cases.append({"count": count, "calls": calls, "batches": batches, "dtype": args.dtype, **how})
    return cases


def measure(ranks: Ranks, args: argparse.Namespace, cases: list[dict[str, Any]]) -> tuple[list[Any], list[Any]]:
    """The rounds' stamps, and for each case one Measured per round."""
    stamps: list[dict[str, Any]] = []
    results: list[list[Measured]] = [[] for _ in cases]
    start = time.monotonic()

    def fingerprint() -> tuple[CoreState, float]:
        state, eight = probe(), ranks.measure(2, exact_calls(args.ranks, 16, "float32"), 25)
        if eight.num_wrong:
            raise RankError(f"{eight.num_wrong} wrong elements in the 8-byte all-reduce")
        return state, statistics.median(eight.us)

    state, eight = fingerprint()
    for number in range(args.rounds):
        begun = time.monotonic()
        for case, found in zip(cases, results, strict=True):
            found.append(ranks.measure(**case))
        state_after, eight_after = fingerprint()
        same = state.name == state_after.name
        stamps.append(
            {
                "state": state.name if same else "mixed",
                "flag_ns": [state.flag_ns, state_after.flag_ns],
                "read_gbps": [state.read_gbps, state_after.read_gbps],
                "eight_byte_us": [round(eight, 3), round(eight_after, 3)],
            }
        )
        state, eight = state_after, eight_after
        now = time.monotonic()
        print(f"round {number + 1}: {stamps[-1]['state']}, {now - begun:.0f} s", file=sys.stderr, flush=True)
        if now - start + (now - begun) > args.max_seconds:
            break
    return stamps, results


def chosen_rounds(stamps: list[dict[str, Any]]) -> tuple[str, list[int]]:
    """The state seen most and its rounds; mixed ones count only if there are no others."""
    pure = [stamp["state"] for stamp in stamps if stamp["state"] != "mixed"]
    name = Counter(pure or ["mixed"]).most_common(1)[0][0]
    return name, [number for number, stamp in enumerate(stamps) if stamp["state"] == name]


def percentile(values: list[float], share: float) -> float:
    return float(numpy.percentile(values, share))


def summarise(args: argparse.Namespace, cases: list[Any], results: list[Any], rounds: list[int]) -> list[Any]:
    """One row per case, with the peer's favourable figure and the ratio to it."""
    rows = []
    for case, found in zip(cases, results, strict=True):
        medians = [statistics.median(measured.us) for measured in found]
        p50 = statistics.median(medians[number] for number in rounds)
        batches = [us for number in rounds for us in found[number].us]
        nbytes = case["count"] * ITEM_BYTES[args.dtype]
        algbw, busbw = bandwidths(nbytes, p50, args.ranks)
        row = {"nbytes": nbytes, "redop": "sum", "root": -1, **case, "p50_us": p50, "p90_us": percentile(batches, 90)}
        row |= {"best_round_us": min(medians), "rounds_us": medians, "algbw_gbps": algbw, "busbw_gbps": busbw}
        row["num_wrong"] = sum(measured.num_wrong for measured in found)
        rows.append({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
    for row in rows:
        peers = [peer for peer in rows if peer["lib"] == "gloo" and peer["nbytes"] == row["nbytes"]]
        if row["lib"] == "dcomm" and peers:
            best = min(peers, key=lambda peer: peer["best_round_us"])
            row |= {"gloo_us": best["best_round_us"], "gloo_threads": best["threads"]}
            row["ratio"] = round(best["best_round_us"] / row["p50_us"], 2)
    return rows


def check_figures(num_ranks: int, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each promised figure with what was measured."""
    found: list[dict[str, Any]] = []
    plain = {row["nbytes"]: row for row in rows if row["lib"] == "dcomm" and row["wire"] is None}
    half = {row["nbytes"]: row for row in rows if row["lib"] == "dcomm" and row["wire"] == "float16"}

    def figure(text: str, measured: str, reached: bool) -> None:
        found.append({"figure": text, "measured": measured, "reached": reached})

    if num_ranks == 2:
        for nbytes, least in ((32 << 10, 50), (256 << 10, 20), (2 << 20, 10), (16 << 20, 4), (128 << 20, 4)):
            ratio = plain[nbytes]["ratio"] if nbytes in plain else 0.0
            figure(f"{nbytes_text(nbytes)}: at least {least} times as fast as gloo", f"{ratio:.1f}x", ratio >= least)
        eight = plain[8]["p50_us"] if 8 in plain else float("inf")
        figure("8 B from Python: p50 at most 2 us", f"{eight:.2f} us", eight <= 2)
        for nbytes in sorted(size for size in plain if size >= 256 << 10):
            full, wired = plain[nbytes]["p50_us"], half[nbytes]["p50_us"]
            measured = f"{wired:.1f} against {full:.1f} us"
            figure(f"{nbytes_text(nbytes)}: float16 wire faster than none", measured, wired < full)
        return found
    for nbytes, row in sorted(plain.items()):
        if nbytes <= 256 << 10:
            measured = f"p50 {row['p50_us']:.1f}, p90 {row['p90_us']:.1f} us"
            calm = row["p50_us"] < 200 and row["p90_us"] < 1000
            figure(f"{nbytes_text(nbytes)}: no stalls (p50 < 200 us, p90 < 1 ms)", measured, calm)
        figure(f"{nbytes_text(nbytes)}: faster than gloo", f"{row['ratio']:.1f}x", row["ratio"] > 1)
    return found


def commit() -> str:
    def git(*command: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *command], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    try:
        head = git("rev-parse", "HEAD")
        sources = ("csrc", "dcomm", "CMakeLists.txt")
        return head + ("+changes" if head and git("status", "--porcelain", "--", *sources) else "") or "unknown"
    except OSError:  # no git
        return "unknown"


def describe(argv: list[str], versions: dict[str, str], isa: str) -> dict[str, Any]:
    return {
        "machine": {
            "cpu": cpu_model(),
            "cores": len(os.sched_getaffinity(0)),
            "kernel": kernel_version(),
            "isa": isa,
        },
        "versions": {"dcomm": dcomm.__version__, "python": platform.python_version(), **versions},
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": f"python benchmarks/all_reduce.py {shlex.join(argv)}".strip(),
        "commit": commit(),
    }


def print_report(report: dict[str, Any]) -> None:
    machine, versions = report["machine"], ", ".join(f"{name} {v}" for name, v in report["versions"].items())
    print(
        f"# {machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}, {machine['isa']} kernels; {versions}"
    )
    print(f"# {report['date']}, commit {report['commit'][:20]}: {report['command']}")
    for number, stamp in enumerate(report["rounds"], 1):
        flag, eight = (" -> ".join(f"{value:g}" for value in stamp[key]) for key in ("flag_ns", "eight_byte_us"))
        print(f"# round {number}: {stamp['state']}, flag round trip {flag} ns, 8 B in {eight} us")
    used = ", ".join(str(number + 1) for number in report["rounds_used"])
    print(f"# {report['ranks']} ranks, in place; figures: rounds {used}, state {report['state']}; GB = 1e9 bytes")
    heads = ("size", "count", "type", "wire", "algo", "redop", "root", "time us", "algbw", "busbw", "#wrong", "p90 us")
    line = "{:>10}{:>10} {:<9}{:<9}{:<9}{:<6}{:>4}{:>11}{:>8}{:>8}{:>7}{:>11}{:>11}{:>9}"
    print(line.format(*heads, "gloo us", "ratio"))
    for row in report["rows"]:
        name = row["algo"] if row["lib"] == "dcomm" else f"gloo-{row['threads']}t"
        peer = (f"{row['gloo_us']:.1f}", f"{row['ratio']:.1f}x") if "ratio" in row else ("", "")
        cells = [row["nbytes"], row["count"], row["dtype"], row.get("wire") or "-", name, "sum", -1]
        cells += [f"{row['p50_us']:.2f}", f"{row['algbw_gbps']:.2f}", f"{row['busbw_gbps']:.2f}"]
        print(line.format(*cells, row["num_wrong"], f"{row['p90_us']:.2f}", *peer))
    for figure in report.get("figures", []):
        print(f"{'reached' if figure['reached'] else 'NOT REACHED'}: {figure['figure']}: {figure['measured']}")


def run(args: argparse.Namespace, argv: list[str]) -> dict[str, Any]:
    cases = plan(args)
    versions = {"numpy": numpy.__version__}
    with Ranks(args.ranks, timeout_s=300) as ranks, tempfile.TemporaryDirectory() as folder:
        isa = ranks.receive()[0]["isa"]
        if args.compare == "gloo":
            ranks.send({"do": "gloo", "store": str(Path(folder) / "store"), "threads": GLOO_THREADS})
            versions["torch"] = ranks.receive()[0]["torch"]
        warm = ranks.measure(max(case["count"] for case in cases), 1, 1, dtype=args.dtype)  # touches the buffers
        if warm.num_wrong:
            raise RankError(f"{warm.num_wrong} wrong elements in the largest all-reduce")
        stamps, results = measure(ranks, args, cases)
        codes = ranks.leave()
    if any(codes):
        raise RankError(f"exit codes of the ranks: {codes}")
    state, rounds = chosen_rounds(stamps)
    report = describe(argv, versions, isa) | {"ranks": args.ranks, "state": state, "rounds_used": rounds}
    report |= {"rounds": stamps, "rows": summarise(args, cases, results, rounds)}
    if args.check_figures:
        report["figures"] = check_figures(args.ranks, report["rows"])
    return report


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    args = parse_args(arguments)
    try:
        report = run(args, arguments)
    except RankError as error:
        print(f"FAILED: {error}")
        return 1
    print_report(report)
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if len(report["rounds_used"]) < 5:
        print(f"# only {len(report['rounds_used'])} rounds in one state: too few to claim anything")
    num_wrong = sum(row["num_wrong"] for row in report["rows"])
    if num_wrong:
        print(f"FAILED: {num_wrong} wrong elements")
        return 1
    return 0 if all(figure["reached"] for figure in report.get("figures", [])) else 2


if __name__ == "__main__":
    sys.exit(main())
