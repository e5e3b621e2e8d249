"""Gradients of a model in one piece of memory: cut into buckets, with a view for each parameter.

      bucket 0 (float32)                  bucket 1 (float32)            bucket 2 (bfloat16)
    | head.weight | head.bias |pad|     | layer2.weight |...|         | ... |
      ^ p.grad      ^ p.grad              ^ p.grad

The core's plan says what lies where (csrc/bucket/plan.h); equal models and an equal order give an equal plan. All ranks
reach the memory where there is such memory; else it is the device's ordinary one (find_buckets).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dcomm import _core, arrays
from dcomm.communicator import Communicator
from dcomm.errors import CudaError, DcommError, SharedMemoryError
from dcomm.torch import agreement

Plan = list[tuple[int, int, list[tuple[int, int]]]]  # dtype code, count, (parameter, offset in elements)


@dataclass
class GradientBucket:
    """Gradients that travel as one message."""

    label: str
    buffer: torch.Tensor  # (count,)
    indices: list[int]  # of its parameters, in launch order
    start: int  # bytes from the beginning of the memory

    def part_of(self, numbers: torch.Tensor) -> torch.Tensor:
        """(count,): its part of a tensor that has a float32 number for every 4 bytes of the memory."""
        assert self.buffer.dtype is torch.float32
        return numbers[self.start // 4 : self.start // 4 + self.buffer.numel()]


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
    """The memory of all gradients of a model, cut into buckets. Collective to make.

    The plan's buckets are the smallest there are; :meth:`cut` lets neighbours travel together, without moving anything.

    Args:
        comm: Of the ranks.
        parameters: Of the model.
        plan: Of their gradients.
        device: Of the gradients.
        is_shared: True: all ranks reach the memory, and a bucket is reduced where it lies. False: ordinary memory.

    Raises:
        CudaError, SharedMemoryError: No such memory, on this rank or another; on all ranks, with the same text.
    """

    def __init__(
        self,
        comm: Communicator,
        parameters: Sequence[torch.Tensor],
        plan: Plan,
        device: torch.device,
        is_shared: bool = True,
    ) -> None:
        """Allocate it, zeroed, and make the views."""
        self.plan = plan
        self.is_shared = is_shared
        self._parameters = parameters
        lengths = [count * arrays.DTYPE_BYTES[code] for code, count, _ in plan]  # whole cache lines
        self._starts = [sum(lengths[:number]) for number in range(len(plan))]
        self.nbytes = sum(lengths)  # padding included
        self._memory = _allocate(comm, self.nbytes, device, is_shared)
        self.device = self._memory.device
        self._places: dict[int, int] = {}  # by parameter: bytes from the beginning
        for start, (code, _, places) in zip(self._starts, plan, strict=True):
            for index, offset in places:
                self._places[index] = start + offset * arrays.DTYPE_BYTES[code]
        self.buckets: list[GradientBucket] = []
        self.bucket_of = [0] * len(parameters)
        self.cut(0)
        views: dict[int, torch.Tensor] = {}
        for bucket in self.buckets:
            for index in bucket.indices:
                offset = (self._places[index] - bucket.start) // bucket.buffer.element_size()
                views[index] = _view_like(bucket.buffer, offset, parameters[index])
        self.views = [views[index] for index in range(len(parameters))]

    def groups(self, bucket_bytes: int) -> list[list[int]]:
        """Which of the plan's buckets travel together in messages of at most `bucket_bytes`, if they alone are no more.

        Neighbours of one dtype. Equal plans give equal groups.
        """
        found: list[list[int]] = []
        for number, (code, count, _) in enumerate(self.plan):
            end = self._starts[number] + count * arrays.DTYPE_BYTES[code]
            fits = found and self.plan[found[-1][0]][0] == code and end - self._starts[found[-1][0]] <= bucket_bytes
            if fits:
                found[-1].append(number)
            else:
                found.append([number])
        return found

    def cut(self, bucket_bytes: int) -> None:
        """Make the buckets those of :meth:`groups`; gradients and their views stay where they are."""
        self.buckets = []
        for number, group in enumerate(self.groups(bucket_bytes)):
            code = self.plan[group[0]][0]
            start = self._starts[group[0]]
            nbytes = sum(self.plan[part][1] for part in group) * arrays.DTYPE_BYTES[code]
            buffer = self._memory[start : start + nbytes].view(getattr(torch, arrays.DTYPE_NAMES[code]))
            indices = [index for part in group for index, _ in self.plan[part][2]]
            self.buckets.append(GradientBucket(str(number), buffer, indices, start))
            for index in indices:
                self.bucket_of[index] = number

    def view_in(self, numbers: torch.Tensor, index: int) -> torch.Tensor:
        """Parameter `index`'s part, in its shape, of a tensor that has a float32 number for every 4 bytes of memory."""
        return _view_like(numbers, self._places[index] // 4, self._parameters[index])


def find_buckets(
    comm: Communicator, parameters: Sequence[torch.Tensor], plan: Plan, device: torch.device
) -> tuple[GradientBuckets, str]:
    """Buckets in memory that all ranks reach; where some rank cannot make it, in ordinary memory on all. Collective.

    Returns:
        The buckets, and why they are in ordinary memory: the same text on all ranks, "" where they are not.

    Raises:
        CudaError, SharedMemoryError: Not even ordinary memory, on this rank or another; on all ranks.
    """
    try:
        return GradientBuckets(comm, parameters, plan, device), ""
    except (CudaError, SharedMemoryError) as error:
        problem = str(error)
    return GradientBuckets(comm, parameters, plan, device, is_shared=False), problem


def _allocate(comm: Communicator, nbytes: int, device: torch.device, is_shared: bool) -> torch.Tensor:
    """(nbytes,) zeros, ready on every stream; as GradientBuckets raises."""
    own = ""
    try:
        memory = comm.empty(nbytes, torch.uint8, device=device) if is_shared else _ordinary(nbytes, device)
    except (CudaError, SharedMemoryError) as error:  # all ranks raise it
        own = str(error)
    except DcommError:  # a rank is lost, or late: nothing to agree on
        raise
    except RuntimeError as error:  # torch's, of this rank alone: no memory
        own = str(error) or type(error).__name__
    problem = agreement.share_problem(comm, own)
    if problem:
        raise (SharedMemoryError if device.type == "cpu" else CudaError)(problem)
    return memory


def _ordinary(nbytes: int, device: torch.device) -> torch.Tensor:
    memory = torch.zeros(nbytes, dtype=torch.uint8, device=device)
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    return memory


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
