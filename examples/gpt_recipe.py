"""How the byte-level GPT is trained, whatever the parallelism: options, learning rate, optimizer, loss."""

from __future__ import annotations

import argparse
import math

import torch
from gpt_model import GPTConfig
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from training import at_least

CLIP_NORM = 1.0


def add_recipe_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", metavar="PATH", help="file or folder of text; the standard library's source if not given")
    add("--micro-batches", type=at_least(1), default=1, help="backward passes per step, sharing the batch")
    add("--block-size", type=at_least(2), default=64, help="bytes per sequence")
    add("--layers", type=at_least(1), default=4)
    add("--heads", type=at_least(1), default=4)
    add("--width", type=at_least(2), default=256, help="channels; a multiple of twice the number of heads")
    add("--warmup", type=at_least(1), default=20, help="steps until the peak learning rate")
    add("--eval-every", type=at_least(1), default=100, help="steps between validations; the last step always")
    add("--eval-windows", type=at_least(1), default=256, help="validation sequences of --block-size bytes")


def config_of(args: argparse.Namespace) -> GPTConfig:
    return GPTConfig(args.layers, args.heads, args.width, args.block_size)


def learning_rate(args: argparse.Namespace, step: int) -> float:
    """Linear warm-up, cosine decay."""
    if step < args.warmup:
        return float(args.lr * (step + 1) / args.warmup)
    progress = (step - args.warmup) / max(1, args.steps - args.warmup)
    return float(args.lr * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress))))


def make_optimizer(model: torch.nn.Module, args: argparse.Namespace) -> torch.optim.AdamW:
    whole = [p for p in model.parameters() if p.ndim >= 2 and not isinstance(p, DTensor)]
    # One kernel updates a group, and takes either tensors or what tensor parallelism made of them.
    sharded = [p for p in model.parameters() if p.ndim >= 2 and isinstance(p, DTensor)]
    gains = [p for p in model.parameters() if p.ndim < 2]
    decays = ((whole, 0.1), (sharded, 0.1), (gains, 0.0))
    groups = [{"params": params, "weight_decay": decay} for params, decay in decays if params]
    return torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95), fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, args: argparse.Namespace, step: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(args, step)


def byte_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean nats per byte; logits (B, T, 256), targets (B, T)."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())
