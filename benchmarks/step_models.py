"""The workloads of benchmarks/ddp_step.py: models, their batches and losses, equal on every rank but for the data."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from shapes import resnet50
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))
from gpt_model import GPT, GPTConfig


class Workload(NamedTuple):
    """A model and one rank's batch of it; `loss` gives a scalar."""

    title: str
    model: Callable[[], nn.Module]
    batch: Callable[[int], tuple[Tensor, ...]]  # by rank
    loss: Callable[[nn.Module, tuple[Tensor, ...]], Tensor]
    lr: float


def _mlp() -> nn.Module:
    """23.9 M parameters in 46 tensors."""
    layers: list[nn.Module] = []
    for _ in range(22):
        layers += [nn.Linear(1024, 1024), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(1024, 800))


def _mlp_batch(rank: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(32, 1024, generator=generator), torch.randint(800, (32,), generator=generator)


def _mlp_loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def _tiny() -> nn.Module:
    return nn.Sequential(nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 800))


def _gpt() -> nn.Module:
    """25.3 M parameters in 50 tensors."""
    return GPT(GPTConfig(num_layers=8, num_heads=8, width=512, block_size=128))


def _gpt_batch(rank: int) -> tuple[Tensor, ...]:
    tokens = torch.randint(256, (2, 129), generator=torch.Generator().manual_seed(rank))
    return tokens[:, :-1], tokens[:, 1:]


def _gpt_loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())


class ShapesOnly(nn.Module):
    """Parameters of given shapes and next to no computation: what is left of a step is its communication.

    Parameter i is multiplied by the constant i + 1 + a number of the batch, so its gradient is that.
    """

    def __init__(self, shapes: list[tuple[int, ...]]) -> None:
        super().__init__()
        self.parts = nn.ParameterList(torch.full(shape, 0.01) for shape in shapes)

    def forward(self, number: Tensor) -> Tensor:
        return torch.stack([part.sum() * (i + number) for i, part in enumerate(self.parts, 1)]).sum()


def _shapes_batch(rank: int) -> tuple[Tensor, ...]:
    return (torch.tensor(float(rank)),)


def _shapes_loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    loss: Tensor = model(batch[0])
    return loss


WORKLOADS = {
    "mlp": Workload("MLP, 23.9 M parameters, batch 32", _mlp, _mlp_batch, _mlp_loss, 1e-3),
    "gpt": Workload("GPT, 25.3 M parameters, batch 2 x 128", _gpt, _gpt_batch, _gpt_loss, 1e-3),
    "resnet50": Workload(
        "ResNet-50's tensors without its computation",
        lambda: ShapesOnly(resnet50()),
        _shapes_batch,
        _shapes_loss,
        1e-6,
    ),
    "tiny": Workload("MLP, 30,000 parameters: for tests", _tiny, _mlp_batch, _mlp_loss, 1e-3),
}
