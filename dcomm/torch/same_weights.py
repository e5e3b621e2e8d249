"""A training in miniature that shows what deterministic=True is for: equal weights whatever the number of ranks.

``python -m dcomm`` prints its outcome. Ranks are threads of this process.
"""

from __future__ import annotations

import hashlib
import threading

import torch

import dcomm
from dcomm.communicator import Communicator
from dcomm.torch.synchronizer import GradientSynchronizer

NUM_STEPS = 20
NUM_MICROBATCHES = 8  # of the global batch, shared out among the ranks


def weights_sha256(world_size: int, *, deterministic: bool = True) -> str:
    """Train on `world_size` ranks; the SHA-256 of all weights, which are the same on every rank.

    Args:
        world_size: 1, 2, 4 or 8.
        deterministic: Of the synchronizer.

    Raises:
        DcommError: A rank failed, or the ranks' weights differ.
    """
    found: list[str | BaseException] = [dcomm.DcommError("a rank did not end within 60 s")] * world_size
    comms = dcomm.init_threads(world_size)

    def run(comm: Communicator) -> None:
        try:
            found[comm.rank] = _train(comm, deterministic)
        except BaseException as error:
            found[comm.rank] = error
            comm.abort()

    threads = [threading.Thread(target=run, args=(comm,), daemon=True) for comm in comms]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    for outcome in found:
        if isinstance(outcome, BaseException):
            raise outcome
    for comm in comms:
        comm.close()
    if len(set(found)) != 1:
        raise dcomm.DcommError(f"the ranks' weights differ: {found}")
    return str(found[0])


def _train(comm: Communicator, deterministic: bool) -> str:
    generator = torch.Generator().manual_seed(0)  # not torch's own: the threads share that
    model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.Tanh(), torch.nn.Linear(64, 8))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 8)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    num_mine = NUM_MICROBATCHES // comm.world_size
    with GradientSynchronizer(model, comm, deterministic=deterministic) as sync:
        for _ in range(NUM_STEPS):
            batch = torch.randn(NUM_MICROBATCHES, 4, 32, generator=generator)
            for x in batch[comm.rank * num_mine : (comm.rank + 1) * num_mine]:
                ((model(x) - x[:, :8].sin()).square().mean() / num_mine).backward()
            sync.finish()
            optimizer.step()
            optimizer.zero_grad()
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    return digest.hexdigest()
