"""Memory for DDP's gradients that stays from step to step.

Without ``gradient_as_bucket_view`` autograd allocates every gradient anew, DDP copies it into a bucket, and copies the
average back at the end of backward. The C allocator returns such memory to the kernel and gets it back page by page,
which takes longer than the exchange. Once a bucket is complete, what a fresh gradient holds has been copied and will be
overwritten: here such a gradient is replaced by memory of the step before, and its own freed while backward goes on.

This must be invisible: a gradient is replaced only if this backward pass computed it (DDP then copies an average
back) and nothing but its parameter refers to it; memory is lent again only when no tensor of an earlier step shares it.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

# Measured (docs/decisions.md): with smaller gradients too, steps that have many of them become slower.
_LEAST_BYTES = 4 * 1024 * 1024
# NumPy's arrays carry the memory, and NumPy has no bfloat16.
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass
class _Place:
    """Memory for one parameter's gradient."""

    like: torch.Tensor  # the dtype, shape and strides
    integers: torch.Tensor
    holder: Any = None  # weak reference to the array that the tensor lent last is made of

    def fits(self, grad: torch.Tensor) -> bool:
        like = self.like
        return (like.dtype, like.shape, like.stride()) == (grad.dtype, grad.shape, grad.stride())

    def lend(self) -> torch.Tensor | None:
        """A tensor over this memory; None while an earlier one, or anything that shares its storage, is alive."""
        if self.holder is not None and self.holder() is not None:
            return None
        array = self.integers.numpy()
        self.holder = weakref.ref(array)
        return torch.from_numpy(array).view(self.like.dtype).data


class GradientMemory:
    """The lent gradients of one DDP module."""

    def __init__(self) -> None:
        self._places = WeakIdKeyDictionary()
        self._passes = WeakIdKeyDictionary()  # parameter: the backward pass that computed its gradient last
        self._handles: list[Any] = []
        self._late: list[torch.Tensor] = []
        self._late_in = 0  # the pass they belong to
        self._unshared = _references_of_a_fresh_gradient()

    def renew(self, parameters: Iterable[torch.Tensor]) -> None:
        """Replace the gradients of a complete bucket; call it inside backward, after DDP has filled the bucket."""
        if self._unshared is None:
            return
        now = _backward_pass()
        # autograd itself still refers to the gradient that completes a bucket: it has its turn in the next bucket's.
        for parameter in self._late if self._late_in == now else ():
            self._try(parameter)
        self._late, self._late_in = [], now
        for parameter in parameters:
            if parameter not in self._passes:  # a first step: from the next one on
                self._watch(parameter)
            elif self._passes[parameter] == now and not self._try(parameter):
                self._late.append(parameter)

    def close(self) -> None:
        """Leave the parameters alone; tensors that are lent stay valid."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._places.clear()
        self._passes.clear()
        self._late.clear()

    def _watch(self, parameter: torch.Tensor) -> None:
        passes = self._passes  # not self: the hook lives as long as the parameter
        passes[parameter] = None

        def note(parameter: torch.Tensor) -> None:
            passes[parameter] = _backward_pass()

        self._handles.append(parameter.register_post_accumulate_grad_hook(note))  # type: ignore[no-untyped-call]

    def _try(self, parameter: torch.Tensor) -> bool:
        """False: something refers to the gradient, now."""
        if self._suits(parameter):
            if _references(parameter) != self._unshared:
                return False
            self._replace(parameter)
        return True

    def _suits(self, parameter: torch.Tensor) -> bool:
        grad = parameter.grad
        if type(grad) is not torch.Tensor or grad.layout != torch.strided or grad.device.type != "cpu":
            return False
        return not grad.requires_grad and grad.numel() * grad.element_size() >= _LEAST_BYTES

    def _replace(self, parameter: torch.Tensor) -> None:
        grad = parameter.grad
        assert grad is not None
        place: _Place | None = self._places.get(parameter)  # type: ignore[no-untyped-call]
        if place is None or not place.fits(grad):
            integers = _INTEGERS.get(grad.element_size())
            memory = torch.empty_like(grad)
            if integers is None or memory.stride() != grad.stride():  # gaps, or overlapping elements
                return
            place = self._places[parameter] = _Place(memory, memory.view(integers))
        lent = place.lend()
        if lent is not None:
            parameter.grad = lent


def _backward_pass() -> int:
    return torch._C._current_graph_task_id()


def _references(parameter: torch.Tensor) -> tuple[int, int]:
    """How many refer to a parameter's gradient in Python, and how many tensors share its storage."""
    grad = parameter.grad
    assert grad is not None
    storage_uses = torch._C._storage_Use_Count
    return sys.getrefcount(grad), storage_uses(grad.untyped_storage()._cdata)


def _references_of_a_fresh_gradient() -> tuple[int, int] | None:
    """What `_references` says of a gradient that nobody else has; None where this torch cannot tell."""
    if not hasattr(torch._C, "_storage_Use_Count") or not hasattr(torch._C, "_current_graph_task_id"):
        return None
    parameter = torch.zeros(2, requires_grad=True)
    parameter.grad = torch.zeros(2)
    return _references(parameter)
