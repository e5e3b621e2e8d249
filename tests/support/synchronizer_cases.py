"""Models, batches and right gradients for the tests of GradientSynchronizer, whose ranks are threads."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

alone = threading.Lock()  # for what the threads share: the random generator of torch, its compiler
SMALL = {"bucket_bytes": 2000}  # several buckets


def seeded(make: Callable[[], Any], seed: int = 3) -> Any:
    with alone:
        torch.manual_seed(seed)
        return make()


class Branches(nn.Module):
    """Three layers, and two branches of which a step uses one, both or none."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.first = nn.Linear(9, 30, dtype=dtype)
        self.branches = nn.ModuleList(nn.Linear(30, 20, dtype=dtype) for _ in range(2))
        self.last = nn.Linear(20, 5, dtype=dtype)

    def forward(self, x: torch.Tensor, used: tuple[int, ...] = (0, 1)) -> torch.Tensor:
        h = torch.relu(self.first(x))
        return self.last(torch.tanh(sum((self.branches[i](h) for i in used), torch.zeros(20, dtype=x.dtype))))


def batch(step: int, part: int, dtype: torch.dtype = torch.float32, rows: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 * step + part)
    return torch.randn(rows, 9, generator=generator).to(dtype)


def loss_of(model: nn.Module, step: int, part: int, *args: Any, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return model(batch(step, part, dtype), *args).pow(2).mean()


def gradients(model: nn.Module) -> list[torch.Tensor | None]:
    return [None if p.grad is None else p.grad.detach().clone() for p in model.parameters()]


def expected(model: nn.Module, world_size: int, step: int, *args: Any, factor: float | None = None) -> list[Any]:
    """Gradients of the mean loss over all ranks' batches, on a copy of the model."""
    model = copy.deepcopy(model)
    total = sum(loss_of(model, step, part, *args) for part in range(world_size))
    (total * (1 / world_size if factor is None else factor)).backward()
    return gradients(model)


def assert_close(ours: list[Any], theirs: list[Any], tolerance: float = 1e-6) -> None:
    assert [g is None for g in ours] == [g is None for g in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        if mine is not None:
            torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)


def same_bits(results: list[list[Any]]) -> bool:
    return all(
        (a is None and b is None) or torch.equal(a, b)
        for other in results[1:]
        for a, b in zip(results[0], other, strict=True)
    )
