"""Every algorithm at every size and number of ranks: where the selector's thresholds belong."""

from __future__ import annotations

from typing import Any

import torch

from dcomm.bench.cuda.torch_timing import calls_for, times_us
from dcomm.bench.text import first_sentence
from gpu.measure import Arrays
from gpu.ranks import one_thread
from gpu.report import Budget, NotHere, Report, Row, summary

ALGOS = ["one_shot", "two_shot", "ring", "tree"]
SIZES = [1 << log2 for log2 in range(10, 29, 2)] + [1 << log2 for log2 in range(13, 20, 2)]
WORLD_SIZES = [8, 2, 4, 16, 32]
REPEATS = 5
MOST_WORK = 8 << 30  # bytes that all ranks send to all; one_shot alone does, and is hopeless long before


def fastest(rows: list[Row]) -> list[Row]:
    """For each number of ranks and size: the fastest algorithm, how much faster than the next, all medians."""
    cells: dict[tuple[int, int], dict[str, float]] = {}
    for row in rows:
        if "median_us" in row:
            cells.setdefault((row["world_size"], row["nbytes"]), {})[row["algo"]] = row["median_us"]
    found = []
    for (world_size, nbytes), medians in sorted(cells.items()):
        best, *others = sorted(medians, key=lambda algo: medians[algo])
        lead = round(medians[others[0]] / medians[best], 3) if others else None
        found.append({"world_size": world_size, "nbytes": nbytes, "best": best, "lead": lead, "median_us": medians})
    return found


def time_size(report: Report, budget: Budget, comms: list[Any], nbytes: int) -> None:
    """All algorithms; the results are checked."""
    world_size = len(comms)
    arrays = Arrays(world_size, nbytes // 4)
    for algo in ALGOS:
        what = {"what": "dcomm", "world_size": world_size, "nbytes": nbytes, "algo": algo}
        if algo == "one_shot" and world_size**2 * nbytes > MOST_WORK:
            report.add({**what, "error": "left out: far too much to send"})
        elif budget.allows(str(what)):
            arrays.clear()
            enqueue = arrays.reduce(comms, algo=algo)
            times = times_us(enqueue, REPEATS, calls_for(world_size * nbytes // 8), arrays.clear)
            report.add({**what, **summary(times.us), "how": times.how, "num_wrong": arrays.num_wrong()})


def run(report: Report, budget: Budget) -> None:
    for world_size in WORLD_SIZES:
        try:
            with report.attempt({"world_size": world_size}), one_thread(world_size) as comms:
                for nbytes in SIZES:
                    if budget.allows(f"{world_size} ranks, {nbytes} B"):
                        time_size(report, budget, comms, nbytes)
                        torch.cuda.empty_cache()
        except NotHere as error:
            report.add({"what": "dcomm", "world_size": world_size, "error": first_sentence(error)})
        report.values["fastest"] = fastest(report.values["rows"])
        report.save()
