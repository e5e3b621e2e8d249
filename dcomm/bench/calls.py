"""A case's call on a communicator, ready to be made again and again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from dcomm.bench.case import Case
from dcomm.bench.collectives import uneven_counts
from dcomm.bench.ranks import RankError


def as_caller_holds(buffer: Any, case: Case) -> Any:
    """The buffer as the caller's kind of array; bfloat16 and gloo know torch tensors only."""
    if case.lib != "gloo" and case.array != "torch" and case.dtype != "bfloat16":
        return buffer
    import torch

    if case.dtype == "bfloat16":
        return torch.from_numpy(buffer.view("int16")).view(torch.bfloat16)
    return torch.from_numpy(buffer)


def memory_pass(x: Any, out: Any) -> Callable[[], Any]:
    """Reads all of `x` and writes all of `out`, which every all-reduce must at least do, on all ranks at once."""
    source, target = (buffer.view("uint8") for buffer in (x, out))
    return lambda: np.invert(source, out=target)


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
        "all_to_all_uneven": lambda: _uneven_exchange(comm, case, x, out),
        "sendrecv": lambda: _exchange(comm, x, partial(comm.recv, out, _neighbours(comm)[0])),
        "sendrecv_any": lambda: _exchange(comm, x, partial(_receive_any, comm, out)),
        "barrier": lambda: comm.barrier,
    }
    return calls[case.collective]()


def _uneven_exchange(comm: Any, case: Case, x: Any, out: Any) -> Callable[[], Any]:
    sends, receives = uneven_counts(case.count, comm.rank, comm.world_size)
    return partial(comm.all_to_all, x, out=out, send_counts=sends, recv_counts=receives)


def _neighbours(comm: Any) -> tuple[int, int]:
    """The rank before this one and the one after it."""
    return (comm.rank - 1) % comm.world_size, (comm.rank + 1) % comm.world_size


def _receive_any(comm: Any, out: Any) -> None:
    source = comm.recv_any(out)
    if source != _neighbours(comm)[0]:
        raise RankError(f"recv_any says that rank {source} has sent: expected {_neighbours(comm)[0]}")


def _exchange(comm: Any, x: Any, receive: Callable[[], Any]) -> Callable[[], Any]:
    """To the next rank, from the one before; odd ranks receive first, so that no ring of senders waits."""
    send = partial(comm.send, x, _neighbours(comm)[1])
    first, second = (receive, send) if comm.rank % 2 else (send, receive)

    def exchange() -> None:
        first()
        second()

    return exchange
