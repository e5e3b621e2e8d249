"""Training runs of the synchronizer's tests, for ranks that are threads or processes."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples"))

from gpt_model import GPT, GPTConfig
from torch.nn import functional as F

import dcomm
from dcomm.torch import GradientSynchronizer

MICROBATCHES = 8
_seeding = threading.Lock()  # torch's generator is shared by the threads


def sha256(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    return digest.hexdigest()


def train_gpt(comm: dcomm.Communicator, steps: int = 50, **settings: Any) -> str:
    """Trains on 8 microbatches in a step, shared out among the ranks; the SHA-256 of all weights."""
    with _seeding:
        torch.manual_seed(11)
        model = GPT(GPTConfig(num_layers=1, num_heads=2, width=16, block_size=8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    mine = MICROBATCHES // comm.world_size
    with GradientSynchronizer(model, comm, **settings) as sync:
        for step in range(steps):
            for number in range(comm.rank * mine, (comm.rank + 1) * mine):
                generator = torch.Generator().manual_seed(step * MICROBATCHES + number)
                tokens = torch.randint(0, 256, (2, 9), generator=generator)
                loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
                (loss / mine).backward()
            sync.finish()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return sha256(model)


def train_in_processes(rank: int, world_size: int) -> str:
    torch.set_num_threads(1)
    with dcomm.init(rank=rank, world_size=world_size, deterministic=True) as comm:
        return train_gpt(comm, deterministic=True, bucket_bytes=3000)


def beside_ddp(rank: int, world_size: int, folder: str) -> dict[str, Any]:
    """The same model in DDP over gloo and under a synchronizer, then the death of a rank in the middle of backward."""
    import copy

    import torch.distributed as dist
    from rank_main import mark
    from torch.nn.parallel import DistributedDataParallel

    torch.manual_seed(5)
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    plain = torch.nn.Sequential(*[torch.nn.Linear(40, 40) for _ in range(5)])
    ours = copy.deepcopy(plain)
    ddp = DistributedDataParallel(plain, bucket_cap_mb=0.01)
    comm = dcomm.init(rank=rank, world_size=world_size)
    sync = GradientSynchronizer(ours, comm, bucket_bytes=10_000, overlap=rank != 0)  # a local matter
    generator = torch.Generator().manual_seed(rank)
    equal = True
    for _ in range(5):
        x = torch.randn(8, 40, generator=generator)
        for model in (plain, ours):
            model.zero_grad()
        ddp(x).pow(2).sum().backward()
        ours(x).pow(2).sum().backward()
        sync.finish()
        for a, b in zip(plain.parameters(), ours.parameters(), strict=True):
            equal = equal and torch.equal(a.grad, b.grad)
    dist.barrier()
    dist.destroy_process_group()
    result: dict[str, Any] = {"equal": equal, "num_buckets": sync.num_buckets}
    loss = ours(x).sum()
    if rank == world_size - 1:
        mark("dying")
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        loss.backward()
        sync.finish()
    except dcomm.PeerLostError as error:
        result["error"] = str(error)
    sync.close()
    return result
