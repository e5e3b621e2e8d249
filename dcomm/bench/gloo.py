"""The peer that every torch brings along: gloo over loopback, called directly in the same rank processes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

from dcomm.bench.case import Case
from dcomm.bench.collectives import uneven_counts

THREADS = (1, 2)
# What ProcessGroupGloo serves and is compared with.
COLLECTIVES = (
    "all_reduce",
    "all_gather",
    "broadcast",
    "reduce",
    "gather",
    "scatter",
    "all_to_all",
    "all_to_all_uneven",
    "sendrecv",
    "sendrecv_any",
    "barrier",
)
OPS = {"sum": "SUM", "prod": "PRODUCT", "min": "MIN", "max": "MAX", "band": "BAND", "bor": "BOR", "bxor": "BXOR"}


def open_groups(store: str, rank: int, world_size: int, threads: list[int]) -> tuple[dict[int, Any], str]:
    """Join one gloo group for each number of gloo threads; the groups and torch's version."""
    import torch

    dist: Any = torch.distributed
    group_class = dist.ProcessGroupGloo
    shared = dist.FileStore(store, world_size)
    groups = {}
    for number in threads:
        options = group_class._Options()
        options._threads = number
        options._devices = [group_class.create_device(interface="lo")]
        options._timeout = timedelta(seconds=60)
        groups[number] = group_class(dist.PrefixStore(f"threads{number}", shared), rank, world_size, options)
    return groups, str(torch.__version__)


def gloo_call(group: Any, case: Case, x: Any, out: Any) -> Callable[[], Any]:
    """The call on tensors `x` and `out`, the same object in place."""
    import torch

    dist: Any = torch.distributed
    rank, world_size, ins, outs = group.rank(), group.size(), [x], [out]
    if case.collective == "all_reduce":
        reduce_options = dist.AllreduceOptions()
        reduce_options.reduceOp = getattr(dist.ReduceOp, OPS[case.redop])
        if not case.in_place:

            def reduce_copy() -> None:
                out.copy_(x)
                group.allreduce(outs, reduce_options).wait()

            return reduce_copy
        return lambda: group.allreduce(ins, reduce_options).wait()
    if case.collective == "broadcast":
        options = dist.BroadcastOptions()
        options.rootRank = case.root
        return lambda: group.broadcast(ins, options).wait()
    if case.collective == "reduce":
        options = dist.ReduceOptions()
        options.rootRank, options.reduceOp = case.root, getattr(dist.ReduceOp, OPS[case.redop])
        return lambda: group.reduce(ins, options).wait()
    if case.collective == "all_gather":
        parts = [list(out.chunk(world_size))]
        return lambda: group.allgather(parts, ins).wait()
    if case.collective in ("gather", "scatter"):
        gathers = case.collective == "gather"
        options = dist.GatherOptions() if gathers else dist.ScatterOptions()
        options.rootRank = case.root
        whole = out if gathers else x
        parts = [list(whole.chunk(world_size))] if rank == case.root else []
        if gathers:
            return lambda: group.gather(parts, ins, options).wait()
        return lambda: group.scatter(outs, parts, options).wait()
    if case.collective == "all_to_all":
        return lambda: group.alltoall_base(out, x, [], []).wait()
    if case.collective == "all_to_all_uneven":
        sends, receives = uneven_counts(case.count, rank, world_size)
        return lambda: group.alltoall_base(out, x, receives, sends).wait()
    if case.collective in ("sendrecv", "sendrecv_any"):
        receive = partial(group.recv_anysource, outs, 0)
        if case.collective == "sendrecv":
            receive = partial(group.recv, outs, (rank - 1) % world_size, 0)

        def exchange() -> None:
            sending = group.send(ins, (rank + 1) % world_size, 0)
            receive().wait()
            sending.wait()

        return exchange
    return lambda: group.barrier().wait()
