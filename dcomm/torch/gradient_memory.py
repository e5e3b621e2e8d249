"""DDP's gradients become views of the memory that a bucket is reduced into, which stays from step to step.

Without ``gradient_as_bucket_view`` autograd allocates every gradient anew, DDP copies it into a bucket, and copies the
average back at the end of backward. The C allocator returns such memory to the kernel and gets it back page by page,
which takes longer than the exchange; and nothing overlaps the copy back. Here a bucket is reduced into other memory,
its result, and as soon as DDP has copied a gradient into the bucket the gradient is replaced by its part of the result:
DDP finds its copy back done, and the fresh gradient is freed while backward goes on.

This must be invisible: a gradient is replaced only if this backward pass computed it (DDP then copies an average
back) and nothing but its parameter refers to it; and a result is written to only if no tensor of an earlier step shares
its memory on any rank. The ranks find out together, for they write into each other's results.
"""

from __future__ import annotations

import sys
import weakref
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from torch._C._distributed_c10d import GradBucket
from torch.utils.weak import WeakIdKeyDictionary

from dcomm.communicator import Communicator
from dcomm.errors import SharedMemoryError
from dcomm.torch.bucket_memory import SETTLED

# Measured (docs/decisions.md): with smaller gradients too, steps that have many of them become slower.
_LEAST_BYTES = 4 * 1024 * 1024
# glibc takes less than this from its heap in the end (mallopt(3), M_MMAP_THRESHOLD), and maps more by itself.
_HEAP_BYTES = 32 * 1024 * 1024
_NO_PASS = -1  # what torch calls the backward pass outside of any
# NumPy's arrays carry the memory, and NumPy has no bfloat16.
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass
class _Lent:
    """A gradient that is part of a result."""

    parameter: torch.Tensor
    grad: torch.Tensor
    offset: int  # of its first element in the result


@dataclass
class _Result:
    """What one bucket is reduced into."""

    whole: torch.Tensor  # (count,), all that DDP sees of it
    elements: Any  # the same memory, a NumPy array of integers
    num_tensors: int  # over it, those that DDP keeps included
    lent: list[_Lent] = field(default_factory=list)  # in this backward pass
    holders: list[Any] = field(default_factory=list)  # weak references to the arrays that gradients are made of
    retired: bool = False

    def is_free(self) -> bool:
        self.holders = [holder for holder in self.holders if holder() is not None]
        return not (self.holders or self.retired)

    def settle(self) -> None:
        """Give what was lent a storage of its own, by which its users can be told from DDP's views."""
        if _storage_uses(self.whole) > self.num_tensors + len(self.lent):
            self.retired = True  # something took a gradient before backward was over
        for lent in self.lent:
            if lent.parameter.grad is not lent.grad:
                continue
            array = self.elements[lent.offset : lent.offset + lent.grad.numel()]
            own = torch.from_numpy(array).view(lent.grad.dtype)
            lent.parameter.grad = own.as_strided(lent.grad.size(), lent.grad.stride()).data
            self.holders.append(weakref.ref(array))
        self.lent.clear()


@dataclass
class _Known:
    """A bucket that was seen; count and dtype are the same on all ranks."""

    count: int
    dtype: torch.dtype
    calls: int = 0
    result: _Result | None = None


class GradientMemory:
    """The results of one DDP module's buckets, and the gradients that lie in them.

    Args:
        comm: Of the module's ranks.
        wanted: False: this rank only tells the others that there will be none.
    """

    def __init__(self, comm: Communicator, wanted: bool) -> None:
        """Nothing is allocated before the third step."""
        self._comm = comm
        self._wanted = wanted
        self._known: dict[int, _Known] = {}
        self._passes = WeakIdKeyDictionary()  # parameter: the backward pass that computed its gradient last
        self._handles: list[Any] = []
        self._late: list[tuple[_Result, torch.Tensor, torch.Tensor]] = []
        self._pass = _NO_PASS  # of the last call
        self._free: Any = numpy.zeros(0, numpy.uint8)  # by bucket: its result, on all ranks
        self._agreeing: Any = None
        self._last: torch.Tensor | None = None  # in memory, of the gradients that were replaced
        self._unshared = _references_of_a_fresh_gradient()

    def result_of(self, bucket: GradBucket, tensor: torch.Tensor) -> torch.Tensor | None:
        """Where to reduce a complete bucket into, None: in place. Collective.

        DDP has filled the bucket, and passes its buckets in the order of their numbers: inside backward, or, in its
        ``join()``, on a rank that has no more steps, outside of any.

        Args:
            bucket: As the hook gets it.
            tensor: (count,) its gradients.
        """
        results = {index: known.result for index, known in self._known.items() if known.result is not None}
        if results and bucket.index() == 0:
            self._find_out_what_is_free(results)
        if results:
            self._attend_backward()
        known = self._known.get(bucket.index())
        if known is None or known.count != tensor.numel() or known.dtype != tensor.dtype:
            known = self._known[bucket.index()] = _Known(tensor.numel(), tensor.dtype)
        known.calls += 1
        if known.calls == SETTLED:
            known.result = self._make_result(bucket, tensor)
        elif known.result is not None and self._is_free_on_all_ranks(bucket.index()):
            self._lend(known.result, bucket, tensor)
            return known.result.whole
        return None

    def close(self) -> None:
        """Leave the parameters alone; gradients that lie in a result stay valid."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._known.clear()
        self._passes.clear()
        self._late.clear()
        self._last = None

    def _find_out_what_is_free(self, results: dict[int, _Result]) -> None:
        self._late.clear()  # of a backward pass that failed
        self._free = numpy.zeros(max(results) + 1, numpy.uint8)
        for index, result in results.items():
            self._free[index] = result.is_free()
        self._agreeing = self._comm.all_reduce(self._free, "min", async_op=True)

    def _attend_backward(self) -> None:
        """Once in a backward pass, of which some contain others: come back when DDP has finished."""
        now = _backward_pass()
        if now == _NO_PASS:
            self._pass = now
            return
        self._lend_late()
        if now == self._pass:
            return
        self._pass = now
        # DDP queues its copy back later in this pass: `finish` runs before that, `settle` after it.
        engine = torch.autograd.Variable._execution_engine

        def settle() -> None:
            for known in self._known.values():
                if known.result is not None:
                    known.result.settle()

        def finish() -> None:
            self._lend_late()
            engine.queue_callback(settle)

        engine.queue_callback(finish)

    def _is_free_on_all_ranks(self, index: int) -> bool:
        if self._agreeing is not None:
            self._agreeing.wait()
            self._agreeing = None
        return bool(index < len(self._free) and self._free[index])

    def _make_result(self, bucket: GradBucket, tensor: torch.Tensor) -> _Result | None:
        """Collective. None where it would be of no use on some rank."""
        parameters, parts = bucket.parameters(), bucket.gradients()
        useful = self._wanted and self._unshared is not None and tensor.element_size() in _INTEGERS
        useful = useful and any(_can_be_part(p, part) for p, part in zip(parameters, parts, strict=True))
        agreed = numpy.array([useful], numpy.uint8)
        self._comm.all_reduce(agreed, "min")
        if not agreed[0]:
            return None
        for parameter in parameters:
            if parameter not in self._passes:
                self._watch(parameter)
        try:
            whole = self._comm.empty(tensor.numel(), tensor.dtype)
        except SharedMemoryError:  # raised by all ranks, which go on in place
            return None
        elements = whole.view(_INTEGERS[tensor.element_size()]).numpy()
        return _Result(whole, elements, _storage_uses(whole) + len(parameters))

    def _watch(self, parameter: torch.Tensor) -> None:
        passes = self._passes  # not self: the hook lives as long as the parameter
        passes[parameter] = None

        def note(parameter: torch.Tensor) -> None:
            passes[parameter] = _backward_pass()

        self._handles.append(parameter.register_post_accumulate_grad_hook(note))  # type: ignore[no-untyped-call]

    def _lend(self, result: _Result, bucket: GradBucket, tensor: torch.Tensor) -> None:
        for parameter, part in zip(bucket.parameters(), bucket.gradients(), strict=True):
            if self._passes.get(parameter) != self._pass or not _can_be_part(parameter, part):  # type: ignore[no-untyped-call]
                continue
            offset = part.storage_offset() - tensor.storage_offset()
            place = result.whole.as_strided(parameter.size(), parameter.stride(), offset)
            if not self._replace(result, parameter, place):
                # autograd itself still refers to the gradient that completes a bucket: it has its turn with the next.
                self._late.append((result, parameter, place))

    def _lend_late(self) -> None:
        for late in self._late:
            self._replace(*late)
        self._late.clear()

    def _keep_the_last(self, grad: torch.Tensor) -> None:
        """Do not free what lies at the end of the heap: the kernel would get all that is free before it, too.

        What other gradients leave there is then there for those of the next step, without a page fault.
        """
        is_last = self._last is None or grad.data_ptr() > self._last.data_ptr()
        if is_last and grad.untyped_storage().nbytes() < _HEAP_BYTES:
            self._last = grad

    def _replace(self, result: _Result, parameter: torch.Tensor, place: torch.Tensor) -> bool:
        """False: something refers to the gradient, now."""
        if _references(parameter) != self._unshared:
            return False
        assert parameter.grad is not None
        self._keep_the_last(parameter.grad)
        parameter.grad = place
        result.lent.append(_Lent(parameter, place, int(place.storage_offset())))
        return True


def _can_be_part(parameter: torch.Tensor, part: torch.Tensor) -> bool:
    """Whether a gradient is large, plain memory of its own, and lies as DDP's view of the result will."""
    grad = parameter.grad
    if type(grad) is not torch.Tensor or grad.layout != torch.strided or grad.requires_grad:
        return False
    if grad.numel() * grad.element_size() < _LEAST_BYTES or grad.dtype != part.dtype:
        return False
    if grad.untyped_storage().data_ptr() == part.untyped_storage().data_ptr():  # the bucket is its memory already
        return False
    # DDP lays a bucket's parts out as the parameters, if those have neither gaps nor overlapping elements.
    return grad.stride() == parameter.stride() and (grad.is_contiguous() or _is_dense(grad))


def _is_dense(tensor: torch.Tensor) -> bool:
    return torch.empty_like(tensor, device="meta").stride() == tensor.stride()


def _backward_pass() -> int:
    return torch._C._current_graph_task_id()


def _storage_uses(tensor: torch.Tensor) -> int:
    """How many tensors share the memory of one."""
    return torch._C._storage_Use_Count(tensor.untyped_storage()._cdata) - 1


def _references(parameter: torch.Tensor) -> tuple[int, int]:
    """How many refer to a parameter's gradient in Python, and how many tensors share its storage."""
    grad = parameter.grad
    assert grad is not None
    return sys.getrefcount(grad), _storage_uses(grad)


def _references_of_a_fresh_gradient() -> tuple[int, int] | None:
    """What `_references` says of a gradient that nobody else has; None where this torch cannot tell."""
    if not hasattr(torch._C, "_storage_Use_Count") or not hasattr(torch._C, "_current_graph_task_id"):
        return None
    parameter = torch.zeros(2, requires_grad=True)
    parameter.grad = torch.zeros(2)
    return _references(parameter)
