"""A byte-level GPT small enough to learn on two CPU cores: rotary positions, squared ReLU, tied embeddings.

Shapes: B sequences of T bytes, C channels, H heads. Nothing here knows about processes or devices.
Sources: rotary positions, arXiv 2104.09864; squared ReLU, arXiv 2109.08668; normalized queries and keys,
arXiv 2010.04245.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NUM_BYTES = 256


@dataclass(frozen=True)
class GPTConfig:
    """What determines the parameter shapes; stored in checkpoints."""

    num_layers: int = 4
    num_heads: int = 4
    width: int = 256
    block_size: int = 128


class Attention(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k = (rotate(F.rms_norm(part, part.shape[-1:]), cos[:length], sin[:length]) for part in (q, k))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        merged: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return merged


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns channel pairs by an angle that grows with the position; x: (B, H, T, C / H)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class Block(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width)
        self.attention = Attention(config)
        self.mlp_norm = nn.RMSNorm(config.width)
        self.expand = nn.Linear(config.width, 4 * config.width, bias=False)
        self.contract = nn.Linear(4 * config.width, config.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        hidden: Tensor = self.expand(self.mlp_norm(x))
        update: Tensor = self.contract(F.relu(hidden).square())
        return x + update


class GPT(nn.Module):
    """Maps bytes (B, T) to logits over the next byte (B, T, 256)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(NUM_BYTES, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.width)
        half = config.width // config.num_heads // 2
        angles = torch.arange(config.block_size)[:, None] * (1e-4 ** (torch.arange(half) / half))[None, :]
        self.cos: Tensor
        self.sin: Tensor
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:
                continue
            if name.endswith(("out.weight", "contract.weight")):
                nn.init.zeros_(parameter)  # Blocks start as the identity, which bears a high learning rate.
            else:
                # The tied embedding starts small, else each byte starts out sure to be followed by itself.
                nn.init.normal_(parameter, std=0.02 if name == "embedding.weight" else config.width**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = F.rms_norm(self.embedding(tokens), (self.config.width,))
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return F.linear(self.norm(x), self.embedding.weight)

    @torch.no_grad()
    def generate(self, prompt: bytes, num_new_bytes: int, *, temperature: float, seed: int) -> bytes:
        """Continues `prompt`; deterministic for one seed, device and torch version."""
        device = self.embedding.weight.device
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.tensor([list(prompt)], device=device)
        for _ in range(num_new_bytes):
            logits = self(tokens[:, -self.config.block_size :])[0, -1].float().cpu()
            choice = torch.multinomial(torch.softmax(logits / temperature, dim=-1), 1, generator=generator)
            tokens = torch.cat((tokens, choice.to(device)[None, :]), dim=1)
        return bytes(tokens[0].tolist())
