"""What torch does in one process for the sum of N arrays in each of N others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Arrays = list[torch.Tensor]


def stack_sum(ins: Arrays, outs: Arrays) -> None:
    """Sum of a stack, then a copy to every rank."""
    total = torch.sum(torch.stack(ins), 0)
    torch._foreach_copy_(outs, [total] * len(outs))


def foreach_chain(ins: Arrays, outs: Arrays) -> None:
    """Added up in the first output, which the others copy."""
    outs[0].copy_(ins[0])
    for x in ins[1:]:
        torch._foreach_add_(outs[:1], [x])
    torch._foreach_copy_(outs[1:], outs[:1] * (len(outs) - 1))


def _add_and_copy(ins: Arrays, outs: Arrays) -> None:
    total = ins[0]
    for x in ins[1:]:
        total = total + x
    for out in outs:
        out.copy_(total)


def compiled() -> Callable[[Arrays, Arrays], Any]:
    """One kernel made by torch.compile, for the shapes of its first call. Fails there where there is no compiler."""
    torch._dynamo.reset()  # else the limit of recompilations ends in eager code
    made: Callable[[Arrays, Arrays], Any] = torch.compile(_add_and_copy, dynamic=False, fullgraph=True)
    return made


NAMES = ("torch.compile", "torch._foreach_add_", "torch stack+sum")


def rival(name: str) -> Callable[[Arrays, Arrays], Any]:
    if name == "torch.compile":
        return compiled()
    return foreach_chain if name == "torch._foreach_add_" else stack_sum
