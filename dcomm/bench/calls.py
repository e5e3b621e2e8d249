"""A case's call on a communicator, ready to be made again and again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from dcomm.bench.case import Case


def as_caller_holds(buffer: Any, case: Case) -> Any:
    """The buffer as the caller's kind of array; bfloat16 and gloo know torch tensors only."""
    if case.lib != "gloo" and case.array != "torch" and case.dtype != "bfloat16":
        return buffer
    import torch

    if case.dtype == "bfloat16":
        return torch.from_numpy(buffer.view("int16")).view(torch.bfloat16)
    return torch.from_numpy(buffer)


def dcomm_call(comm: Any, case: Case, x: Any, out: Any) -> Callable[[], Any]:
    """The call on buffers `x` and `out`, the same object in place."""
    into: dict[str, Any] = {} if case.in_place else {"out": out}
    options: dict[str, Any] = {} if case.wire is None else {"wire_dtype": case.wire}
    if case.algo != "auto":
        options["algo"] = case.algo
    mine = comm.rank == case.root
    calls: dict[str, Callable[[], Callable[[], Any]]] = {
        "all_reduce": lambda: partial(comm.all_reduce, x, case.redop, **into, **options),
        "reduce_scatter": lambda: partial(comm.reduce_scatter, x, case.redop, **into, **options),
        "all_gather": lambda: partial(comm.all_gather, x, **into, **options),
        "broadcast": lambda: partial(comm.broadcast, x, case.root),
        "reduce": lambda: partial(comm.reduce, x, case.redop, dst=case.root, **(into if mine else {})),
        "gather": lambda: partial(comm.gather, x, dst=case.root, **(into if mine else {})),
        "scatter": lambda: partial(comm.scatter, x if mine else None, src=case.root, out=out),
        "all_to_all": lambda: partial(comm.all_to_all, x, **into),
        "sendrecv": lambda: _exchange(comm, x, out),
        "barrier": lambda: comm.barrier,
    }
    return calls[case.collective]()


def _exchange(comm: Any, x: Any, out: Any) -> Callable[[], Any]:
    """To the next rank, from the one before; odd ranks receive first, so that no ring of senders waits."""
    following, previous = (comm.rank + 1) % comm.world_size, (comm.rank - 1) % comm.world_size
    send, receive = partial(comm.send, x, following), partial(comm.recv, out, previous)
    first, second = (receive, send) if comm.rank % 2 else (send, receive)

    def exchange() -> None:
        first()
        second()

    return exchange
