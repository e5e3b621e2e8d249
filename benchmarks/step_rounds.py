"""Rounds of benchmarks/ddp_step.py, in which all variants take turns."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections import Counter
from typing import Any

import numpy as np
from step_models import WORKLOADS
from step_ranks import Group
from step_variants import BUCKET_SIZES, FLOOR, GLOO

from dcomm.bench.rounds import Turns

# The synchronizer that chooses its bucket size, and those whose size is given.
AUTO = "synchronizer"
FIXED = {f"{AUTO} {size} MiB": size << 20 for size in BUCKET_SIZES}
CLOSE = {"fp16": 2e-2, "": 1e-3}  # distance of the weights: sums in another order, or with a half wire
WARM_STEPS = 4  # DDP and the synchronizer settle within the first steps

StepMs = dict[str, list[float]]


def measure(workload: str, args: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Rounds, in processes that start anew `args.lives` times."""
    names = args.variants
    running = [AUTO] if args.same_processes else names
    times: dict[str, list[list[float]]] = {name: [] for name in names}
    sizes: dict[str, list[int | None]] = {name: [] for name in running}
    turns = Turns(running)
    begin = time.monotonic()
    for life in range(args.lives):
        share = (life + 1) / args.lives
        own_folder = tempfile.mkdtemp(dir=folder)
        with contextlib.ExitStack() as stack:
            groups = {}
            # Who starts first waits longest for its first turn; the kernel may have taken some of its memory by then.
            for name in rotated(running, life):
                groups[name] = Group(name, workload, args.ranks, own_folder)
                stack.callback(groups[name].close)
                groups[name].ask("settle", WARM_STEPS)
                sizes[name].append(groups[name].ask("bucket_bytes")[0])
            while True:
                round_begin = time.monotonic()
                number = len(times[names[0]])
                if args.same_processes:
                    found = sizes_round(groups[AUTO], sizes[AUTO][-1], number, turns, args)
                else:
                    found = variants_round(rotated(names, number), groups, turns, args)
                for name, ms in found.items():
                    times[name].append(ms)
                now = time.monotonic()
                seen = Counter(states[-1] for states in turns.states.values())
                text = f"round {number + 1}, {dict(seen)}, {turns.num_counted} count"
                print(f"{workload}: {text}", file=sys.stderr, flush=True)
                is_late = now - begin + (now - round_begin) > args.max_seconds * share
                if turns.num_counted >= args.rounds * share or is_late:
                    break
            weights = compare_weights(groups, own_folder)
    return {
        "title": WORKLOADS[workload].title,
        "states": {name: turns.states[AUTO if args.same_processes else name] for name in names},
        "step_ms": times,
        "in_passes": args.same_processes,
        "bucket_bytes": {name: chosen for name, chosen in sizes.items() if any(chosen)},  # in each life
        "weights": weights,
    }


def rotated(names: list[str], number: int) -> list[str]:
    return names[number % len(names) :] + names[: number % len(names)]


def variants_round(names: list[str], groups: dict[str, Group], turns: Turns, args: argparse.Namespace) -> StepMs:
    """Each variant's steps one after another, in processes of its own."""
    found = {}
    for name in names:
        with turns.turn(name):
            found[name] = slowest(groups[name].ask("steps", args.steps, args.warm))
    return found


def sizes_round(group: Group, chosen: int, number: int, turns: Turns, args: argparse.Namespace) -> StepMs:
    """One synchronizer's steps with the size that it chose and with each fixed one, in turn by step.

    Whoever comes first comes after a pause, and so it is another one in every round.
    """
    with turns.turn(AUTO):
        by_rank = group.ask("steps_of_sizes", [chosen, *FIXED.values()], number, args.steps, args.warm)
    return {name: slowest(of_name) for name, *of_name in zip([AUTO, *FIXED], *by_rank, strict=True)}


def slowest(by_rank: list[list[float]]) -> list[float]:
    """Milliseconds of each step, which takes as long as its slowest rank."""
    return [round(max(ms), 3) for ms in zip(*by_rank, strict=True)]


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
