"""Trains a small network with DistributedDataParallel; its gradients travel through dcomm as float16.

    torchrun --standalone --nproc-per-node 2 examples/03_ddp_hook.py

The same without DDP: GradientSynchronizer, docs/bucketing.md.
"""

import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import dcomm.torch

STEPS = 200


def main() -> None:
    if "RANK" not in os.environ:
        sys.exit("no launcher started this: torchrun --standalone --nproc-per-node 2 examples/03_ddp_hook.py")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")  # DDP asks for one; the gradients do not go through it
    rank = dist.get_rank()

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 1))
    model = DistributedDataParallel(network)
    model.register_comm_hook(dcomm.torch.HookState(), dcomm.torch.fp16_hook)  # the one line that is dcomm's
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    generator = torch.Generator().manual_seed(rank)  # every rank sees points of its own
    losses = []
    for step in range(STEPS):
        x = 6 * torch.rand(128, 1, generator=generator) - 3
        loss = nn.functional.mse_loss(model(x), torch.sin(x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if rank == 0 and (step % 50 == 0 or step == STEPS - 1):
            print(f"step {step:3d}  loss {losses[-1]:.4f}", flush=True)
    assert losses[-1] < 0.1 * losses[0], (losses[0], losses[-1])

    weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    others = [torch.empty_like(weights) for _ in range(dist.get_world_size())]
    dist.all_gather(others, weights)
    assert all(torch.equal(weights, other) for other in others)
    if rank == 0:
        print(f"the same weights on all {len(others)} ranks", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
