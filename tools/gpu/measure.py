"""The arrays of all ranks on a GPU, and one all-reduce of them by one thread."""

from __future__ import annotations

from typing import Any

import torch

import dcomm
from dcomm.bench.cuda.torch_timing import Enqueue


class Arrays:
    """Inputs and outputs of all ranks; whole numbers, of which sums are exact in float16 too."""

    def __init__(self, world_size: int, count: int) -> None:
        self.ins = [torch.randint(-8, 9, (count,), device="cuda").to(torch.float32) for _ in range(world_size)]
        self.outs = [torch.empty_like(x) for x in self.ins]

    def clear(self) -> None:
        for out in self.outs:
            out.fill_(float("nan"))

    def num_wrong(self) -> int:
        """Elements of all outputs that are not the sum."""
        expected = torch.zeros_like(self.ins[0])
        for x in self.ins:
            expected += x
        return sum(int(torch.count_nonzero(out != expected)) for out in self.outs)

    def reduce(self, comms: list[Any], **arguments: Any) -> Enqueue:
        """One all-reduce of all ranks, called by this thread."""

        def enqueue() -> None:
            with dcomm.group(comms):
                for comm, x, out in zip(comms, self.ins, self.outs, strict=True):
                    comm.all_reduce(x, out=out, **arguments)

        return enqueue
