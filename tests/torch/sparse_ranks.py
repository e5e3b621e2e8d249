"""Rank processes of test_backend_sparse.py."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import dcomm.torch  # noqa: F401


def start(rank: int, world_size: int, folder: str, backend: str = "dcomm") -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", world_size)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=60))


def dense(rank: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Rows of small numbers, most of them 0; rank 1 has none at all."""
    x = torch.zeros(shape, dtype=dtype)
    if rank != 1:
        for row in range(rank % 2, shape[0], rank + 2):
            x[row] = row + rank + 1
    return x


def sums(rank: int, world_size: int, folder: str) -> list[str]:
    """What differs from the sum of dense tensors."""
    start(rank, world_size, folder)
    wrong = []
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.int64):
        for shape, sparse_dim in (((7,), 1), ((7, 3), 1), ((7, 3), 2), ((5, 2, 3), 2)):
            for is_async in (False, True):
                x = dense(rank, shape, dtype).to_sparse(sparse_dim)
                work = dist.all_reduce(x, async_op=is_async)
                if work is not None:
                    work.wait()
                expected = sum(dense(each, shape, dtype) for each in range(world_size))
                if not (x.is_coalesced() and x.sparse_dim() == sparse_dim and torch.equal(x.to_dense(), expected)):
                    wrong.append(f"{dtype} {shape} {sparse_dim} {is_async}: {x}")
    twice = torch.sparse_coo_tensor([[1, 1, 0]], [1.0, 2.0, 4.0], (3,))  # one place named twice
    dist.all_reduce(twice)
    if twice.to_dense().tolist() != [4.0 * world_size, 3.0 * world_size, 0.0]:
        wrong.append(f"not coalesced before: {twice}")
    dist.destroy_process_group()
    return wrong


def embedding(rank: int, world_size: int, folder: str) -> dict[str, list[list[float]]]:
    """The weights after three steps of DDP with sparse gradients, on gloo and on dcomm."""
    weights = {}
    for backend in ("gloo", "dcomm"):
        place = f"{folder}/{backend}"
        Path(place).mkdir(exist_ok=True)
        start(rank, world_size, place, backend)
        torch.manual_seed(1)
        model = torch.nn.Sequential(torch.nn.Embedding(11, 4, sparse=True), torch.nn.Linear(4, 2))
        ddp = torch.nn.parallel.DistributedDataParallel(model)
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
        for step in range(3):
            optimizer.zero_grad()
            ddp(torch.tensor([rank, step, 5])).square().mean().backward()
            assert model[0].weight.grad.is_sparse
            optimizer.step()
        dist.destroy_process_group()
        weights[backend] = [each.flatten().tolist() for each in model.parameters()]
    return weights


def refused(rank: int, world_size: int, folder: str) -> dict[str, Any]:
    """Texts of errors; the group goes on after each."""
    start(rank, world_size, folder)
    told = {}
    for name, x, op in (
        ("op", torch.eye(3).to_sparse(), dist.ReduceOp.MAX),
        ("shape", torch.eye(3 + rank).to_sparse(), dist.ReduceOp.SUM),
        ("sparse_dim", torch.eye(3).to_sparse(1 + rank % 2), dist.ReduceOp.SUM),
        ("layout", torch.eye(3).to_sparse_csr(), dist.ReduceOp.SUM),
    ):
        try:
            dist.all_reduce(x, op)
        except (ValueError, TypeError) as error:
            told[name] = str(error)
    y = torch.ones(1)
    dist.all_reduce(y)
    told["after"] = y.item()
    dist.destroy_process_group()
    return told
