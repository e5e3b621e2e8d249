"""Measures the "dcomm" backend of torch.distributed beside gloo, both in the same processes.

    python benchmarks/torch_backend.py --json benchmarks/results/torch_backend.json --check-figures

latency  8 bytes, float32, sum: torch.distributed.all_reduce, the same with async_op=True and wait, and a functional
         all-reduce with wait_tensor. A round's time is the median of its calls on the slowest rank; backends in turn.
overlap  a training step of 16 layers Linear(512) in DDP, whose all-reduces take 8 ms longer than they would: without
         communication (no_sync), on dcomm, on dcomm in the calling thread (what DCOMM_ASYNC=0 does), in turn.

Every all-reduce is checked. Exit status: 0; 1 wrong values or a rank failed; 2 a figure of --check-figures was not
reached.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

from dcomm.bench.machine import describe
from dcomm.torch import ProcessGroup

BACKENDS = ("dcomm", "gloo")
CALLS = {"dcomm": 1000, "gloo": 100}
LIMITS_US = {"all_reduce": 8.0, "functional": 12.0}
DELAY_S = 0.008
EXPOSED = 0.25  # of the delays, at most
LAYERS = 16


def latency_calls(group: dist.ProcessGroup) -> dict[str, Callable[[], Any]]:
    import torch.distributed._functional_collectives as funcol

    x = torch.zeros(2)

    def later() -> None:
        work = dist.all_reduce(x, group=group, async_op=True)
        assert work is not None
        work.wait()

    return {
        "all_reduce": lambda: dist.all_reduce(x, group=group),
        "async": later,
        "functional": lambda: funcol.wait_tensor(funcol.all_reduce(x, "sum", group)),
    }


def median_us(call: Callable[[], Any], calls: int) -> float:
    times = []
    for _ in range(calls + calls // 5):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e6 * statistics.median(times[calls // 5 :])


def check(group: dist.ProcessGroup) -> None:
    x = torch.full((2,), dist.get_rank() + 1.0)
    dist.all_reduce(x, group=group)
    expected = sum(range(1, dist.get_world_size() + 1))
    if x.tolist() != [expected, expected]:
        raise RuntimeError(f"wrong result: {x.tolist()} for {expected}")


def measure_latency(groups: dict[str, Any], rounds: int) -> dict[str, dict[str, list[float]]]:
    calls = {name: latency_calls(group) for name, group in groups.items()}
    found: dict[str, dict[str, list[float]]] = {name: {call: [] for call in calls[name]} for name in groups}
    for _ in range(rounds):
        for name, group in groups.items():
            check(group)
            for label, call in calls[name].items():
                dist.barrier()
                found[name][label].append(median_us(call, CALLS[name]))
    return found


def measure_overlap(rounds: int, steps: int) -> dict[str, list[float]]:
    """Milliseconds of a step, by variant and round."""
    from torch.nn.parallel import DistributedDataParallel

    ranks = list(range(dist.get_world_size()))
    models: dict[str, Any] = {}
    for name in ("no communication", "dcomm", "dcomm, in the calling thread"):
        group = dist.new_group(ranks)
        assert isinstance(group, ProcessGroup)
        group._overlap = name != "dcomm, in the calling thread"
        torch.manual_seed(1)
        layers = [torch.nn.Linear(512, 512) for _ in range(LAYERS)]
        models[name] = DistributedDataParallel(torch.nn.Sequential(*layers), process_group=group, bucket_cap_mb=2.5)
        group.communicator._core._inject_delay(DELAY_S)
    x = torch.randn(256, 512)
    found: dict[str, list[float]] = {name: [] for name in models}
    for number in range(rounds + 1):
        for name, model in models.items():
            dist.barrier()
            start = time.perf_counter()
            for _ in range(steps):
                with model.no_sync() if name == "no communication" else contextlib.nullcontext():
                    model(x).sum().backward()
                model.zero_grad(set_to_none=True)
            if number:  # DDP rebuilds its buckets in the first one
                found[name].append(1e3 * (time.perf_counter() - start) / steps)
    return found


def run_rank(rank: int, args: argparse.Namespace, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", args.ranks)
    dist.init_process_group(
        "dcomm", store=store, rank=rank, world_size=args.ranks, timeout=timedelta(seconds=args.seconds)
    )
    gloo = dist.new_group(list(range(args.ranks)), backend="gloo")
    groups = dict(zip(BACKENDS, (dist.group.WORLD, gloo), strict=True))
    before = dist.group.WORLD.communicator.stats()["num_operations"]
    found = {"latency": measure_latency(groups, args.rounds), "overlap": measure_overlap(args.rounds, args.steps)}
    found["operations"] = dist.group.WORLD.communicator.stats()["num_operations"] - before
    Path(folder, f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()
    time.sleep(0.1)
    dist.destroy_process_group()


def slowest(found: list[Any]) -> Any:
    """Element by element, the largest number of all ranks."""
    if isinstance(found[0], dict):
        return {key: slowest([each[key] for each in found]) for key in found[0]}
    if isinstance(found[0], list):
        return [slowest(list(each)) for each in zip(*found, strict=True)]
    return max(found)


def summarise(found: dict[str, Any]) -> dict[str, Any]:
    medians = {
        name: {call: round(statistics.median(times), 2) for call, times in calls.items()}
        for name, calls in found["latency"].items()
    }
    steps = {name: round(statistics.median(times), 2) for name, times in found["overlap"].items()}
    return {"latency_us": medians, "step_ms": steps, "rounds": found}


def check_figures(summary: dict[str, Any], rounds: int) -> list[dict[str, Any]]:
    figures = []
    for call, limit in LIMITS_US.items():
        ours, theirs = (summary["latency_us"][name][call] for name in BACKENDS)
        best = min(summary["rounds"]["latency"]["gloo"][call])
        figures.append(
            {
                "figure": f"8 B, {call}: at most {limit:.0f} us",
                "measured": f"{ours:.1f} us (gloo {theirs:.0f}, its best round {best:.0f})",
                "reached": ours <= limit,
            }
        )
    none, overlapped, blocking = summary["step_ms"].values()
    delays = blocking - none
    figures.append(
        {
            "figure": f"a step with {1e3 * DELAY_S:.0f} ms longer all-reduces: at most {EXPOSED:.0%} of what they cost "
            "in the calling thread",
            "measured": f"{none:.0f} ms without communication, {overlapped:.0f} with, {blocking:.0f} in the calling "
            "thread",
            "reached": delays > 2e3 * DELAY_S and overlapped - none <= EXPOSED * delays,
        }
    )
    figures.append({"figure": "at least 5 rounds", "measured": str(rounds), "reached": rounds >= 5})
    return figures


def lines(report: dict[str, Any]) -> list[str]:
    machine = report["machine"]
    said = [f"# {machine['cpu']}, {machine['cores']} CPUs, {report['date']}, {report['commit'][:12]}"]
    said.append(f"# {report['command']}")
    for name, calls in report["latency_us"].items():
        said.append(f"{name:8}" + "".join(f"{call:>14} {us:8.1f} us" for call, us in calls.items()))
    said += [f"step, {name:32}{ms:9.1f} ms" for name, ms in report["step_ms"].items()]
    for figure in report.get("figures", []):
        said.append(f"{'reached' if figure['reached'] else 'NOT REACHED'}: {figure['figure']}: {figure['measured']}")
    return said


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=5, help="training steps of a variant in a round")
    parser.add_argument("--seconds", type=float, default=60, help="the groups' timeout")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--check-figures", action="store_true")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="torch-backend-") as folder:
        try:
            torch.multiprocessing.spawn(run_rank, (args, folder), nprocs=args.ranks)
        except (torch.multiprocessing.ProcessRaisedException, torch.multiprocessing.ProcessExitedException) as error:
            print(error, file=sys.stderr)
            return 1
        ranks = [json.loads(Path(folder, f"{rank}.json").read_text(encoding="utf-8")) for rank in range(args.ranks)]
    command = shlex.join(["python", "benchmarks/torch_backend.py", *(sys.argv[1:] if argv is None else argv)])
    report = describe(command, {"torch": torch.__version__}, "")
    report |= {"ranks": args.ranks, **summarise(slowest(ranks))}
    if args.check_figures:
        report["figures"] = check_figures(report, args.rounds)
    print("\n".join(lines(report)))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 2 if any(not figure["reached"] for figure in report.get("figures", [])) else 0


if __name__ == "__main__":
    sys.exit(main())
