"""Gradients in memory that all ranks reach: cut into buckets, with a view for each parameter.

      bucket 0 (float32)                  bucket 1 (float32)            bucket 2 (bfloat16)
    | head.weight | head.bias |pad|     | layer2.weight |...|         | ... |
      ^ p.grad      ^ p.grad              ^ p.grad

The core's plan says what lies where (csrc/bucket/plan.h); equal models and an equal order give an equal plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dcomm import _core, arrays
from dcomm.communicator import Communicator

Plan = list[tuple[int, int, list[tuple[int, int]]]]  # dtype code, count, (parameter, offset in elements)


@dataclass
class GradientBucket:
    """Gradients that travel as one message."""

    label: str
    buffer: torch.Tensor  # (count,)
    indices: list[int]  # of its parameters, in launch order


def dtype_code(name: str, dtype: torch.dtype) -> int:
    """The core's number for the dtype of the gradient of parameter `name`.

    Raises:
        TypeError: dcomm does not move it.
    """
    text = str(dtype).removeprefix("torch.")
    if text not in arrays.DTYPE_CODES:
        raise TypeError(f"parameter {name!r} is {text}: expected one of {', '.join(arrays.DTYPE_CODES)}")
    return arrays.DTYPE_CODES[text]


def make_plan(
    parameters: Sequence[torch.Tensor], dtypes: Sequence[int], order: Sequence[int], bucket_bytes: int
) -> Plan:
    """Which gradients travel together, as a pure function of its arguments."""
    counts = [parameter.numel() for parameter in parameters]
    return _core.plan_buckets(counts, list(dtypes), list(order), bucket_bytes, bucket_bytes)


class GradientBuckets:
    """The memory of all gradients of a model: one array that all ranks reach, cut into buckets. Collective to make."""

    def __init__(
        self, comm: Communicator, parameters: Sequence[torch.Tensor], plan: Plan, device: torch.device
    ) -> None:
        self.plan = plan
        self.buckets: list[GradientBucket] = []
        self.bucket_of = [0] * len(parameters)
        lengths = [count * arrays.DTYPE_BYTES[code] for code, count, _ in plan]  # whole cache lines
        self.nbytes = sum(lengths)  # padding included
        memory = comm.empty(self.nbytes, torch.uint8, device=device)
        views: dict[int, torch.Tensor] = {}
        for number, ((code, _, places), part) in enumerate(zip(plan, memory.split(lengths), strict=True)):
            buffer = part.view(getattr(torch, arrays.DTYPE_NAMES[code]))
            self.buckets.append(GradientBucket(str(number), buffer, [index for index, _ in places]))
            for index, offset in places:
                self.bucket_of[index] = number
                views[index] = _view_like(buffer, offset, parameters[index])
        self.views = [views[index] for index in range(len(parameters))]


def _view_like(buffer: torch.Tensor, offset: int, parameter: torch.Tensor) -> torch.Tensor:
    """A part of `buffer` with the parameter's shape, and its strides where these leave no gaps (channels_last, say)."""
    if _is_dense(parameter):
        return buffer.as_strided(parameter.shape, parameter.stride(), buffer.storage_offset() + offset)
    return buffer[offset : offset + parameter.numel()].view(parameter.shape)


def _is_dense(tensor: torch.Tensor) -> bool:
    """True: its elements are all elements of one piece of memory, in some order. As AccumulateGrad of torch asks."""
    expected = 1
    for stride, length in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if length != 1 and stride != expected:
            return False
        expected *= length
    return True
