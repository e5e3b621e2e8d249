"""Large all-reduces: beside the floor, beside torch, with a float16 wire, and with other channels and slots."""

from __future__ import annotations

import itertools
from typing import Any

import torch

import dcomm
from dcomm.bench.cuda.composites import NAMES, composite
from dcomm.bench.cuda.floor import floor_us
from dcomm.bench.cuda.torch_timing import Times, calls_for, copy_bandwidth, times_us
from dcomm.bench.text import first_sentence
from gpu.measure import Arrays
from gpu.ranks import one_thread
from gpu.report import Budget, NotHere, Report, summary

MIB = 1 << 20
COPY_BYTES = 1 << 30  # far more than any L2
SIZES = [64 * MIB, 256 * MIB, 128 * MIB, MIB, 16 * MIB, 4 * MIB]
WORLD_SIZES = [8, 2, 4]
ALGOS = ["auto", "two_shot", "ring", "one_shot", "tree"]
REPEATS = 11


class Timing:
    """The rows of this part."""

    def __init__(self, report: Report, budget: Budget) -> None:
        self.report, self.budget = report, budget
        self.bandwidth = copy_bandwidth(COPY_BYTES)
        report.values |= {"copy_bytes_per_second": self.bandwidth, "copied_bytes": COPY_BYTES}

    def add(self, times: Times, what: dict[str, Any], **more: Any) -> None:
        floor = floor_us(what["world_size"], what["nbytes"], self.bandwidth)
        self.report.add({**what, **summary(times.us, floor), "how": times.how, **more})

    def ours(self, comms: list[Any], arrays: Arrays, what: dict[str, Any], wire: str | None = None) -> None:
        """One algorithm; the results are checked."""
        what = {**what, "wire": wire or "float32"}
        if not self.budget.allows(str(what)):
            return
        arrays.clear()
        enqueue = arrays.reduce(comms, algo=what["algo"], wire_dtype=wire)
        times = times_us(enqueue, REPEATS, calls_for(what["nbytes"]), arrays.clear)
        self.add(times, what, num_wrong=arrays.num_wrong())

    def cast(self, comms: list[Any], arrays: Arrays, what: dict[str, Any]) -> None:
        """To float16, all-reduce, and back: what the fused wire is to beat."""
        if not self.budget.allows(str(what)):
            return
        halves = [torch.empty(x.numel(), dtype=torch.float16, device="cuda") for x in arrays.ins]

        def enqueue() -> None:
            torch._foreach_copy_(halves, arrays.ins)
            with dcomm.group(comms):
                for comm, half in zip(comms, halves, strict=True):
                    comm.all_reduce(half)
            torch._foreach_copy_(arrays.outs, halves)

        arrays.clear()
        times = times_us(enqueue, REPEATS, calls_for(what["nbytes"]), arrays.clear)
        self.add(times, what, num_wrong=arrays.num_wrong())

    def theirs(self, arrays: Arrays, what: dict[str, Any]) -> None:
        """One way of torch's; that there is none is a row too."""
        if not self.budget.allows(str(what)):
            return
        arrays.clear()
        try:
            function = composite(what["rival"])
            function(arrays.ins, arrays.outs)  # torch.compile compiles here
            num_wrong = arrays.num_wrong()
            times = times_us(lambda: function(arrays.ins, arrays.outs), REPEATS, calls_for(what["nbytes"]))
        except Exception as error:
            self.report.add({**what, "error": first_sentence(error)})
            return
        self.add(times, what, num_wrong=num_wrong)


def run(report: Report, budget: Budget) -> None:
    timing = Timing(report, budget)
    for nbytes, world_size in itertools.product(SIZES, WORLD_SIZES):
        what = {"world_size": world_size, "nbytes": nbytes}
        if not budget.allows(str(what)):
            continue
        arrays = Arrays(world_size, nbytes // 4)
        with report.attempt(what), one_thread(world_size) as comms:
            for algo in ALGOS:
                timing.ours(comms, arrays, {"what": "dcomm", **what, "algo": algo})
            if nbytes >= 16 * MIB:
                for wire in ("float16", "bfloat16"):
                    timing.ours(comms, arrays, {"what": "dcomm", **what, "algo": "auto"}, wire)
                timing.cast(comms, arrays, {"what": "cast", **what})
        for name in NAMES:
            timing.theirs(arrays, {"what": "torch", **what, "rival": name})
        report.save()
        del arrays
        torch.cuda.empty_cache()
    sweep(timing)


def sweep(timing: Timing) -> None:
    """What other numbers of blocks and bytes of a slot would give."""
    nbytes = 64 * MIB
    for world_size in (8, 2):
        arrays = Arrays(world_size, nbytes // 4)
        for channels, slot_bytes in itertools.product((16, 8, 32, 64, 4), (32768, 131072, 8192)):
            shape = {"channels": channels, "slot_bytes": slot_bytes}
            what = {"what": "sweep", "world_size": world_size, "nbytes": nbytes, **shape}
            if not timing.budget.allows(str(what)):
                continue
            try:
                with timing.report.attempt(what), one_thread(world_size, **shape) as comms:
                    for algo in ("two_shot", "ring"):
                        timing.ours(comms, arrays, {**what, "algo": algo})
            except NotHere as error:
                timing.report.add({**what, "error": first_sentence(error)})
        timing.report.save()
