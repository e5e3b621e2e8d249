"""Arrays that all ranks reach: their all-reduce beside the staged one; training whose gradients lie in them: the same
weights whatever the number of ranks."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

import torch

from dcomm.bench.cuda.floor import floor_us
from dcomm.bench.cuda.torch_timing import calls_for, copy_bandwidth, times_us
from gpu.measure import Arrays
from gpu.ranks import Ranks, one_thread
from gpu.report import Budget, Report, summary
from gpu.training import Training

MIB = 1 << 20
COPY_BYTES = 1 << 30
SIZES = [64 * MIB, 16 * MIB, 256 * MIB, MIB]
WORLD_SIZES = [2, 4, 8]
REPEATS = 11


def in_threads(comms: list[Any], body: Callable[[Any], Any]) -> list[Any]:
    """body(comm) in a thread for each rank."""
    found: list[Any] = [None] * len(comms)

    def run(rank: int) -> None:
        found[rank] = body(comms[rank])

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(comms))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def reach(comms: list[Any], arrays: Arrays) -> None:
    """The same numbers in memory that all ranks reach."""
    count = arrays.ins[0].numel()
    for name in ("ins", "outs"):
        made = in_threads(comms, lambda comm: comm.empty(count, torch.float32, device="cuda"))
        torch._foreach_copy_(made, getattr(arrays, name))
        setattr(arrays, name, made)


def time_sums(report: Report, budget: Budget) -> None:
    bandwidth = copy_bandwidth(COPY_BYTES)
    report.values["copy_bytes_per_second"] = bandwidth
    for nbytes, world_size in itertools.product(SIZES, WORLD_SIZES):
        what = {"world_size": world_size, "nbytes": nbytes}
        if not budget.allows(str(what)):
            continue
        with report.attempt(what), one_thread(world_size) as comms:
            arrays = Arrays(world_size, nbytes // 4)
            reach(comms, arrays)
            for algo in ("two_shot", "direct"):
                arrays.clear()
                enqueue = arrays.reduce(comms, algo=algo)
                times = times_us(enqueue, REPEATS, calls_for(nbytes), arrays.clear)
                floor = floor_us(world_size, nbytes, bandwidth)
                row = {"what": "sum", **what, "algo": algo, **summary(times.us, floor), "how": times.how}
                report.add({**row, "num_wrong": arrays.num_wrong()})
            arrays.ins, arrays.outs = [], []
        report.save()
        torch.cuda.empty_cache()


def compare_weights(report: Report) -> None:
    """The same global batch of 8 microbatches on 1, 2, 4 and 8 ranks."""
    for world_size in (1, 2, 4, 8):
        with report.attempt({"what": "weights", "world_size": world_size}):
            ranks = Ranks(world_size)
            try:

                def train(comm: Any) -> str:
                    training = Training(comm, syncs=True, deterministic=True, microbatches=8)
                    for _ in range(3):
                        training.step()
                    return training.digest()

                report.add({"what": "weights", "world_size": world_size, "sha256": sorted(set(ranks.run(train)))})
            finally:
                ranks.close()


def run(report: Report, budget: Budget) -> None:
    if budget.allows("weights"):
        compare_weights(report)
    report.save()
    time_sums(report, budget)
