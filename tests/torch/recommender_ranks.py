"""Rank processes of test_train_recommender.py: the sharded tables beside one whole table."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
from train_recommender import ShardedTables
from training import Job

TABLE_ROWS = [7, 1, 20]
WIDTH = 4
# Rank r's batch. Ranks ask for different numbers of rows, rank 1 of 3 for none of rank 2's; sorting rank 0's rows by
# owner is no permutation that undoes itself.
BATCHES = [[[5, 0, 19], [0, 0, 3], [6, 0, 2], [1, 0, 0]], [[0, 0, 1]], [[1, 0, 2], [5, 0, 18]]]


def run(rank: int, world_size: int, store: str, backend: str) -> dict[str, float]:
    """How far looked-up rows, and gradients of the mean over ranks, are from those of a whole table."""
    torch.set_num_threads(1)
    import dcomm.torch  # noqa: F401

    options = {"store": dist.FileStore(store, world_size), "rank": rank, "world_size": world_size}
    dist.init_process_group(backend, timeout=timedelta(seconds=30), **options)
    job = Job(rank, world_size, True, torch.device("cpu"), backend)
    tables = ShardedTables(TABLE_ROWS, WIDTH, job, seed=3)
    factors = torch.randn(sum(map(len, BATCHES)), 3, WIDTH, generator=torch.Generator().manual_seed(1))
    embedded = tables(torch.tensor(BATCHES[rank]))
    first = sum(map(len, BATCHES[:rank]))
    (embedded * factors[first : first + len(BATCHES[rank])]).sum().backward()

    whole = torch.randn(sum(TABLE_ROWS), WIDTH, generator=torch.Generator().manual_seed(3)) * WIDTH**-0.5
    whole.requires_grad_()
    offsets = torch.tensor([0, 7, 8])
    everything = whole[torch.cat([torch.tensor(batch) for batch in BATCHES[:world_size]]) + offsets]
    (everything * factors[: len(everything)]).sum().div(world_size).backward()
    gradient = tables.local.weight.grad
    assert whole.grad is not None
    difference = gradient.to_dense() - whole.grad[rank::world_size]
    expected = everything[first : first + len(BATCHES[rank])]
    touched = set(gradient.coalesce().indices()[0].tolist())
    mine = set(whole.grad[rank::world_size].abs().sum(dim=1).nonzero()[:, 0].tolist())
    dist.barrier()
    dist.destroy_process_group()
    return {
        "rows": float((embedded - expected).abs().max()),
        "gradient": float(difference.abs().max()),
        "rows touched in vain": float(len(touched - mine)),
    }
