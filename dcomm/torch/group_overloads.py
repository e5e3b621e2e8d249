"""The short forms of a group's methods: ``group.allreduce(tensor, op)`` in place of a list and an options object.

torch's groups have both. Who calls the long form, as all of torch does, pays for one look at a type.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import AllgatherOptions

from dcomm.torch.group_collectives import GroupCollectives
from dcomm.torch.group_work import GroupWork

_FIELDS = {"op": "reduceOp", "root": "rootRank", "timeout": "timeout"}


def _with_short_form(name: str, options: Any, num_tensors: int, *extra: str) -> Callable[..., GroupWork | None]:
    """The method `name` in both forms: lists and `options`, or single tensors, `extra` and a timeout."""
    long_form: Callable[..., GroupWork | None] = getattr(GroupCollectives, name)
    order = (*extra, "timeout")

    def method(self: GroupCollectives, *args: Any, **named: Any) -> GroupWork | None:
        if args and type(args[-1]) is options and not named:
            return long_form(self, *args)
        if "opts" in named:
            return long_form(self, *args, **named)
        given = dict(zip(order, args[num_tensors:], strict=False), **named)
        if len(args) < num_tensors or len(args) > num_tensors + len(order) or not given.keys() <= set(order):
            raise TypeError(
                f"{name} got {len(args)} arguments and {sorted(named)}: expected {num_tensors} of tensors, then opts, "
                f"or {', '.join(order)}"
            )
        opts = options()
        for key, value in given.items():
            if value is not None:
                setattr(opts, _FIELDS[key], value)
        tensors: list[Any] = list(args[:num_tensors])
        if name != "all_to_all_single" and any(isinstance(each, torch.Tensor) for each in tensors):
            # An empty list is what ranks other than the root pass to gather and scatter.
            tensors = [[] if isinstance(each, list) and not each else [each] for each in tensors]
        return long_form(self, *tensors, opts)

    method.__name__ = name
    method.__doc__ = long_form.__doc__
    return method


_all_reduce = _with_short_form("allreduce", dist.AllreduceOptions, 1, "op")


class GroupOverloads(GroupCollectives):
    """The collectives in both forms."""

    def allreduce(self, tensors: Any, opts: Any = None, *more: Any, **named: Any) -> GroupWork | None:
        """Reduce each tensor in place."""
        if type(opts) is dist.AllreduceOptions:  # by itself, for it is called most
            return GroupCollectives.allreduce(self, tensors, opts)
        given = (tensors,) if opts is None and not more else (tensors, opts, *more)
        return _all_reduce(self, *given, **named)

    broadcast = _with_short_form("broadcast", dist.BroadcastOptions, 1, "root")
    reduce = _with_short_form("reduce", dist.ReduceOptions, 1, "root", "op")
    allgather = _with_short_form("allgather", AllgatherOptions, 2)
    gather = _with_short_form("gather", dist.GatherOptions, 2, "root")
    scatter = _with_short_form("scatter", dist.ScatterOptions, 2, "root")
    reduce_scatter = _with_short_form("reduce_scatter", dist.ReduceScatterOptions, 2, "op")
    all_to_all_single = _with_short_form("all_to_all_single", dist.AllToAllOptions, 4)
    alltoall_base = all_to_all_single
    barrier = _with_short_form("barrier", dist.BarrierOptions, 0)
