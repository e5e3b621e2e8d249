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

Exit status: 0; 1 wrong weights or a rank failed; 2 a figure of --check-figures was not reached.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from step_models import WORKLOADS
from step_variants import BUCKET_SIZES, FLOOR, GLOO, VARIANTS, VIEWS_GLOO, Trainer

from dcomm.bench.machine import describe
from dcomm.bench.rounds import Turns, counted_rounds

# Of the MLP: how many times as fast as DDP over gloo, and which share of the step may be communication.
FIGURES = {"ddp + dcomm": (1.5, 0.15), "ddp views + dcomm": (1.5, 0.15), "synchronizer": (1.6, 0.08)}
# Named lists of variants, of which the first is compared with the best of the others: at most so much slower.
AUTO = "synchronizer"
FIXED = {f"{AUTO} {size} MiB": size << 20 for size in BUCKET_SIZES}
LISTS = {
    "buckets": [AUTO, *FIXED],
    "auto": ["ddp + dcomm auto", GLOO, "ddp views + dcomm auto", "ddp views + dcomm auto fp16", VIEWS_GLOO],
}
SLOWER_BUCKETS, SLOWER_POLICY = 1.03, 1.02
CLOSE = {"fp16": 2e-2, "": 1e-3}  # distance of the weights: sums in another order, or with a half wire
WARM_STEPS = 4  # DDP and the synchronizer settle within the first steps
ENOUGH = 5  # rounds that count
ANSWER_S = 120


class RankError(Exception):
    """A rank failed."""


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


class Group:
    """One variant: rank processes of its own, which do nothing while another variant is measured.

    A variant that keeps its gradients in place and one that allocates them anew in every step leave the allocator in
    different states; in one process they would measure each other.
    """

    def __init__(self, name: str, workload: str, ranks: int, folder: str) -> None:
        self.name = name
        context = mp.get_context("spawn")
        self.pipes = []
        self.processes = []
        for rank in range(ranks):
            mine, theirs = context.Pipe()
            process = context.Process(target=serve, args=(rank, ranks, name, workload, folder, theirs), daemon=True)
            process.start()
            theirs.close()  # so that the end of a rank ends the wait for its answer
            self.pipes.append(mine)
            self.processes.append(process)

    def ask(self, *order: Any) -> list[Any]:
        """Give all ranks an order; their answers.

        Raises:
            RankError: A rank failed or is silent.
        """
        for pipe in self.pipes:
            pipe.send(order)
        answers = []
        for rank, pipe in enumerate(self.pipes):
            try:
                answer = pipe.recv() if pipe.poll(ANSWER_S) else RankError("no answer in time")
            except EOFError:
                answer = RankError("it ended")
            if isinstance(answer, Exception):
                raise RankError(f"{self.name}: rank {rank}: {answer}")
            answers.append(answer)
        return answers

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.close()  # the ranks end by themselves, and are ended if they do not
        for process in self.processes:
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join(10)


def serve(rank: int, ranks: int, name: str, workload: str, folder: str, pipe: Any) -> None:
    """One rank of one variant: carries out orders until the parent closes the pipe."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = f"file://{folder}/{VARIANTS.index(name)}"
    dist.init_process_group("gloo", store, rank=rank, world_size=ranks, timeout=timedelta(seconds=60))
    trainer = Trainer(name, WORKLOADS[workload])
    with contextlib.suppress(EOFError, ConnectionResetError):
        while True:
            order, *arguments = pipe.recv()
            try:
                pipe.send(ORDERS[order](trainer, *arguments))
            except Exception as error:
                pipe.send(RankError(f"{type(error).__name__}: {error}"))
    trainer.close()
    dist.destroy_process_group()


def timed_steps(trainer: Trainer, steps: int, warm: int) -> list[float]:
    """Milliseconds of each step on this rank, after some that do not count."""
    for _ in range(warm):
        trainer.step()
    dist.barrier()
    found = []
    for _ in range(steps):
        start = time.perf_counter()
        trainer.step()
        found.append(1e3 * (time.perf_counter() - start))
    return found


def leave_weights(trainer: Trainer, path: str) -> str:
    """The SHA-256 of all weights; rank 0 leaves them at `path`, too."""
    weights = np.concatenate([parameter.detach().numpy().ravel() for parameter in trainer.model.parameters()])
    if dist.get_rank() == 0:
        np.save(path, weights)
    return hashlib.sha256(weights.tobytes()).hexdigest()


def bucket_bytes(trainer: Trainer) -> int | None:
    """Of a synchronizer."""
    return None if trainer.sync is None else trainer.sync.bucket_bytes


def use_bucket_bytes(trainer: Trainer, size: int) -> None:
    """From the next step on, in place of what "auto" has chosen."""
    assert trainer.sync is not None
    trainer.sync.load_state_dict({**trainer.sync.state_dict(), "bucket_bytes": size})
    if trainer.sync.bucket_bytes != size:
        raise RankError(f"buckets are {trainer.sync.bucket_bytes} bytes, not {size}")


ORDERS: dict[str, Callable[..., Any]] = {
    "settle": Trainer.settle,
    "bucket_bytes": bucket_bytes,
    "use_bucket_bytes": use_bucket_bytes,
    "steps": timed_steps,
    "weights": leave_weights,
}


def measure(workload: str, args: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Rounds in which all variants take turns; the processes of all variants start anew `args.lives` times."""
    names = args.variants
    times: dict[str, list[list[float]]] = {name: [] for name in names}
    sizes: dict[str, list[int | None]] = {name: [] for name in names}
    turns = Turns(names)
    begin = time.monotonic()
    for life in range(args.lives):
        share = (life + 1) / args.lives
        own_folder = tempfile.mkdtemp(dir=folder)
        with contextlib.ExitStack() as stack:
            groups = {}
            # Who starts first waits longest for its first turn; the kernel may have taken some of its memory by then.
            for name in [AUTO] if args.same_processes else names[life % len(names) :] + names[: life % len(names)]:
                groups[name] = Group(name, workload, args.ranks, own_folder)
                stack.callback(groups[name].close)
                groups[name].ask("settle", WARM_STEPS)
                sizes[name].append(groups[name].ask("bucket_bytes")[0])
            while True:
                round_begin = time.monotonic()
                first = len(times[names[0]]) % len(names)
                for name in names[first:] + names[:first]:
                    if args.same_processes:
                        groups[AUTO].ask("use_bucket_bytes", FIXED.get(name, sizes[AUTO][-1]))
                    with turns.turn(name):
                        by_rank = groups[AUTO if args.same_processes else name].ask("steps", args.steps, args.warm)
                    times[name].append([round(max(ms), 3) for ms in zip(*by_rank, strict=True)])
                now = time.monotonic()
                seen = Counter(states[-1] for states in turns.states.values())
                text = f"round {len(times[names[0]])}, {dict(seen)}, {turns.num_counted} count"
                print(f"{workload}: {text}", file=sys.stderr, flush=True)
                is_late = now - begin + (now - round_begin) > args.max_seconds * share
                if turns.num_counted >= args.rounds * share or is_late:
                    break
            weights = compare_weights(groups, own_folder)
    return {
        "title": WORKLOADS[workload].title,
        "states": turns.states,
        "step_ms": times,
        "bucket_bytes": {name: chosen for name, chosen in sizes.items() if any(chosen)},  # in each life
        "weights": weights,
    }


def compare_weights(groups: dict[str, Group], folder: str) -> dict[str, Any]:
    """For each variant: whether all ranks have the same bits, and how far they are from DDP over gloo.

    The distance is in units of what training changed; all variants made the same number of steps.
    """
    found: dict[str, Any] = {}
    flat = {}
    for name, group in groups.items():
        path = f"{folder}/weights.npy"
        digests = group.ask("weights", path)
        flat[name] = np.load(path)
        if name != FLOOR:
            found[name] = {"equal_on_all_ranks": len(set(digests)) == 1}
    if GLOO in flat and FLOOR in flat:
        # The floor's weights are those of rank 0 trained alone: as far away as what exchanging gradients changes.
        scale = float(np.linalg.norm(flat[FLOOR] - flat[GLOO]))
        for name, entry in found.items():
            entry["distance_from_gloo"] = float(np.linalg.norm(flat[name] - flat[GLOO])) / scale
            entry["close"] = entry["distance_from_gloo"] < CLOSE["fp16" if "fp16" in name else ""]
    return found


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
    least, most = min(map(len, used)), max(map(len, used))
    text = f"{least if least == most else f'{least} to {most}'} of {max(map(len, found['states'].values()))} rounds"
    return {**found, "state": state, "rounds_counted": text, "rows": rows}


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
            best = min(others, key=lambda other: rows[other]["step_ms"])
            ratio = rows[auto]["step_ms"] / rows[best]["step_ms"]
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
        said.append(f"{'':42}{'step ms':>9}{'exposed':>9}{'vs gloo':>9}{'distance':>10}")
        for name, row in found["rows"].items():
            weights = found["weights"].get(name, {})
            exposed = f"{row['exposed']:.1%}" if "exposed" in row else ""
            ratio = f"{row['over_gloo']:.2f}x" if "over_gloo" in row else ""
            distance = f"{weights['distance_from_gloo']:.1e}" if "distance_from_gloo" in weights else ""
            said.append(f"{name:42}{row['step_ms']:9.1f}{exposed:>9}{ratio:>9}{distance:>10}")
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
