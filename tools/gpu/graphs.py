"""Small all-reduces by replay of CUDA graphs, beside the floor of a launch and a flag, and beside the time of their own
kernels; the results of replays."""

from __future__ import annotations

import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from dcomm import _core
from dcomm.bench.cuda.composites import foreach_chain
from dcomm.bench.cuda.torch_timing import capture, graph_times_us, times_us
from gpu import trace_reader
from gpu.measure import Arrays
from gpu.ranks import one_thread
from gpu.report import Budget, Report, summary

CALLS = 20
REPEATS = 21
SIZES = [8, 65536, 1024, 8192, 262144]
WORLD_SIZES = [2, 4, 8]
ALGOS = ["auto", "one_shot", "two_shot", "ring", "tree"]
NUM_MIXED = 200
DENSE = (4, 1 << 20)  # ranks, bytes: a graph of such calls takes little more than its kernels
TRACED_REPLAYS = 5


def add_floor(report: Report) -> None:
    """Measured before and after the part: the lower of the two is the harder floor."""
    empty_us, trip_us = _core.cuda_launch_floor(torch.cuda.current_device())
    known = report.values.get("floor", {"empty_launch_us": empty_us, "round_trip_us": trip_us})
    lower = {
        "empty_launch_us": round(min(empty_us, known["empty_launch_us"]), 3),
        "round_trip_us": round(min(trip_us, known["round_trip_us"]), 3),
    }
    report.values["floor"] = lower
    report.add({"what": "floor", "empty_launch_us": round(empty_us, 3), "round_trip_us": round(trip_us, 3)})
    report.save()


def time_graphs(report: Report, arrays: Arrays, comms: list[Any], nbytes: int) -> None:
    """Every algorithm by graph, "auto" without one as well."""
    what = {"world_size": len(comms), "nbytes": nbytes}
    for algo in ALGOS:
        arrays.clear()
        row = {"what": "dcomm", **what, "algo": algo}
        with report.attempt(row):
            found = graph_times_us(arrays.reduce(comms, algo=algo), REPEATS, CALLS, arrays.clear)
            report.add({**row, **summary(found), "num_wrong": arrays.num_wrong()})
    found = times_us(lambda: foreach_chain(arrays.ins, arrays.outs), REPEATS, CALLS).us
    report.add({"what": "torch", **what, "rival": "torch._foreach_add_", **summary(found)})


def kernel_times_us(arrays: Arrays, comms: list[Any], path: Path) -> list[float]:
    """Of dcomm's kernels in replays of a graph, by a profile that is kept at `path`."""
    graph = capture(arrays.reduce(comms), CALLS)
    graph.replay()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(TRACED_REPLAYS):
            graph.replay()
        torch.cuda.synchronize()
    profile.export_chrome_trace(str(path))
    del graph
    return trace_reader.kernel_times_us(path)


def time_beside_kernels(report: Report) -> None:
    """What a graph takes beyond the time in which its kernels run: launches, and the gaps between them."""
    world_size, nbytes = DENSE
    row = {"what": "beside kernels", "world_size": world_size, "nbytes": nbytes, "calls": CALLS}
    path = Path(os.environ.get("OUT", tempfile.gettempdir())) / "gpu_graphs_replay.trace.json"
    with report.attempt(row), one_thread(world_size) as comms:
        arrays = Arrays(world_size, nbytes // 4)
        arrays.clear()
        replays = graph_times_us(arrays.reduce(comms), REPEATS, CALLS, arrays.clear)
        num_wrong = arrays.num_wrong()
        kernels = kernel_times_us(arrays, comms, path)
        found = {**row, **summary(replays), "num_wrong": num_wrong, "num_kernels": len(kernels), "trace": path.name}
        if len(kernels) == CALLS * TRACED_REPLAYS:
            found["kernel_us"] = round(statistics.fmean(kernels), 2)
            found["over_kernels"] = round(found["median_us"] / found["kernel_us"], 3)
        report.add(found)


def check_replays(report: Report, world_size: int) -> None:
    """Replays and other calls in turn, on changing inputs: every result is that of its own inputs."""
    arrays = Arrays(world_size, 5000)
    with one_thread(world_size) as comms:
        calls = [arrays.reduce(comms, algo=algo) for algo in ("auto", "ring", "two_shot")]

        def three() -> None:
            for call in calls:
                call()

        three()
        torch.cuda.synchronize()
        graph = capture(three, 1)
        num_wrong = 0
        for turn in range(NUM_MIXED):
            for rank, x in enumerate(arrays.ins):
                x.fill_(float((turn + rank) % 100))
            arrays.clear()
            if turn % 3 == 2:
                calls[turn % 2]()
            else:
                graph.replay()
            num_wrong += arrays.num_wrong()
        torch.cuda.synchronize()
        del graph
    report.add({"what": "replays", "world_size": world_size, "turns": NUM_MIXED, "num_wrong": num_wrong})


def run(report: Report, budget: Budget) -> None:
    add_floor(report)
    for nbytes in SIZES:
        for world_size in WORLD_SIZES:
            if not budget.allows(f"{nbytes} B, {world_size} ranks"):
                continue
            with report.attempt({"world_size": world_size}), one_thread(world_size) as comms:
                time_graphs(report, Arrays(world_size, max(1, nbytes // 4)), comms, nbytes)
            report.save()
    if budget.allows("beside kernels"):
        time_beside_kernels(report)
        report.save()
    for world_size in WORLD_SIZES:
        if budget.allows(f"replays of {world_size} ranks"):
            with report.attempt({"what": "replays", "world_size": world_size, "num_wrong": 0}):
                check_replays(report, world_size)
    add_floor(report)
