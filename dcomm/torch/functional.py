"""Collectives for models: differentiable, out of place or in place, and traceable by ``torch.compile(fullgraph=True)``.

>>> from dcomm.torch import functional
>>> class RowParallelLinear(torch.nn.Module):   # doctest: +SKIP
...     def forward(self, x):           # comm may be an attribute, as here, an argument, a closure's or a global
...         return functional.sum_over_ranks(x @ self.weight, self.comm)

All of them take a :class:`dcomm.Communicator` and dense tensors, CPU or CUDA, contiguous or not, of a dtype that the
collective serves (docs/torch_operators.md). A compiled graph is guarded on the communicator: another one recompiles.

Gradients are those of the sum over all ranks of what each computes with its result; torch.distributed's functional
collectives and torch.distributed.nn have the same convention. Where every rank computes the same loss from the same
result, as behind tensor-parallel layers, that would count it world_size times: use :func:`sum_over_ranks` and
:func:`sum_gradients` there.

Errors: those of the Communicator's methods, as they are, out of compiled code too; :class:`dcomm.AbortedError` where
the communicator was closed or dropped. All ranks call the same functions in the same order, backward passes included:
tensors that require gradients do so on every rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from dcomm.communicator import Communicator
from dcomm.torch import operators

__all__ = [
    "all_gather",
    "all_reduce",
    "all_reduce_",
    "all_to_all",
    "broadcast",
    "broadcast_",
    "reduce",
    "reduce_scatter",
    "sum_gradients",
    "sum_over_ranks",
]

_DTYPE_NAMES = {torch.float16: "float16", torch.bfloat16: "bfloat16"}


def all_reduce(
    x: torch.Tensor,
    comm: Communicator,
    op: str = "sum",
    *,
    wire_dtype: str | torch.dtype | None = None,
    algo: str = "auto",
) -> torch.Tensor:
    """Reduce `x` element by element over all ranks into a new tensor, the same bits on every rank.

    Args:
        x: Any shape; dtypes as for :meth:`dcomm.Communicator.all_reduce`. Left as it is.
        comm: The ranks.
        op: A name, as for :meth:`dcomm.Communicator.all_reduce`.
        wire_dtype: "float16" / "bfloat16" or the torch dtype, "fp8" or "fp8_block128": float32 travels in that type,
            the gradient's too.
        algo: As for :meth:`dcomm.Communicator.all_reduce`.

    Returns:
        A new contiguous tensor of `x`'s shape. Its gradient ("sum", "avg"): the all_reduce of the gradients, same op.

    Raises:
        ValueError, TypeError, DcommError: As for :meth:`dcomm.Communicator.all_reduce`.
    """
    result: torch.Tensor = operators.all_reduce(x, _handle(comm), _name(op), _wire_name(wire_dtype), algo)
    return result


def all_reduce_(
    x: torch.Tensor,
    comm: Communicator,
    op: str = "sum",
    *,
    wire_dtype: str | torch.dtype | None = None,
    algo: str = "auto",
) -> torch.Tensor:
    """:func:`all_reduce` in place; returns `x`.

    Compiled, and where `x` requires a gradient, it is :func:`all_reduce` and a copy.
    """
    if _has_gradient(x):
        return x.copy_(all_reduce(x, comm, op, wire_dtype=wire_dtype, algo=algo))
    operators.all_reduce_(x, _handle(comm), _name(op), _wire_name(wire_dtype), algo)
    return x


def reduce_scatter(x: torch.Tensor, comm: Communicator, op: str = "sum") -> torch.Tensor:
    """Reduce `x` over all ranks; rank r gets block r of the result.

    Args:
        x: (world_size * n, ...). Left as it is.
        comm: The ranks.
        op: As for :func:`all_reduce`.

    Returns:
        (n, ...), new and contiguous. Its gradient ("sum", "avg"): all_gather.

    Raises:
        ValueError, TypeError, DcommError: As for :meth:`dcomm.Communicator.reduce_scatter`.
    """
    result: torch.Tensor = operators.reduce_scatter(x, _handle(comm), _name(op))
    return result


def all_gather(x: torch.Tensor, comm: Communicator) -> torch.Tensor:
    """Give every rank the tensors of all ranks, in rank order.

    Args:
        x: (n, ...) or (), of the same shape and dtype on every rank. Left as it is.
        comm: The ranks.

    Returns:
        (world_size * n, ...), new and contiguous. Its gradient: reduce_scatter with "sum".

    Raises:
        TypeError, DcommError: As for :meth:`dcomm.Communicator.all_gather`.
    """
    result: torch.Tensor = operators.all_gather(x, _handle(comm))
    return result


def all_to_all(
    x: torch.Tensor,
    comm: Communicator,
    send_counts: Sequence[int] | None = None,
    recv_counts: Sequence[int] | None = None,
) -> torch.Tensor:
    """Send block p of `x` to rank p; what rank p sends here becomes block p of the result.

    Args:
        x: (n, ...). Left as it is.
        comm: The ranks.
        send_counts: Rows of `x` for each rank; None: equal blocks. CUDA: None only.
        recv_counts: Rows from each rank; with `send_counts`.

    Returns:
        (n, ...), or (sum(recv_counts), ...), new and contiguous. Its gradient: the all_to_all back.

    Raises:
        ValueError, TypeError, DcommError: As for :meth:`dcomm.Communicator.all_to_all`.
    """
    result: torch.Tensor = operators.all_to_all(x, _handle(comm), send_counts, recv_counts)
    return result


def broadcast(x: torch.Tensor, comm: Communicator, src: int = 0) -> torch.Tensor:
    """What rank `src` holds in `x`, as a new tensor on every rank.

    Args:
        x: Any shape, the same on every rank; its values matter on `src` only. Left as it is.
        comm: The ranks.
        src: The rank that sends.

    Returns:
        A new contiguous tensor of `x`'s shape. Its gradient: the sum over all ranks on `src`, zeros elsewhere.

    Raises:
        ValueError, TypeError, DcommError: As for :meth:`dcomm.Communicator.broadcast`.
    """
    result: torch.Tensor = operators.broadcast(x, _handle(comm), src)
    return result


def broadcast_(x: torch.Tensor, comm: Communicator, src: int = 0) -> torch.Tensor:
    """:func:`broadcast` in place; returns `x`. Compiled or differentiated as :func:`all_reduce_`."""
    if _has_gradient(x):
        return x.copy_(broadcast(x, comm, src))
    operators.broadcast_(x, _handle(comm), src)
    return x


def reduce(x: torch.Tensor, comm: Communicator, op: str = "sum", *, dst: int = 0) -> torch.Tensor:
    """Reduce `x` over all ranks into a new tensor on rank `dst`; the others get zeros.

    Args:
        x: As for :func:`all_reduce`. Left as it is.
        comm: The ranks.
        op: As for :func:`all_reduce`.
        dst: The rank that gets the result.

    Returns:
        A new contiguous tensor of `x`'s shape. Its gradient ("sum", "avg"): the broadcast of the gradient on `dst`.

    Raises:
        ValueError, TypeError, DcommError: As for :meth:`dcomm.Communicator.reduce`.
    """
    result: torch.Tensor = operators.reduce(x, _handle(comm), _name(op), dst)
    return result


def sum_over_ranks(x: torch.Tensor, comm: Communicator) -> torch.Tensor:
    """:func:`all_reduce` with "sum", whose gradient is the gradient as it is: where a tensor-parallel part ends.

    Behind it all ranks compute the same, the loss included, so that each holds the whole gradient already ("g" of
    Megatron-LM, arXiv 1909.08053).

    Args:
        x: Any shape; this rank's addend.
        comm: The ranks.

    Returns:
        A new contiguous tensor of `x`'s shape.

    Raises:
        TypeError, DcommError: As for :func:`all_reduce`.
    """
    result: torch.Tensor = _SumOverRanks.apply(x, _handle(comm))  # type: ignore[no-untyped-call]
    return result


def sum_gradients(x: torch.Tensor, comm: Communicator) -> torch.Tensor:
    """`x` as it is, whose gradient is summed over all ranks: where a tensor-parallel part begins.

    Behind it each rank computes its own share from the same `x` ("f" of Megatron-LM, arXiv 1909.08053).

    Args:
        x: Any shape; the same on every rank.
        comm: The ranks.

    Returns:
        A view of `x`.

    Raises:
        TypeError, DcommError: As for :func:`all_reduce`, in the backward pass.
    """
    result: torch.Tensor = _SumGradients.apply(x, _handle(comm))  # type: ignore[no-untyped-call]
    return result


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, handle: str) -> torch.Tensor:
        result: torch.Tensor = operators.all_reduce(x, handle, "sum", None, "auto")
        return result

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


class _SumGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, handle: str) -> torch.Tensor:
        ctx.handle = handle
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return operators.all_reduce(gradient, ctx.handle, "sum", None, "auto"), None


def _handle(comm: Communicator) -> str:
    if not isinstance(comm, Communicator):
        raise TypeError(f"comm={comm!r}: expected a dcomm.Communicator, such as dcomm.init() returns")
    return comm._handle


def _name(op: str) -> str:
    if not isinstance(op, str):
        raise TypeError(f"op={op!r}: expected a name such as 'sum'; in place of premul_sum pass x * factor")
    return op


def _has_gradient(x: torch.Tensor) -> bool:
    """True where autograd records `x`, and would not see what a mutating operator does."""
    return torch.is_grad_enabled() and x.requires_grad


def _wire_name(wire_dtype: str | torch.dtype | None) -> str | None:
    if isinstance(wire_dtype, torch.dtype):
        return _DTYPE_NAMES.get(wire_dtype, str(wire_dtype))
    return wire_dtype
