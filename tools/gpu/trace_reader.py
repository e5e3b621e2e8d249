"""How much of the time of dcomm's kernels lies beside backward's, from a profile that torch wrote. Needs no GPU.

    python tools/gpu/trace_reader.py gpu_overlap.trace.json

A kernel is backward's where the call that launched it was made while autograd ran a node: the trace has both, and a
number in common says which call launched which kernel. Source of the format: torch.profiler, "Chrome trace".
"""

from __future__ import annotations

import json
import sys
from bisect import bisect_right
from collections import defaultdict
from pathlib import Path
from typing import Any

Event = dict[str, Any]
Span = tuple[float, float]
Thread = tuple[Any, Any]

_NODE = "autograd::engine::evaluate_function"
_LAUNCHES = ("cuda_runtime", "cuda_driver")


def merge(spans: list[Span]) -> list[Span]:
    """The same times without overlaps, in order."""
    merged: list[Span] = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged


def common(first: list[Span], second: list[Span]) -> float:
    """How long both are; each merged."""
    total, i, j = 0.0, 0, 0
    while i < len(first) and j < len(second):
        total += max(0.0, min(first[i][1], second[j][1]) - max(first[i][0], second[j][0]))
        if first[i][1] < second[j][1]:
            i += 1
        else:
            j += 1
    return total


def backward_spans(events: list[Event]) -> dict[Thread, list[Span]]:
    """By thread, when autograd ran a node there."""
    found: dict[Thread, list[Span]] = defaultdict(list)
    for event in events:
        if event.get("name", "").startswith(_NODE) and "dur" in event:
            found[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    return {thread: merge(spans) for thread, spans in found.items()}


def _is_inside(at: float, spans: list[Span]) -> bool:
    before = bisect_right(spans, (at, float("inf")))
    return before > 0 and at <= spans[before - 1][1]


def summarize(events: list[Event]) -> dict[str, Any]:
    """What a trace says of the overlap.

    Args:
        events: Of a Chrome trace; "ts" and "dur" in microseconds.

    Returns:
        num_kernels and kernels_us of dcomm's kernels; backward_us, when kernels of backward ran; percent_beside_any, of
        dcomm's time, in which a kernel of anybody else ran too, and percent_beside, in which one of backward ran. None
        where there are no kernels of dcomm; percent_beside also where no node of autograd was recorded.
    """
    nodes = backward_spans(events)
    of_backward = {
        event["args"]["correlation"]
        for event in events
        if event.get("cat") in _LAUNCHES and _is_inside(event["ts"], nodes.get((event["pid"], event["tid"]), []))
    }
    ours, others, backward = [], [], []
    for event in events:
        if event.get("cat") != "kernel":
            continue
        span = (event["ts"], event["ts"] + event["dur"])
        if "dcomm" in event["name"]:
            ours.append(span)
            continue
        others.append(span)
        if event["args"].get("correlation") in of_backward:
            backward.append(span)
    mine = merge(ours)
    total = sum(end - begin for begin, end in mine)

    def percent(spans: list[Span]) -> float | None:
        return round(100 * common(mine, merge(spans)) / total, 1) if total > 0 else None

    return {
        "num_kernels": len(ours),
        "kernels_us": round(total, 1),
        "backward_us": round(sum(end - begin for begin, end in merge(backward)), 1),
        "percent_beside": percent(backward) if nodes else None,
        "percent_beside_any": percent(others),
    }


def kernel_times_us(path: Path) -> list[float]:
    """Of each of dcomm's kernels in the trace of a file."""
    events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    return [event["dur"] for event in events if event.get("cat") == "kernel" and "dcomm" in event["name"]]


def read(path: Path) -> dict[str, Any]:
    """summarize() of a file."""
    return summarize(json.loads(path.read_text(encoding="utf-8"))["traceEvents"])


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(argument, json.dumps(read(Path(argument))))
