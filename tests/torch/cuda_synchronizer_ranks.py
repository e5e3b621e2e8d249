"""Rank processes of test_synchronizer_cuda.py."""

from __future__ import annotations

from typing import Any

import torch
from emulated_gradients import gradients_on
from emulated_process import emulated
from synchronizer_cases import SMALL, Branches, gradients, loss_of, same_bits, seeded

from dcomm.torch import GradientSynchronizer


def overlaps(rank: int, world_size: int, library: str) -> dict[str, Any]:
    """A few steps with gradients on the GPU, beside the same ones on the CPU."""
    torch.set_num_threads(1)
    with emulated(library, rank, world_size) as (gpu, comm):
        other = comm.split(0)
        assert other is not None
        with gradients_on(gpu):
            model = seeded(Branches)
            sync = GradientSynchronizer(model, comm, **SMALL)
        twin = seeded(Branches)
        reference = GradientSynchronizer(twin, other, overlap=False, **SMALL)
        in_backward, started, same = 0, [], True
        with gradients_on(gpu):  # the second step lays the buckets out anew
            for step in range(4):
                loss_of(model, step, rank).backward()
                in_backward = len(sync._launcher.started) - len(started)
                sync.finish()
                started = list(sync._launcher.started)
                loss_of(twin, step, rank).backward()
                reference.finish()
                same = same and same_bits([gradients(model), gradients(twin)])
                for each in (model, twin):
                    with torch.no_grad():
                        for parameter in each.parameters():
                            parameter -= 0.1 * parameter.grad
                            parameter.grad = None
        sync.close()
        reference.close()
        comm.barrier()
        return {"started": started, "in_backward": in_backward, "same": same}
