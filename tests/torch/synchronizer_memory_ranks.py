"""Rank processes of test_synchronizer_memory.py."""

from __future__ import annotations

import resource
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from emulated_gradients import gradients_on
from emulated_process import IPC, VMM, emulated
from synchronizer_cases import SMALL, Branches, gradients, loss_of, same_bits, seeded

import dcomm
from dcomm.torch import GradientSynchronizer


class Crossed(Branches):
    """Its parameters are listed from the last layer to the first: gradients come in another order than is expected."""

    def __init__(self) -> None:
        super().__init__()
        self._modules = {name: self._modules[name] for name in ("last", "branches", "first")}


def _steps(rank: int, sync: Any, model: Any, reference: Any, twin: Any, num_steps: int = 4) -> bool:
    """The same gradients as the reference's in every step; the second one lays the buckets out anew."""
    same = True
    for step in range(num_steps):
        used = (0, 1) if step != 2 else (rank % 2,)
        for each, one in ((sync, model), (reference, twin)):
            loss_of(one, step, rank, used).backward()
            each.finish()
        same = same and same_bits([gradients(model), gradients(twin)])
        for one in (model, twin):
            with torch.no_grad():
                for parameter in one.parameters():
                    if parameter.grad is not None:
                        parameter -= 0.1 * parameter.grad
                    parameter.grad = None
    return same


def on_gpu(
    rank: int, world_size: int, library: str, how: str, broken_rank: int, options: dict[str, Any]
) -> dict[str, Any]:
    """Gradients on an emulated GPU, whose memory `broken_rank` cannot share; beside the same ones on the CPU.

    how: "window": what the gradients would lie in cannot be made. "relaid": nor what they would move to after the first
    step. "no way": nothing of this GPU can be mapped by others.
    """
    torch.set_num_threads(1)
    is_broken = rank == broken_rank
    kinds = 0 if how == "no way" and is_broken else VMM | IPC
    with emulated(library, rank, world_size, kinds=kinds) as (gpu, comm), ExitStack() as stack:
        other = comm.split(0)
        assert other is not None
        twin = seeded(Crossed)
        reference = stack.enter_context(GradientSynchronizer(twin, other, overlap=False, **SMALL, **options))
        if how != "no way":
            comm._core.open_cuda(0)
        if how == "window" and is_broken:
            gpu.library.emulated_process(kinds, -1, 0)
        stack.enter_context(gradients_on(gpu))
        model = seeded(Crossed)
        before = gpu.num_launched
        sync = stack.enter_context(GradientSynchronizer(model, comm, **SMALL, **options))
        if how == "relaid" and is_broken:
            gpu.library.emulated_process(kinds, -1, 0)
        plan = sync._buckets.plan
        same = _steps(rank, sync, model, reference, twin)
        comm.barrier()
        return {
            "same": same,
            "shared": sync.gradients_are_shared,
            "launched": gpu.num_launched > before,
            "kept_plan": sync._buckets.plan == plan,
            "overlaps": sync._overlap,
        }


def on_cpu(rank: int, world_size: int, broken_rank: int) -> dict[str, Any]:
    """A rank has no descriptor left for memory that others could map."""
    torch.set_num_threads(1)
    with dcomm.init(rank=rank, world_size=world_size) as comm, ExitStack() as stack:
        other = comm.split(0)
        assert other is not None
        twin, model = seeded(Crossed), seeded(Crossed)
        reference = stack.enter_context(GradientSynchronizer(twin, other, overlap=False, **SMALL))
        _steps(rank, reference, twin, reference, twin, 1)  # what Python loads late is there
        twin = seeded(Crossed)
        reference.close()
        reference = stack.enter_context(GradientSynchronizer(twin, other, overlap=False, **SMALL))
        comm.all_reduce(np.ones(4, np.float32))  # so is the communicator's own window
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        if rank == broken_rank:
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, limit[1]))
        try:
            sync = stack.enter_context(GradientSynchronizer(model, comm, **SMALL))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        same = _steps(rank, sync, model, reference, twin)
        comm.barrier()
        return {"same": same, "shared": sync.gradients_are_shared}
