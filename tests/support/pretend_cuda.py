"""torch.cuda pretended on CPU tensors, for tools/gpu_check on machines without a GPU.

Streams run at once; a graph keeps the copies and the all-reduces of its capture and makes them again. What it measures
means nothing.
"""

from __future__ import annotations

import contextlib
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

import dcomm


class _OnCpu(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("device") == "cuda":
            kwargs["device"] = "cpu"
        if Graph.captured is not None and function is torch._foreach_copy_:
            Graph.captured.calls.append(lambda: function(*args, **kwargs))
        return function(*args, **kwargs)


class Event:
    def __init__(self, enable_timing: bool = False) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, other: Event) -> float:
        return 1e3 * (other.at - self.at) + 1e-6


class Graph:
    """What was called while it was captured: copies of lists, and all-reduces."""

    captured: Graph | None = None

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []

    def replay(self) -> None:
        for call in self.calls:
            call()


@contextlib.contextmanager
def capture(graph: Graph, capture_error_mode: str) -> Iterator[None]:
    assert capture_error_mode == "thread_local"
    Graph.captured = graph
    try:
        yield
    finally:
        Graph.captured = None


class Comm:
    """Collects the calls of a group; the last rank's makes the sum."""

    def __init__(self, calls: list[Any], rank: int) -> None:
        self.calls, self.rank = calls, rank

    def all_reduce(self, x: Any, out: Any = None, algo: str = "auto", wire_dtype: str | None = None) -> None:
        assert algo in ("auto", "one_shot", "two_shot", "ring", "tree")
        self.calls.append((x, x if out is None else out))

    def close(self) -> None:
        pass


@contextlib.contextmanager
def group(comms: list[Comm]) -> Iterator[None]:
    calls = comms[0].calls
    calls.clear()
    yield
    assert len(calls) == len(comms)
    made = list(calls)

    def reduce() -> None:
        total = sum(x for x, _ in made)
        for _, out in made:
            out.copy_(total)

    reduce()
    if Graph.captured is not None:
        Graph.captured.calls.append(reduce)


def init_threads(world_size: int, device: str = "") -> list[Comm]:
    if world_size > 16:
        raise dcomm.CudaError(f"{world_size} ranks with 8 channels each need too many thread blocks at once")
    calls: list[Any] = []
    return [Comm(calls, rank) for rank in range(world_size)]


@contextlib.contextmanager
def pretend_cuda(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside, "cuda" is the CPU, and dcomm's ranks on a GPU are made here."""
    for name, value in {
        "synchronize": lambda: None,
        "empty_cache": lambda: None,
        "current_device": lambda: 0,
        "_sleep": lambda cycles: None,
        "Event": Event,
        "CUDAGraph": Graph,
        "graph": capture,
        "current_stream": lambda: types.SimpleNamespace(cuda_stream=0),
    }.items():
        patch.setattr(torch.cuda, name, value)
    patch.setattr(dcomm, "group", group)
    patch.setattr(dcomm, "init_threads", init_threads)
    patch.setattr(dcomm._core, "cuda_launch_floor", lambda device: (3.0, 1.0))
    with _OnCpu():
        yield
