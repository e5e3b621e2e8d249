"""A training step of ranks that are threads on one GPU beside the same one without communication, and a profile that
shows what runs beside what: GradientSynchronizer on the GPT."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from gpu import trace_reader
from gpu.ranks import Ranks
from gpu.report import Budget, Report
from gpu.training import Training

STEPS = 20  # of each way
WARM_UP = 4  # of each way: the first ones lay the buckets out
NUM_RANKS = 2
# name: overlap of GradientSynchronizer; None: no communication
WAYS: dict[str, bool | None] = {"beside": True, "after": False, "alone": None}


def step_all(ranks: Ranks, trainings: list[Training]) -> None:
    """One step of all ranks, each in its own thread."""
    ranks.run(lambda comm: trainings[comm.rank].step())


def make_trainings(ranks: Ranks, overlap: bool | None) -> list[Training]:
    made: list[Training] = ranks.run(lambda comm: Training(comm, syncs=overlap is not None, overlap=overlap))
    return made


def time_steps(report: Report) -> None:
    """The ways in turn, so that all meet the same clocks."""
    with report.attempt({"what": "step"}):
        ranks = Ranks(NUM_RANKS)
        try:
            trainings = {way: make_trainings(ranks, overlap) for way, overlap in WAYS.items()}
            found: dict[str, list[float]] = {way: [] for way in WAYS}
            for turn in range(STEPS + WARM_UP):
                for way in WAYS:
                    torch.cuda.synchronize()
                    start = time.perf_counter()
                    step_all(ranks, trainings[way])
                    torch.cuda.synchronize()
                    if turn >= WARM_UP:
                        found[way].append(1e6 * (time.perf_counter() - start))
            medians = {way: statistics.median(times) for way, times in found.items()}
            report.add(
                {
                    "what": "step",
                    "world_size": NUM_RANKS,
                    "median_us": round(medians["beside"], 1),
                    "after_us": round(medians["after"], 1),
                    "alone_us": round(medians["alone"], 1),
                    "over_alone": round(medians["beside"] / medians["alone"], 3),
                }
            )
        finally:
            ranks.close()


def _all_threads() -> Any:
    """So that the profile has the nodes of autograd in whatever thread; None: this torch cannot."""
    try:
        return torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    except TypeError:
        return None


def trace_steps(report: Report) -> None:
    """The trace itself lies beside the report: chrome://tracing, or ui.perfetto.dev, draws it."""
    row = {"what": "overlap", "world_size": NUM_RANKS}
    path = Path(os.environ.get("OUT", tempfile.gettempdir())) / "gpu_overlap_synchronizer.trace.json"
    with report.attempt(row):
        ranks = Ranks(NUM_RANKS)
        try:
            trainings = make_trainings(ranks, True)
            for _ in range(WARM_UP):
                step_all(ranks, trainings)
            torch.cuda.synchronize()
            activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
            with torch.profiler.profile(activities=activities, experimental_config=_all_threads()) as profile:
                for _ in range(3):
                    step_all(ranks, trainings)
                torch.cuda.synchronize()
            profile.export_chrome_trace(str(path))
            report.add({**row, **trace_reader.read(path), "trace": path.name})
        finally:
            ranks.close()


def run(report: Report, budget: Budget) -> None:
    for part in (time_steps, trace_steps):
        if budget.allows(part.__name__):
            part(report)
            report.save()
