"""Measures whole training steps: DDP over gloo, DDP with dcomm's hooks, GradientSynchronizer, and no communication.

    python benchmarks/ddp_step.py --json results.json --plot results.png
    python benchmarks/ddp_step.py --workloads mlp --check-figures
    python benchmarks/ddp_step.py --variants buckets --check-figures    # bucket_bytes="auto" beside each fixed size
    python benchmarks/ddp_step.py --variants buckets --same-processes --check-figures    # all sizes in the same memory
    python benchmarks/ddp_step.py --variants auto --check-figures       # policy="auto" beside DDP over gloo

A step is zero_grad, forward, backward, the end of the exchange, and SGD; one thread per rank. In every round each
variant, in rank processes of its own, makes --steps steps in turn, each round in another order, and the state of the
cores is probed in between; of each variant only those rounds count in which it had the state seen most. A step takes as
long as its slowest rank; a figure is the median. "exposed" is the share of a step that is not there without
communication: (step - floor) / step, with DDP's no_sync() as the floor. All variants train from the same weights on the
same data; after the last step the weights must be equal on all ranks, bit for bit, and close to those of DDP over gloo:
1 is the distance to training without any exchange.

glibc returns the memory of large gradients to the kernel in every step unless told otherwise, and page faults are then
a large part of a step without communication. --malloc keep sets MALLOC_TRIM_THRESHOLD_ and MALLOC_MMAP_THRESHOLD_ so
that it keeps what it has: a lower floor for everybody.

With --same-processes one synchronizer takes the bucket sizes in turn, step by step. What a step takes besides its
exchange varies more than bucket sizes make it; so each step is divided by the mean of its pass, the six steps in a row
in which every size had its turn, and medians of that are compared, over all rounds in which the state did not change.

Exit status: 0; 1 wrong weights or a rank failed; 2 a figure of --check-figures was not reached.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from step_models import WORKLOADS
from step_ranks import RankError
from step_rounds import AUTO, FIXED, measure
from step_variants import FLOOR, GLOO, VARIANTS, VIEWS_GLOO

from dcomm.bench.machine import describe
from dcomm.bench.rounds import counted_rounds

# Of the MLP: how many times as fast as DDP over gloo, and which share of the step may be communication.
FIGURES = {"ddp + dcomm": (1.5, 0.15), "ddp views + dcomm": (1.5, 0.15), "synchronizer": (1.6, 0.08)}
# Named lists of variants, of which the first is compared with the best of the others: at most so much slower.
LISTS = {
    "buckets": [AUTO, *FIXED],
    "auto": ["ddp + dcomm auto", GLOO, "ddp views + dcomm auto", "ddp views + dcomm auto fp16", VIEWS_GLOO],
}
SLOWER_BUCKETS, SLOWER_POLICY = 1.03, 1.02
ENOUGH = 5  # rounds that count


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("-n", "--ranks", type=int, default=2, help="rank processes")
    add("--workloads", default="mlp,gpt,resnet50", help=f"by commas, of {', '.join(WORKLOADS)}")
    add("--variants", default=";".join(VARIANTS), help=f"by semicolons, or {' / '.join(LISTS)}")
    add("--rounds", type=int, default=ENOUGH, help="go on until so many count for every variant")
    add("--steps", type=int, default=5, help="of each variant in a round, after those of --warm")
    add("--warm", type=int, default=1, help="steps of a turn that do not count")
    add("--lives", type=int, default=1, help="start the processes anew so often: where memory lies is luck")
    add("--same-processes", action="store_true", help="of the list buckets: one synchronizer takes all sizes in turn")
    add("--malloc", choices=("default", "keep"), default="default", help="what glibc does with freed gradients")
    add("--max-seconds", type=float, default=240.0, help="for one workload: start no round that would end later")
    add("--json", type=Path, metavar="FILE", help="write everything here")
    add("--plot", type=Path, metavar="FILE", help="draw it")
    add("--check-figures", action="store_true", help="check the promised figures: of the MLP, or of the list")
    args = parser.parse_args(argv)
    args.list = args.variants if args.variants in LISTS else ""
    args.variants = LISTS.get(args.variants) or args.variants.split(";")
    if args.same_processes and args.list != "buckets":
        parser.error(f"--same-processes with --variants {args.list or 'of your own'}: it is for --variants buckets")
    return args


def summarise(found: dict[str, Any]) -> dict[str, Any]:
    """Medians over the steps of the rounds in the state seen most."""
    state, used = counted_rounds(list(found["states"].values()))
    rows = {}
    for (name, rounds), counted in zip(found["step_ms"].items(), used, strict=True):
        # One that never had that state is shown with all of its rounds, of which none is counted.
        steps = [ms for number in counted or range(len(rounds)) for ms in rounds[number]]
        rows[name] = {
            "rounds_counted": len(counted),
            "step_ms": statistics.median(steps),
            "least_ms": min(steps),
            "most_ms": max(steps),
        }
    for row in rows.values():
        if FLOOR in rows:
            row["exposed"] = 1 - rows[FLOOR]["step_ms"] / row["step_ms"]
        if GLOO in rows:
            row["over_gloo"] = rows[GLOO]["step_ms"] / row["step_ms"]
    if found.get("in_passes"):
        for name, ratio in of_pass(found["step_ms"], found["states"]).items():
            rows[name]["of_pass"] = ratio
    least, most = min(map(len, used)), max(map(len, used))
    text = f"{least if least == most else f'{least} to {most}'} of {max(map(len, found['states'].values()))} rounds"
    return {**found, "state": state, "rounds_counted": text, "rows": rows}


def of_pass(step_ms: dict[str, list[list[float]]], states: dict[str, list[str]]) -> dict[str, float]:
    """Each variant's step over the mean of all variants' steps of the same pass: the median over passes.

    Of all rounds in which the cores' state did not change, whatever it was: it was the same for all variants.
    """
    of_all = list(zip(*states.values(), strict=True))
    pure = [number for number, names in enumerate(of_all) if set(names) != {"mixed"}] or range(len(of_all))
    by_name = [[ms for number in pure for ms in rounds[number]] for rounds in step_ms.values()]
    means = [statistics.mean(of_one_pass) for of_one_pass in zip(*by_name, strict=True)]
    return {
        name: statistics.median(one / mean for one, mean in zip(ms, means, strict=True))
        for name, ms in zip(step_ms, by_name, strict=True)
    }


def check_figures(workloads: dict[str, Any]) -> list[dict[str, Any]]:
    rows = workloads.get("mlp", {}).get("rows", {})
    figures: list[dict[str, Any]] = []

    def add(text: str, measured: str, reached: bool) -> None:
        figures.append({"figure": f"MLP, {text}", "measured": measured, "reached": reached})

    for name, (ratio, share) in FIGURES.items():
        row = rows.get(name, {})
        if "over_gloo" not in row or "exposed" not in row:
            add(name, "not measured", False)
            continue
        text = f"{row['over_gloo']:.2f}x"
        if VIEWS_GLOO in rows:
            text += f" ({rows[VIEWS_GLOO]['step_ms'] / row['step_ms']:.2f}x {VIEWS_GLOO})"
        add(f"{name}: at least {ratio} times as fast as {GLOO}", text, row["over_gloo"] >= ratio)
        add(f"{name}: at most {share:.0%} of the step exposed", f"{row['exposed']:.1%}", row["exposed"] <= share)
    fewest = min((row["rounds_counted"] for row in rows.values()), default=0)
    add(f"at least {ENOUGH} rounds of every variant in one state", str(fewest), fewest >= ENOUGH)
    return figures


def check_list(name: str, workloads: dict[str, Any]) -> list[dict[str, Any]]:
    """Whether what chooses by itself is about as fast as the best that it could choose, or as what it replaces."""
    figures: list[dict[str, Any]] = []
    for workload, found in workloads.items():
        rows = found["rows"]
        if name == "buckets":
            pairs, most, what = [(AUTO, LISTS[name][1:])], SLOWER_BUCKETS, "the best of the fixed sizes"
        else:
            pairs = [(auto, [GLOO if "views" not in auto else VIEWS_GLOO]) for auto in LISTS[name] if "auto" in auto]
            most, what = SLOWER_POLICY, "DDP's default"
        for auto, others in pairs:
            measure_of = "of_pass" if "of_pass" in rows[auto] else "step_ms"
            best = min(others, key=lambda other: rows[other][measure_of])
            ratio = rows[auto][measure_of] / rows[best][measure_of]
            figures.append(
                {
                    "figure": f"{workload}, {auto}: at most {most - 1:.0%} slower than {what}",
                    "measured": f"{100 * (ratio - 1):+.1f}% ({best})",
                    "reached": ratio <= most,
                }
            )
        fewest = min(row["rounds_counted"] for row in rows.values())
        text = f"{workload}, at least {ENOUGH} rounds of every variant in one state"
        figures.append({"figure": text, "measured": str(fewest), "reached": fewest >= ENOUGH})
    return figures


def lines(report: dict[str, Any]) -> list[str]:
    said = [
        f"# {report['machine']['cpu']}, {report['machine']['cores']} CPUs, {report['date']}, {report['commit'][:12]}"
    ]
    said.append(f"# {report['command']}")
    for found in report["workloads"].values():
        said.append(f"\n{found['title']}: state {found['state']}, {found['rounds_counted']}")
        said.append(f"{'':42}{'step ms':>9}{'exposed':>9}{'vs gloo':>9}{'distance':>10}{'of pass':>9}")
        for name, row in found["rows"].items():
            weights = found["weights"].get(name, {})
            exposed = f"{row['exposed']:.1%}" if "exposed" in row else ""
            ratio = f"{row['over_gloo']:.2f}x" if "over_gloo" in row else ""
            distance = f"{weights['distance_from_gloo']:.1e}" if "distance_from_gloo" in weights else ""
            of_mean = f"{row['of_pass']:.3f}" if "of_pass" in row else ""
            said.append(f"{name:42}{row['step_ms']:9.1f}{exposed:>9}{ratio:>9}{distance:>10}{of_mean:>9}")
        if found.get("bucket_bytes", {}).get(AUTO):
            mib = ", ".join(str(size >> 20) for size in found["bucket_bytes"][AUTO])
            said.append(f"{AUTO} chose {mib} MiB, of each time that its processes started")
    for figure in report.get("figures", []):
        said.append(f"{'reached' if figure['reached'] else 'NOT REACHED'}: {figure['figure']}: {figure['measured']}")
    return said


def is_wrong(report: dict[str, Any]) -> list[str]:
    return [
        f"{workload}: {name}: {entry}"
        for workload, found in report["workloads"].items()
        for name, entry in found["weights"].items()
        if not entry["equal_on_all_ranks"] or not entry.get("close", True)
    ]


def write_plot(report: dict[str, Any], path: Path) -> None:
    """Bars of step times by variant, the floor as a line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = report["workloads"]
    figure = Figure(figsize=(6 * len(found), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, one in zip(figure.subplots(1, len(found), squeeze=False)[0], found.values(), strict=True):
        names = list(one["rows"])
        axis.barh(names[::-1], [one["rows"][name]["step_ms"] for name in names[::-1]])
        if FLOOR in names:
            axis.axvline(one["rows"][FLOOR]["step_ms"], color="black", linestyle="--", linewidth=1)
        axis.set(xlabel="step, ms (median)", title=one["title"])
    machine = report["machine"]
    figure.suptitle(f"{report['ranks']} ranks, {machine['cpu']}, {machine['cores']} CPUs, {report['date']}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(sys.argv[1:] if argv is None else argv)
    if args.malloc == "keep":
        os.environ.update(MALLOC_TRIM_THRESHOLD_=str(8 << 30), MALLOC_MMAP_THRESHOLD_=str(1 << 30))
    found = {}
    try:
        for workload in args.workloads.split(","):
            with tempfile.TemporaryDirectory(prefix="ddp-step-") as folder:
                found[workload] = measure(workload, args, folder)
    except RankError as error:
        print(error, file=sys.stderr)
        return 1
    command = shlex.join(["python", "benchmarks/ddp_step.py", *(sys.argv[1:] if argv is None else argv)])
    report = describe(command, {"torch": torch.__version__}, "")
    report |= {
        "ranks": args.ranks,
        "malloc": args.malloc,
        "workloads": {name: summarise(one) for name, one in found.items()},
    }
    if args.check_figures:
        found = report["workloads"]
        report["figures"] = check_list(args.list, found) if args.list else check_figures(found)
    print("\n".join(lines(report)))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if args.plot:
        write_plot(report, args.plot)
    wrong = is_wrong(report)
    for line in wrong:
        print(f"wrong weights: {line}", file=sys.stderr)
    if wrong:
        return 1
    return 2 if any(not figure["reached"] for figure in report.get("figures", [])) else 0


if __name__ == "__main__":
    sys.exit(main())
