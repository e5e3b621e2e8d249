"""--json of the training examples: what a training came to, where, when and how. No times: those need more rounds."""

from __future__ import annotations

import argparse
import importlib
import json
import shlex
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from train_report import Run, largest_difference
from training import Job, UserError


@dataclass(frozen=True)
class Measure:
    """What an example is judged by, a value for each of its trainings, and what it is to be compared with."""

    name: str
    values: Sequence[float]
    beside: str
    beside_value: float


def save_results(args: argparse.Namespace, job: Job, runs: Sequence[Run], measure: Measure, *, agrees: bool) -> None:
    """Writes the file that --json names, if there is one; called by rank 0. `agrees`: what --compare came to.

    Raises:
        UserError: dcomm, which describes the machine, is not installed.
    """
    if args.json is None:
        return
    try:
        describe = importlib.import_module("dcomm.bench.machine").describe
    except ImportError as error:
        raise UserError(f"--json: cannot import dcomm ({error}); install it with `pip install .`") from error
    report: dict[str, Any] = describe(command_of(job), {"torch": torch.__version__}, "")
    report |= {
        "example": Path(sys.argv[0]).stem,
        "ranks": job.world_size,
        "steps": len(runs[0].losses),
        "measure": measure.name,
        "values": {run.name: value for run, value in zip(runs, measure.values, strict=True)},
        "beside": {measure.beside: measure.beside_value},
        "first_loss": {run.name: run.losses[0] for run in runs},
        "last_ten_losses": {run.name: statistics.fmean(run.losses[-10:]) for run in runs},
    }
    if len(runs) > 1:
        report |= {"largest_loss_difference": largest_difference(runs[0].losses, runs[1].losses), "agrees": agrees}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def command_of(job: Job) -> str:
    """As it is typed in the repository; without --json, which changes nothing."""
    options = []
    words = iter(sys.argv[1:])
    for word in words:
        if word == "--json":
            next(words)
        elif not word.startswith("--json="):
            options.append(word)
    launcher = ["torchrun", "--standalone", "--nproc-per-node", str(job.world_size)] if job.launched else ["python"]
    return shlex.join([*launcher, f"examples/{Path(sys.argv[0]).name}", *options])
