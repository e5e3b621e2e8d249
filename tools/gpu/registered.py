"""Arrays that all ranks reach: their all-reduce beside the staged one; a training step whose gradients lie in them,
beside one without communication; the same weights whatever the number of ranks."""

from __future__ import annotations

import hashlib
import itertools
import statistics
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

import dcomm
import dcomm.torch
from dcomm.bench.cuda.floor import floor_us
from dcomm.bench.cuda.torch_timing import calls_for, copy_bandwidth, times_us
from gpu.measure import Arrays
from gpu.ranks import Ranks, one_thread
from gpu.report import CHECKOUT, Budget, Report, summary

sys.path.append(str(CHECKOUT / "examples"))
from gpt_model import GPT, GPTConfig

MIB = 1 << 20
COPY_BYTES = 1 << 30
SIZES = [64 * MIB, 16 * MIB, 256 * MIB, MIB]
WORLD_SIZES = [2, 4, 8]
REPEATS = 11
STEPS = 20
CONFIG = GPTConfig(num_layers=8, num_heads=8, width=512, block_size=256)
BATCH = 16  # sequences, of all ranks together


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


class Training:
    """One rank's model, data and optimizer; `syncs`: with communication."""

    def __init__(self, comm: Any, *, syncs: bool, deterministic: bool = False, microbatches: int = 1) -> None:
        torch.manual_seed(5)
        self.model = GPT(CONFIG).cuda()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, foreach=False)
        average: Any = "microbatches" if deterministic else True
        self.sync = (
            dcomm.torch.GradientSynchronizer(self.model, comm, deterministic=deterministic, average=average)
            if syncs
            else None
        )
        generator = torch.Generator().manual_seed(7)
        shape = (BATCH, CONFIG.block_size + 1)
        data = torch.randint(0, 256, shape, generator=generator).chunk(comm.world_size)[comm.rank].cuda()
        self.parts = data.chunk(microbatches // comm.world_size or 1)

    def step(self) -> None:
        for part in self.parts:
            logits = self.model(part[:, :-1])
            torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), part[:, 1:].flatten()).backward()
        if self.sync is not None:
            self.sync.finish()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def digest(self) -> str:
        """Of all weights, bit for bit."""
        torch.cuda.synchronize()
        found = hashlib.sha256()
        for parameter in self.model.parameters():
            found.update(parameter.detach().cpu().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()


def time_steps(report: Report) -> None:
    """Ranks that are threads on cuda:0: every step of all ranks, one with and one without communication in turn."""
    with report.attempt({"what": "step"}):
        ranks = Ranks(2)
        try:
            ways = {syncs: ranks.run(lambda comm, s=syncs: Training(comm, syncs=s)) for syncs in (True, False)}
            found: dict[bool, list[float]] = {True: [], False: []}
            for turn in range(2 * STEPS):
                trainings = ways[turn % 2 == 0]
                torch.cuda.synchronize()
                start = time.perf_counter()
                ranks.run(lambda comm, t=trainings: t[comm.rank].step())
                torch.cuda.synchronize()
                if turn >= 8:  # the first ones lay the buckets out
                    found[turn % 2 == 0].append(1e6 * (time.perf_counter() - start))
            median_us = {syncs: statistics.median(times) for syncs, times in found.items()}
            report.add(
                {
                    "what": "step",
                    "world_size": 2,
                    "median_us": round(median_us[True], 1),
                    "alone_us": round(median_us[False], 1),
                    "over_alone": round(median_us[True] / median_us[False], 3),
                }
            )
        finally:
            ranks.close()


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
    if budget.allows("step"):
        time_steps(report)
    report.save()
    time_sums(report, budget)
