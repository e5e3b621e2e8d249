"""The `dcomm::` operators: collectives as torch.compile, AOTAutograd and Inductor know them.

Users call :mod:`dcomm.torch.functional`. For each operator there are a schema, a kernel for CPU and CUDA, a fake that
tells the shape of the result without running, and a gradient.

* A communicator is passed as its handle, a string (:mod:`dcomm.handles`). The world size is part of it: fakes need no
  communicator, and a graph made for one world size is never taken for another's.
* Results are new and contiguous. Fakes never raise: what a kernel refuses comes from the kernel, as it is, while an
  error in a fake would reach the user wrapped in one of the compiler's.
* Functional operators have the effect ORDERED. The compiler threads a token through all of them, forward and backward:
  their order is the program's on every rank, none is run twice, and none is dropped where nobody uses its result.
* A mutating operator cannot carry a token (torch gives none to operators that alias); where its result is not used, the
  compiler would drop it. Functionalization turns it into the functional one and a copy.
* No argument has a default: torch would leave it out on the way to kernel and gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._subclasses.functional_tensor import FunctionalTensorMode
from torch.fx.node import has_side_effect

from dcomm import handles

_library = torch.library.Library("dcomm", "FRAGMENT")  # type: ignore[no-untyped-call]
# A call may wait for other ranks on the host, which a CUDA graph would leave out. Not every torch has the tag.
_TAGS = [torch.Tag.pt2_compliant_tag, *filter(None, [getattr(torch.Tag, "cudagraph_unsafe", None)])]


def _register(schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Define an operator; the overload that calls it."""
    name = schema.partition("(")[0]
    _library.define(schema, tags=_TAGS)  # type: ignore[no-untyped-call]
    for key in ("CPU", "CUDA"):
        _library.impl(name, kernel, key)  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"dcomm::{name}", fake, lib=_library)
    return getattr(torch.ops.dcomm, name).default


def _ordered(overload: Any) -> Any:
    """Give a functional operator the effect ORDERED."""
    from torch._higher_order_ops import effects  # not public; here, as nothing else in dcomm.torch needs it

    effects._register_effectful_op(overload, effects._EffectType.ORDERED)
    return has_side_effect(overload)  # what passes over FX graphs look at


def _functionalized(overload: Any, functional: Any) -> Any:
    """Let compiled regions run `functional` and a copy in place of a mutating operator."""

    def rule(mode: Any, func: Any, types: Any, args: tuple[Any, ...], kwargs: Any) -> None:
        with mode:
            args[0].copy_(functional(*args))

    torch.library.register_torch_dispatch(overload.name(), FunctionalTensorMode, rule, lib=_library)
    return overload


def _new(x: torch.Tensor, rows: Any) -> torch.Tensor:
    """A contiguous tensor like `x` with another first dimension."""
    return x.new_empty((rows, *x.shape[1:]))


def _like(x: torch.Tensor, *_: Any) -> torch.Tensor:
    return x.new_empty(x.shape)


# ---- kernels and fakes ---------------------------------------------------------------------------------------


def _all_reduce(x: torch.Tensor, comm: str, op: str, wire_dtype: str | None, algo: str) -> torch.Tensor:
    out = _like(x)
    handles.find(comm).all_reduce(x.contiguous(), op, out=out, wire_dtype=wire_dtype, algo=algo)
    return out


def _all_reduce_in_place(x: torch.Tensor, comm: str, op: str, wire_dtype: str | None, algo: str) -> None:
    if x.is_contiguous():
        handles.find(comm).all_reduce(x, op, wire_dtype=wire_dtype, algo=algo)
    else:
        x.copy_(_all_reduce(x, comm, op, wire_dtype, algo))


def _reduce_scatter(x: torch.Tensor, comm: str, op: str) -> torch.Tensor:
    result: torch.Tensor = handles.find(comm).reduce_scatter(x.contiguous(), op)
    return result


def _reduce_scatter_fake(x: torch.Tensor, comm: str, op: str) -> torch.Tensor:
    return _new(x, x.shape[0] // handles.world_size(comm)) if x.dim() else _like(x)


def _all_gather(x: torch.Tensor, comm: str) -> torch.Tensor:
    result: torch.Tensor = handles.find(comm).all_gather(x.contiguous())
    return result


def _all_gather_fake(x: torch.Tensor, comm: str) -> torch.Tensor:
    return _new(x, handles.world_size(comm) * (x.shape[0] if x.dim() else 1))


def _all_to_all(
    x: torch.Tensor, comm: str, send_counts: Sequence[int] | None, recv_counts: Sequence[int] | None
) -> torch.Tensor:
    result: torch.Tensor = handles.find(comm).all_to_all(
        x.contiguous(), send_counts=send_counts, recv_counts=recv_counts
    )
    return result


def _all_to_all_fake(
    x: torch.Tensor, comm: str, send_counts: Sequence[int] | None, recv_counts: Sequence[int] | None
) -> torch.Tensor:
    return _like(x) if recv_counts is None or not x.dim() else _new(x, sum(recv_counts))


def _broadcast(x: torch.Tensor, comm: str, src: int) -> torch.Tensor:
    out = x.clone(memory_format=torch.contiguous_format)
    handles.find(comm).broadcast(out, src)
    return out


def _broadcast_in_place(x: torch.Tensor, comm: str, src: int) -> None:
    if x.is_contiguous():
        handles.find(comm).broadcast(x, src)
    else:
        x.copy_(_broadcast(x, comm, src))


def _reduce(x: torch.Tensor, comm: str, op: str, dst: int) -> torch.Tensor:
    on = handles.find(comm)
    out = _like(x) if on.rank == dst else torch.zeros_like(x, memory_format=torch.contiguous_format)
    on.reduce(x.contiguous(), op, dst=dst, out=out if on.rank == dst else None)
    return out


def _nothing(*_: Any) -> None:
    return None


all_reduce = _ordered(
    _register(
        "all_reduce(Tensor x, str comm, str op, str? wire_dtype, str algo) -> Tensor",
        _all_reduce,
        _like,
    )
)
reduce_scatter = _ordered(
    _register("reduce_scatter(Tensor x, str comm, str op) -> Tensor", _reduce_scatter, _reduce_scatter_fake)
)
all_gather = _ordered(_register("all_gather(Tensor x, str comm) -> Tensor", _all_gather, _all_gather_fake))
all_to_all = _ordered(
    _register(
        "all_to_all(Tensor x, str comm, SymInt[]? send_counts, SymInt[]? recv_counts) -> Tensor",
        _all_to_all,
        _all_to_all_fake,
    )
)
broadcast = _ordered(_register("broadcast(Tensor x, str comm, int src) -> Tensor", _broadcast, _like))
reduce = _ordered(_register("reduce(Tensor x, str comm, str op, int dst) -> Tensor", _reduce, _like))
all_reduce_ = _functionalized(
    _register(
        "all_reduce_(Tensor(a!) x, str comm, str op, str? wire_dtype, str algo) -> ()", _all_reduce_in_place, _nothing
    ),
    all_reduce,
)
broadcast_ = _functionalized(
    _register("broadcast_(Tensor(a!) x, str comm, int src) -> ()", _broadcast_in_place, _nothing), broadcast
)


# ---- gradients: of the sum over all ranks of what each does with its result -----------------------------------


def _linear(name: str, op: str) -> None:
    """Refuse what has no gradient here."""
    if op not in ("sum", "avg"):
        raise ValueError(f"the gradient of {name} with op={op!r}: expected 'sum' or 'avg'; call it on x.detach()")


def _differentiable(overload: Any, backward: Callable[..., Any], num_arguments: int) -> None:
    """Register backward(gradient, *arguments after x)."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        x, *ctx.arguments = inputs
        ctx.is_scalar = x.dim() == 0

    def run(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        result = backward(gradient, *ctx.arguments)
        return (result.reshape(()) if ctx.is_scalar else result, *[None] * (num_arguments - 1))

    torch.library.register_autograd(overload, run, setup_context=setup_context, lib=_library)


def _all_reduce_backward(gradient: torch.Tensor, comm: str, op: str, wire_dtype: str | None, algo: str) -> torch.Tensor:
    _linear("all_reduce", op)
    result: torch.Tensor = all_reduce(gradient, comm, op, wire_dtype, algo)
    return result


def _reduce_scatter_backward(gradient: torch.Tensor, comm: str, op: str) -> torch.Tensor:
    _linear("reduce_scatter", op)
    result: torch.Tensor = all_gather(gradient, comm)
    return result / handles.world_size(comm) if op == "avg" else result


def _all_gather_backward(gradient: torch.Tensor, comm: str) -> torch.Tensor:
    result: torch.Tensor = reduce_scatter(gradient, comm, "sum")
    return result


def _all_to_all_backward(
    gradient: torch.Tensor, comm: str, send_counts: Sequence[int] | None, recv_counts: Sequence[int] | None
) -> torch.Tensor:
    result: torch.Tensor = all_to_all(gradient, comm, recv_counts, send_counts)
    return result


def _broadcast_backward(gradient: torch.Tensor, comm: str, src: int) -> torch.Tensor:
    result: torch.Tensor = reduce(gradient, comm, "sum", src)
    return result


def _reduce_backward(gradient: torch.Tensor, comm: str, op: str, dst: int) -> torch.Tensor:
    _linear("reduce", op)
    result: torch.Tensor = broadcast(gradient, comm, dst)
    return result / handles.world_size(comm) if op == "avg" else result


_differentiable(all_reduce, _all_reduce_backward, 5)
_differentiable(reduce_scatter, _reduce_scatter_backward, 3)
_differentiable(all_gather, _all_gather_backward, 2)
_differentiable(all_to_all, _all_to_all_backward, 4)
_differentiable(broadcast, _broadcast_backward, 3)
_differentiable(reduce, _reduce_backward, 4)
