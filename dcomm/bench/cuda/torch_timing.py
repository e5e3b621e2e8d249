"""How torch times calls on a GPU: replays of a CUDA graph, or events on a stream that is held back meanwhile.

Not run on a GPU yet.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dcomm.bench.text import first_sentence
from dcomm.errors import DcommError

Enqueue = Callable[[], Any]
CYCLES_PER_SECOND = 2e9  # about; of torch.cuda._sleep


@dataclass(frozen=True)
class Times:
    """Per call, in us. how: "graph", or "events (why there is no graph)"."""

    us: list[float]
    how: str


def _cuda() -> Any:
    """torch.cuda, some of which has no types."""
    import torch

    return torch.cuda


def event_times_us(enqueue: Enqueue, repeats: int, calls: int = 1) -> list[float]:
    """Times of back-to-back batches on the current stream, held back so that the host's own time does not count.

    Args:
        enqueue: One call.
        repeats: How many batches.
        calls: In a batch.

    Returns:
        For each batch us per call.
    """
    cuda = _cuda()
    seconds = host_seconds(enqueue)
    events = [cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    hold(2 * seconds * repeats * calls + 0.005)
    events[0].record()
    for event in events[1:]:
        for _ in range(calls):
            enqueue()
        event.record()
    cuda.synchronize()
    return [1e3 * before.elapsed_time(after) / calls for before, after in itertools.pairwise(events)]


def host_seconds(enqueue: Enqueue) -> float:
    """What the host takes for a call that is not its first."""
    cuda = _cuda()
    enqueue()
    cuda.synchronize()
    start = time.perf_counter()
    enqueue()
    seconds = time.perf_counter() - start
    cuda.synchronize()
    return seconds


def hold(seconds: float) -> None:
    """Let what comes next on the current stream wait, a second at most."""
    _cuda()._sleep(int(CYCLES_PER_SECOND * min(1.0, seconds)))


def alone_times_us(
    batch: Enqueue, repeats: int, before_each: Enqueue | None = None, hold_seconds: float = 0.0
) -> list[float]:
    """Times of batches, each alone on the current stream: what the host takes to launch the next one does not count.

    Args:
        batch: Enqueues a batch.
        repeats: How many.
        before_each: Called before each, outside the clock.
        hold_seconds: How long the stream is held back, so that the host's time for `batch` does not count either.

    Returns:
        For each batch us.
    """
    cuda = _cuda()
    events = [cuda.Event(enable_timing=True) for _ in range(2 * repeats)]
    pairs = list(zip(events[::2], events[1::2], strict=True))
    for before, after in pairs:
        if before_each is not None:
            before_each()
        if hold_seconds > 0:
            hold(hold_seconds)
        before.record()
        batch()
        after.record()
        cuda.synchronize()
    return [1e3 * before.elapsed_time(after) for before, after in pairs]


def capture(enqueue: Enqueue, calls: int) -> Any:
    """A graph of `calls` calls. thread_local: other threads, of torch.compile say, may allocate meanwhile."""
    cuda = _cuda()
    graph = cuda.CUDAGraph()
    with cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(calls):
            enqueue()
    return graph


def graph_times_us(enqueue: Enqueue, repeats: int, calls: int, reset: Enqueue | None = None) -> list[float]:
    """Times of replays of a graph of `calls` calls, each alone.

    Args:
        enqueue: One call.
        repeats: How many replays.
        calls: In the graph.
        reset: Called before the replays, so that the results are theirs.

    Returns:
        For each replay us per call.
    """
    cuda = _cuda()
    for _ in range(2):
        enqueue()
    cuda.synchronize()
    graph = capture(enqueue, calls)
    if reset is not None:
        reset()
    graph.replay()
    cuda.synchronize()
    found = [us / calls for us in alone_times_us(graph.replay, repeats)]
    del graph
    cuda.synchronize()
    return found


def times_us(enqueue: Enqueue, repeats: int, calls: int, reset: Enqueue | None = None) -> Times:
    """By graph; where the capture fails, by events."""
    cuda = _cuda()
    try:
        return Times(graph_times_us(enqueue, repeats, calls, reset), "graph")
    except (RuntimeError, DcommError) as error:
        cuda.synchronize()
        return Times(event_times_us(enqueue, repeats, calls), f"events ({first_sentence(error)})")


def calls_for(nbytes: int) -> int:
    """Calls of a batch: 20 where the launch matters, fewer where the GPU is busy for long."""
    return 20 if nbytes <= 4 << 20 else 5 if nbytes <= 32 << 20 else 2


def copy_bandwidth(nbytes: int) -> float:
    """Bytes read and written per second by a device copy of `nbytes`."""
    import torch

    source = torch.ones(nbytes // 4, device="cuda")
    target = torch.empty_like(source)
    median_us = statistics.median(event_times_us(lambda: target.copy_(source), 15))
    return 2 * nbytes / (median_us * 1e-6)
