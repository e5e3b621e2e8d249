"""One rank process of the part "hooks": a profile of DDP steps, and how much of dcomm's kernels lies beside backward's.

Needs no GPU for its arithmetic (share_beside).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Span = tuple[float, float]


def merge(spans: list[Span]) -> list[Span]:
    """The same times without overlaps, in order."""
    merged: list[Span] = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged


def share_beside(events: list[dict[str, Any]]) -> float | None:
    """Percent of the time of dcomm's kernels in which another kernel runs too; None: there are none of dcomm's.

    Args:
        events: Of a Chrome trace; "ts" and "dur" in microseconds.
    """
    kernels = [event for event in events if event.get("cat") == "kernel"]
    ours, theirs = (
        merge([(e["ts"], e["ts"] + e["dur"]) for e in kernels if ("dcomm" in e["name"]) == own])
        for own in (True, False)
    )
    total = sum(end - begin for begin, end in ours)
    beside = sum(max(0.0, min(a[1], b[1]) - max(a[0], b[0])) for a in ours for b in theirs)
    return 100 * beside / total if total > 0 else None


def trace(rank: int, world_size: int, folder: str, path: str, hook: str) -> dict[str, Any]:
    """Trains; rank 0 writes the trace of three steps to `path`."""
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    import dcomm.torch

    dist.init_process_group(
        "gloo", store=dist.FileStore(f"{folder}/store", world_size), rank=rank, world_size=world_size
    )
    model = torch.nn.Sequential(*[torch.nn.Linear(2048, 2048) for _ in range(12)]).cuda()
    ddp = DistributedDataParallel(model)
    state = dcomm.torch.HookState()
    ddp.register_comm_hook(state, getattr(dcomm.torch, hook))
    x = torch.randn(4096, 2048, device="cuda")

    def step() -> None:
        ddp(x).square().mean().backward()
        model.zero_grad()

    for _ in range(5):
        step()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(3):
            step()
        torch.cuda.synchronize()
    served = state.communicator is not None
    share = None
    if rank == 0:
        profile.export_chrome_trace(path)
        share = share_beside(json.loads(Path(path).read_text(encoding="utf-8"))["traceEvents"])
    state.close()
    dist.barrier()
    dist.destroy_process_group()
    return {"served": served, "percent_beside": None if share is None else round(share, 1)}
