"""What torch does in one process for the sum of N arrays in each of N others; the rival "torch".

Runs in CI on CPU tensors, torch.compile excepted; not run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dcomm.bench.cuda.case import CudaCase
from dcomm.bench.cuda.engine import Engine, Pairs

if TYPE_CHECKING:
    import torch

    Arrays = list[torch.Tensor]


def stack_sum(ins: Arrays, outs: Arrays) -> None:
    """Sum of a stack, then a copy to every rank."""
    import torch

    total = torch.sum(torch.stack(ins), 0)
    torch._foreach_copy_(outs, [total] * len(outs))


def foreach_chain(ins: Arrays, outs: Arrays) -> None:
    """Added up in the first output, which the others copy."""
    import torch

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
    import torch

    torch._dynamo.reset()  # else the limit of recompilations ends in eager code
    made: Callable[[Arrays, Arrays], Any] = torch.compile(_add_and_copy, dynamic=False, fullgraph=True)
    return made


NAMES = ("torch.compile", "torch._foreach_add_", "torch stack+sum")


def composite(name: str) -> Callable[[Arrays, Arrays], Any]:
    """One of NAMES, as a function of the ranks' inputs and outputs."""
    if name == "torch.compile":
        return compiled()
    return foreach_chain if name == "torch._foreach_add_" else stack_sum


class Composites:
    """The rival as a side of the bench: this process has all ranks' arrays."""

    def __init__(self, comm: Any, engine: Engine, world_size: int, store: str) -> None:
        """`comm`, `store`: of other sides."""
        self.ranks, self.world_size, self.versions = list(range(world_size)), world_size, dict[str, str]()
        self._engine = engine

    def pairs(self, case: CudaCase) -> Pairs:
        """See :class:`dcomm.bench.cuda.sides.Side`."""
        return self._engine.pairs(case, self.ranks, self.world_size)

    def call(self, case: CudaCase, pairs: Pairs) -> Callable[[], Any]:
        """See :class:`dcomm.bench.cuda.sides.Side`."""
        function = composite(case.variant)
        ins, outs = [x for x, _ in pairs], [out for _, out in pairs]
        return lambda: function(ins, outs)

    def meet(self) -> None:
        """There is one process."""

    def close(self) -> None:
        """Nothing is held."""
