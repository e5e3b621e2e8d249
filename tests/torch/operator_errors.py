"""Errors come out of compiled graphs as they are."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from operator_checks import check, compiled, raises

import dcomm
from dcomm.torch import functional, operators


def compiled_all_reduce(comm: dcomm.Communicator, **options: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    return compiled(lambda x: functional.all_reduce(x, comm, **options) + 1, "aot_eager")


@check
def bad_arguments(comm: dcomm.Communicator) -> None:
    x = torch.ones(3)
    with raises(TypeError, "got a torch tensor of int16"):
        compiled_all_reduce(comm)(x.short())
    with raises(ValueError, "op='mean': expected one of 'sum'"):
        compiled_all_reduce(comm, op="mean")(x)
    with raises(ValueError, "wire_dtype='int8'"):
        compiled_all_reduce(comm, wire_dtype="int8")(x)
    with raises(ValueError, "reduce_scatter: x has shape (3,)"):
        compiled(lambda x: functional.reduce_scatter(x, comm), "aot_eager")(x)
    with raises(ValueError, "reduce_scatter: x has shape ()"):
        compiled(lambda x: functional.reduce_scatter(x.sum(), comm), "aot_eager")(x)
    with raises(ValueError, "src=9: expected a rank"):
        compiled(lambda x: functional.broadcast(x, comm, 9), "aot_eager")(x)
    with raises(TypeError, "comm='comm': expected a dcomm.Communicator"):
        functional.all_reduce(x, "comm")  # type: ignore[arg-type]
    with raises(TypeError, "pass x * factor"):
        functional.all_reduce(x, comm, dcomm.premul_sum(2))  # type: ignore[arg-type]
    assert compiled_all_reduce(comm, wire_dtype=torch.float16)(x).tolist() == [comm.world_size + 1] * 3  # still usable
    assert compiled_all_reduce(comm, wire_dtype="fp8")(x).tolist() == [comm.world_size + 1] * 3


@check
def mismatch(comm: dcomm.Communicator) -> None:
    with raises(dcomm.MismatchError, "rank"):
        compiled_all_reduce(comm)(torch.ones(3 + comm.rank))
    with raises(dcomm.MismatchError, "rank"):  # the first reason again
        compiled_all_reduce(comm)(torch.ones(3))


@check
def mismatch_in_backward(comm: dcomm.Communicator) -> None:
    x = torch.ones(3, requires_grad=True)
    op = "sum" if comm.rank else "avg"
    loss = compiled(lambda x: functional.sum_gradients(x, comm).pow(2).sum(), "aot_eager")(x)
    if comm.rank:
        with raises(dcomm.MismatchError, "rank"):
            loss.backward()
    else:
        with raises(dcomm.MismatchError, "rank"):
            comm.all_reduce(torch.ones(3), op)


@check
def peer_lost(comm: dcomm.Communicator) -> None:
    call = compiled_all_reduce(comm)
    call(torch.ones(3))
    if comm.rank == 0:
        comm.close()
    else:
        with raises(dcomm.PeerLostError, "rank 0"):
            call(torch.ones(3))


@check
def closed_and_dropped(comm: dcomm.Communicator) -> None:
    call = compiled_all_reduce(comm)
    call(torch.ones(3))
    comm.close()
    with raises(dcomm.AbortedError, "this communicator is closed"):
        call(torch.ones(3))
    other = dcomm.init(rank=0, world_size=1)
    handle = other._handle
    operators.all_gather(torch.ones(3), handle)
    del other
    gc.collect()
    with raises(dcomm.AbortedError, f"communicator {handle!r} is not in this process"):
        operators.all_gather(torch.ones(3), handle)
