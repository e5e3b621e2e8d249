"""The operators themselves: what torch.library checks, fakes beside kernels, and that none is dropped."""

from __future__ import annotations

from collections.abc import Callable

import torch
from operator_checks import ROWS, check, compiled, uneven

import dcomm
from dcomm.torch import operators


@check
def opcheck(comm: dcomm.Communicator) -> None:
    handle, n = comm._handle, comm.world_size
    counts = uneven(n)
    sends, recvs = counts[comm.rank], [row[comm.rank] for row in counts]
    for overload, *args in (
        (operators.all_reduce, handle, "sum", None, "auto"),
        (operators.reduce_scatter, handle, "avg"),
        (operators.all_gather, handle),
        (operators.all_to_all, handle, None, None),
        (operators.all_to_all, handle, sends, recvs),
        (operators.broadcast, handle, 1),
        (operators.reduce, handle, "sum", 1),
    ):
        torch.library.opcheck(overload, (torch.ones(ROWS, 3, requires_grad=True), *args))
        torch.library.opcheck(overload, (torch.ones(3, ROWS).t(), *args))
    torch.library.opcheck(operators.all_reduce_, (torch.ones(ROWS, 3), handle, "sum", None, "auto"))
    torch.library.opcheck(operators.broadcast_, (torch.ones(3, ROWS).t(), handle, 0))


@check
def fakes_tell_what_kernels_give(comm: dcomm.Communicator) -> None:
    handle = comm._handle
    for dtype in (torch.float32, torch.bfloat16, torch.int64):
        for x in (
            torch.ones(ROWS, 3, dtype=dtype),
            torch.ones(3, ROWS, dtype=dtype).t(),
            torch.ones(0, 3, dtype=dtype),
        ):
            calls: list[Callable[[torch.Tensor], torch.Tensor]] = [
                lambda x: operators.all_reduce(x, handle, "sum", None, "auto"),
                lambda x: operators.reduce_scatter(x, handle, "sum"),
                lambda x: operators.all_gather(x, handle),
                lambda x: operators.all_gather(x.sum(), handle),
                lambda x: operators.all_to_all(x, handle, None, None),
                lambda x: operators.broadcast(x, handle, 0),
                lambda x: operators.reduce(x, handle, "sum", 0),
            ]
            for number, call in enumerate(calls):
                before = comm.stats()["num_operations"]
                with torch._subclasses.FakeTensorMode() as mode:
                    told = call(mode.from_tensor(x))
                assert comm.stats()["num_operations"] == before, "a fake ran the collective"
                given = call(x)
                for what in ("shape", "dtype", "device"):
                    assert getattr(told, what) == getattr(given, what), (number, what, told, given)
                assert told.stride() == given.stride(), (number, told.stride(), given.stride())


@check
def mutating_operators_are_not_dropped(comm: dcomm.Communicator) -> None:
    def body(x: torch.Tensor) -> torch.Tensor:
        operators.all_reduce_(x.clone(), comm._handle, "sum", None, "auto")
        operators.broadcast_(x.clone(), comm._handle, 0)
        return x + 1

    before = comm.stats()["num_operations"]
    compiled(body, "aot_eager")(torch.ones(3))
    assert comm.stats()["num_operations"] == before + 2
