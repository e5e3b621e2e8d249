"""One rank process of the part "hooks": a profile of DDP steps, and what trace_reader says of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))
from gpu import trace_reader


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
    found: dict[str, Any] = {"served": state.communicator is not None}
    if rank == 0:
        profile.export_chrome_trace(path)
        found |= trace_reader.read(Path(path))
    state.close()
    dist.barrier()
    dist.destroy_process_group()
    return found
