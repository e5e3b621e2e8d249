"""How calls on a GPU are timed: replays of a CUDA graph, or events on a stream that is held back meanwhile."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import dcomm
from gpu.report import first_sentence

Enqueue = Callable[[], Any]
CYCLES_PER_SECOND = 2e9  # about; of torch.cuda._sleep


@dataclass(frozen=True)
class Times:
    """Per call, in us. how: "graph", or "events (why there is no graph)"."""

    us: list[float]
    how: str


def event_times_us(enqueue: Enqueue, repeats: int, calls: int = 1) -> list[float]:
    """Of each of `repeats` batches of `calls`, per call, on the current stream, which is held back meanwhile so that
    the host's own time does not count."""
    enqueue()
    torch.cuda.synchronize()
    start = time.perf_counter()
    enqueue()
    host_seconds = time.perf_counter() - start
    torch.cuda.synchronize()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    torch.cuda._sleep(int(CYCLES_PER_SECOND * min(1.0, 2 * host_seconds * repeats * calls + 0.005)))
    events[0].record()
    for event in events[1:]:
        for _ in range(calls):
            enqueue()
        event.record()
    torch.cuda.synchronize()
    return [1e3 * before.elapsed_time(after) / calls for before, after in itertools.pairwise(events)]


def capture(enqueue: Enqueue, calls: int) -> torch.cuda.CUDAGraph:
    """A graph of `calls` calls. thread_local: other threads, of torch.compile say, may allocate meanwhile."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(calls):
            enqueue()
    return graph


def graph_times_us(enqueue: Enqueue, repeats: int, calls: int, reset: Enqueue | None = None) -> list[float]:
    """Of each of `repeats` replays of a graph of `calls` calls, per call. reset: called before the replays, so that the
    results are theirs."""
    for _ in range(2):
        enqueue()
    torch.cuda.synchronize()
    graph = capture(enqueue, calls)
    if reset is not None:
        reset()
    graph.replay()
    torch.cuda.synchronize()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2 * repeats)]
    for before, after in zip(events[::2], events[1::2], strict=True):
        before.record()
        graph.replay()
        after.record()
        torch.cuda.synchronize()  # each replay alone: what the host takes to launch the next one does not count
    found = [1e3 * before.elapsed_time(after) / calls for before, after in zip(events[::2], events[1::2], strict=True)]
    del graph
    torch.cuda.synchronize()
    return found


def times_us(enqueue: Enqueue, repeats: int, calls: int, reset: Enqueue | None = None) -> Times:
    """By graph; where the capture fails, by events."""
    try:
        return Times(graph_times_us(enqueue, repeats, calls, reset), "graph")
    except (RuntimeError, dcomm.DcommError) as error:
        torch.cuda.synchronize()
        return Times(event_times_us(enqueue, repeats, calls), f"events ({first_sentence(error)})")


def calls_for(nbytes: int) -> int:
    """Calls of a batch: 20 where the launch matters, fewer where the GPU is busy for long."""
    return 20 if nbytes <= 4 << 20 else 5 if nbytes <= 32 << 20 else 2


def copy_bandwidth(nbytes: int) -> float:
    """Bytes read and written per second by a device copy."""
    source = torch.ones(nbytes // 4, device="cuda")
    target = torch.empty_like(source)
    median_us = statistics.median(event_times_us(lambda: target.copy_(source), 15))
    return 2 * nbytes / (median_us * 1e-6)


class Arrays:
    """Inputs and outputs of all ranks; whole numbers, of which sums are exact in float16 too."""

    def __init__(self, world_size: int, count: int) -> None:
        self.ins = [torch.randint(-8, 9, (count,), device="cuda").to(torch.float32) for _ in range(world_size)]
        self.outs = [torch.empty_like(x) for x in self.ins]

    def clear(self) -> None:
        for out in self.outs:
            out.fill_(float("nan"))

    def num_wrong(self) -> int:
        """Elements of all outputs that are not the sum."""
        expected = torch.zeros_like(self.ins[0])
        for x in self.ins:
            expected += x
        return sum(int(torch.count_nonzero(out != expected)) for out in self.outs)

    def reduce(self, comms: list[Any], **arguments: Any) -> Enqueue:
        """One all-reduce of all ranks, called by this thread."""

        def enqueue() -> None:
            with dcomm.group(comms):
                for comm, x, out in zip(comms, self.ins, self.outs, strict=True):
                    comm.all_reduce(x, out=out, **arguments)

        return enqueue
