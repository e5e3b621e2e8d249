"""A rank's part of the GPT: some of its blocks (pipeline), some of their heads and channels (tensor parallelism).

Tensor parallelism is that of Megatron-LM (arXiv 1909.08053): the first matrix of attention and MLP is split by columns
of its output, the second by rows of its input, so that each of the two costs one sum over the ranks forward and one
backward. Embedding and gains are whole on every rank: 256 bytes are not worth splitting.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from gpt_model import GPT, Block
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn import functional as F


class Stage(nn.Module):
    """Blocks `index` of `num_stages` of a GPT; parameters are named as in the whole model.

    The first stage takes bytes (B, T), others channels (B, T, C); the last gives logits (B, T, 256), others channels.
    First and last stage both have the embedding, which is tied: their gradients belong together.
    """

    def __init__(self, model: GPT, index: int, num_stages: int) -> None:
        super().__init__()
        self.is_first, self.is_last = index == 0, index == num_stages - 1
        self.width = model.config.width
        mine = torch.tensor_split(torch.arange(len(model.blocks)), num_stages)[index].tolist()
        self.blocks = nn.ModuleDict({str(i): model.blocks[i] for i in mine})
        if self.is_first or self.is_last:
            self.embedding = model.embedding
        if self.is_last:
            self.norm = model.norm
        self.register_buffer("cos", model.cos, persistent=False)
        self.register_buffer("sin", model.sin, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.is_first:
            x = F.rms_norm(self.embedding(x), (self.width,))
        for block in self.blocks.values():
            x = block(x, self.cos, self.sin)
        return F.linear(self.norm(x), self.embedding.weight) if self.is_last else x


def shard_block(block: Block, mesh: DeviceMesh) -> None:
    """Leaves this rank its share of heads and MLP channels; `mesh` has one dimension, which divides the heads."""
    attention = block.attention
    with torch.no_grad():
        attention.qkv.weight.copy_(heads_together(attention.qkv.weight, mesh.size()))
    attention.num_heads //= mesh.size()
    plan = {
        "attention.qkv": ColwiseParallel(),
        "attention.out": RowwiseParallel(),
        "expand": ColwiseParallel(),
        "contract": RowwiseParallel(),
    }
    parallelize_module(block, mesh, plan)


def heads_together(weight: Tensor, num_parts: int) -> Tensor:
    """Rows (q k v, all heads of each) as (part, q k v, the part's heads): each part is then a block of rows."""
    width = weight.shape[1]
    return weight.view(3, num_parts, -1, width).transpose(0, 1).reshape(-1, width)


def heads_apart(weight: Tensor, num_parts: int) -> Tensor:
    """Undoes `heads_together`."""
    width = weight.shape[1]
    return weight.view(num_parts, 3, -1, width).transpose(0, 1).reshape(-1, width)


def local_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a parameter or gradient."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole_weights(stage: Stage, tp: int, pp: dist.ProcessGroup) -> dict[str, Tensor]:
    """The state dict of the whole GPT, on the CPU of every rank. Collective over both dimensions."""
    mine: dict[str, Tensor] = {}
    for name, value in stage.state_dict().items():
        if isinstance(value, DTensor):
            value = value.full_tensor()
            if name.endswith("qkv.weight"):
                value = heads_apart(value, tp)
        mine[name] = value.detach().cpu()
    parts: list[Any] = [None] * dist.get_world_size(pp)
    dist.all_gather_object(parts, mine, group=pp)
    return {name: value for part in parts for name, value in part.items()}
