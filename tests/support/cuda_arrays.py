"""What the GPU tests feed to kernels, and how they compare."""

from __future__ import annotations

from typing import Any

SPECIAL = (float("nan"), float("inf"), -float("inf"), -0.0, 1e-40, 65520.0, 3e38, 6e-8)


def make_input(rank: int, count: int, dtype: str) -> Any:
    """Ordinary numbers with a few of every special kind, on the CPU."""
    import torch

    generator = torch.Generator().manual_seed(1000 * rank + count % 997)
    x = torch.randn(count, generator=generator) * 100
    for index in range(0, count, 37):
        x[index] = SPECIAL[(index // 37 + rank) % len(SPECIAL)]
    return x.to(getattr(torch, dtype))


def bits(tensor: Any) -> Any:
    import torch

    return tensor.view(torch.int32 if tensor.element_size() == 4 else torch.int16)
