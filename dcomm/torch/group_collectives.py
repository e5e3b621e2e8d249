"""The collectives of a process group as torch calls them, under the names of torch 2.11 and of later ones.

Every method takes torch's lists and options and returns a :class:`GroupWork`, or None where the call is synchronous
and done. Sums are as in :meth:`dcomm.Communicator.all_reduce`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import AllgatherOptions

from dcomm.operation import (
    ALL_GATHER,
    ALL_REDUCE,
    ALL_TO_ALL,
    BARRIER,
    BROADCAST,
    GATHER,
    REDUCE,
    REDUCE_SCATTER,
    SCATTER,
    Operation,
)
from dcomm.torch import group_sparse
from dcomm.torch.group_call import NAMES, GroupCall, reduction
from dcomm.torch.group_identity import GroupIdentity
from dcomm.torch.group_work import GroupWork

Tensors = list[torch.Tensor]
_ZERO = timedelta(0)


class GroupCollectives(GroupIdentity):
    """What all ranks of the group call together."""

    _fast: Callable[..., bool]  # a contiguous CPU tensor, all-reduced at once; False: take the long way

    def _call(self, opts: Any) -> GroupCall:
        raise NotImplementedError

    def _start(self, tensors: Tensors, op: str) -> GroupWork | None:
        """The short way of an asynchronous all-reduce of one tensor; None: take the long one."""
        raise NotImplementedError

    def allreduce(self, tensors: Tensors, opts: Any = None) -> GroupWork | None:
        """Reduce each tensor in place."""
        opts = opts or dist.AllreduceOptions()
        name = NAMES.get(opts.reduceOp)
        if name is not None and len(tensors) == 1 and opts.timeout < _ZERO:
            if opts.asyncOp:
                started = self._start(tensors, name)
                if started is not None:
                    return started
            elif self._fast(tensors[0], None, name, "auto", None):
                return None
        call = self._call(opts)
        code, factor, scale = reduction(opts.reduceOp)
        for tensor in tensors:
            if tensor.layout is not torch.strided:
                group_sparse.all_reduce(call, self._gather, self._world_size, tensor, opts.reduceOp)
                continue
            if scale is not None:
                tensor.detach().mul_(scale)
            x = call.writable(tensor)
            call.run(ALL_REDUCE, x.numel(), x, x, op=code, factor=factor)
        return call.end(tensors)

    allreduce_coalesced = allreduce

    def broadcast(self, tensors: Tensors, opts: Any = None) -> GroupWork | None:
        """Copy the root's tensors to all ranks."""
        opts = opts or dist.BroadcastOptions()
        call = self._call(opts)
        for tensor in tensors:
            x = call.writable(tensor)
            call.run(BROADCAST, x.numel(), x, None if self._rank == opts.rootRank else x, root=opts.rootRank)
        return call.end(tensors)

    def reduce(self, tensors: Tensors, opts: Any = None) -> GroupWork | None:
        """Reduce each tensor to the root, in place there."""
        opts = opts or dist.ReduceOptions()
        call = self._call(opts)
        code, factor, scale = reduction(opts.reduceOp)
        for tensor in tensors:
            is_root = self._rank == opts.rootRank
            x = call.writable(tensor) if is_root else call.readable(tensor)
            if scale is not None:
                x = x.mul_(scale) if is_root else x * scale
            call.run(REDUCE, x.numel(), x, x if is_root else None, op=code, factor=factor, root=opts.rootRank)
        return call.end(tensors)

    def allgather(self, outputs: list[Tensors], inputs: Tensors, opts: Any = None) -> GroupWork | None:
        """Give every rank every rank's tensors, which may differ in their counts."""
        call = self._call(opts or AllgatherOptions())
        for outs, tensor in zip(outputs, inputs, strict=True):
            self._check_list("output", outs)
            self._gather(call, outs, tensor)
        return call.end([each for outs in outputs for each in outs])

    def _gather(self, call: GroupCall, outs: Sequence[torch.Tensor], tensor: torch.Tensor) -> None:
        if all(each.numel() == tensor.numel() for each in outs):
            x = call.readable(tensor)
            call.run(ALL_GATHER, x.numel(), x, call.spread(outs))
            return
        for root, out in enumerate(outs):
            if root == self._rank:
                out.detach().copy_(tensor.detach())
            x = call.writable(out)
            call.run(BROADCAST, x.numel(), x, None if root == self._rank else x, root=root)

    def allgather_coalesced(self, outputs: list[Tensors], inputs: Tensors, opts: Any = None) -> GroupWork | None:
        """As :meth:`allgather`, with outputs[rank][i] for inputs[i]."""
        self._check_list("output", outputs)
        return self.allgather([list(each) for each in zip(*outputs, strict=True)], inputs, opts)

    def all_gather_single(self, output: torch.Tensor, tensor: torch.Tensor, opts: Any = None) -> GroupWork | None:
        """Give every rank every rank's tensor, one after the other."""
        return self.all_gather_single_coalesced([output], [tensor], opts)

    def all_gather_single_coalesced(self, outputs: Tensors, inputs: Tensors, opts: Any = None) -> GroupWork | None:
        """:meth:`all_gather_single` of many tensors."""
        call = self._call(opts or AllgatherOptions())
        for output, tensor in zip(outputs, inputs, strict=True):
            self._check_whole("output", output, "input", tensor)
            x = call.readable(tensor)
            call.run(ALL_GATHER, x.numel(), x, call.writable(output))
        return call.end(outputs)

    _allgather_base = all_gather_single
    allgather_into_tensor_coalesced = all_gather_single_coalesced

    def reduce_scatter(self, outputs: Tensors, inputs: list[Tensors], opts: Any = None) -> GroupWork | None:
        """Reduce inputs[i][r] over all ranks to outputs[i] of rank r; counts may differ between ranks."""
        opts = opts or dist.ReduceScatterOptions()
        call = self._call(opts)
        code, factor, scale = reduction(opts.reduceOp)
        for output, ins in zip(outputs, inputs, strict=True):
            self._check_list("input", ins)
            if scale is not None:
                ins = [each.detach() * scale for each in ins]
            if any(each.numel() != output.numel() for each in ins):
                for root, tensor in enumerate(ins):
                    x = call.readable(tensor)
                    target = call.writable(output) if root == self._rank else None
                    call.run(REDUCE, x.numel(), x, target, op=code, factor=factor, root=root)
                continue
            target = call.writable(output)
            call.run(REDUCE_SCATTER, target.numel(), call.joined(ins), target, op=code, factor=factor)
        return call.end(outputs)

    def reduce_scatter_single(self, output: torch.Tensor, tensor: torch.Tensor, opts: Any = None) -> GroupWork | None:
        """Reduce over all ranks; rank r gets block r."""
        return self.reduce_scatter_single_coalesced([output], [tensor], opts)

    def reduce_scatter_single_coalesced(self, outputs: Tensors, inputs: Tensors, opts: Any = None) -> GroupWork | None:
        """:meth:`reduce_scatter_single` of many tensors."""
        opts = opts or dist.ReduceScatterOptions()
        call = self._call(opts)
        code, factor, scale = reduction(opts.reduceOp)
        for output, tensor in zip(outputs, inputs, strict=True):
            self._check_whole("input", tensor, "output", output)
            x = call.readable(tensor if scale is None else tensor.detach() * scale)
            target = call.writable(output)
            call.run(REDUCE_SCATTER, target.numel(), x, target, op=code, factor=factor)
        return call.end(outputs)

    _reduce_scatter_base = reduce_scatter_single
    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced

    def alltoall(self, outputs: Tensors, inputs: Tensors, opts: Any = None) -> GroupWork | None:
        """Send inputs[p] to rank p and receive outputs[p] from it; counts may differ."""
        self._check_list("output", outputs)
        self._check_list("input", inputs)
        call = self._call(opts or dist.AllToAllOptions())
        sends, receives = ([each.numel() for each in tensors] for tensors in (inputs, outputs))
        self._exchange(call, call.spread(outputs), call.joined(inputs), receives, sends)
        return call.end(outputs)

    def all_to_all_single(
        self,
        output: torch.Tensor,
        tensor: torch.Tensor,
        output_splits: list[int],
        input_splits: list[int],
        opts: Any = None,
    ) -> GroupWork | None:
        """Send block p of rows to rank p and receive block p from it; no splits: equal blocks."""
        call = self._call(opts or dist.AllToAllOptions())
        sends = self._elements("input", tensor, input_splits)
        receives = self._elements("output", output, output_splits)
        source, target = call.readable(tensor), call.writable(output)
        if input_splits or output_splits:
            self._exchange(call, target, source, receives, sends)
        else:
            self._check_equal(tensor, output)
            call.run(ALL_TO_ALL, source.numel() // self._world_size, source, target)
        return call.end([output])

    alltoall_base = all_to_all_single

    def gather(self, outputs: list[Tensors], inputs: Tensors, opts: Any = None) -> GroupWork | None:
        """Give the root every rank's tensor."""
        opts = opts or dist.GatherOptions()
        call = self._call(opts)
        targets: list[Tensors | None] = [None] * len(inputs)
        if self._rank == opts.rootRank:
            targets = list(outputs)
        for outs, tensor in zip(targets, inputs, strict=True):
            x = call.readable(tensor)
            target = None
            if outs is not None:
                self._check_list("output", outs)
                target = call.spread(outs)
            call.run(GATHER, x.numel(), x, target, root=opts.rootRank)
        return call.end([each for outs in outputs for each in outs])

    def scatter(self, outputs: Tensors, inputs: list[Tensors], opts: Any = None) -> GroupWork | None:
        """Give every rank its tensor of the root's list."""
        opts = opts or dist.ScatterOptions()
        call = self._call(opts)
        sources: list[Tensors | None] = [None] * len(outputs)
        if self._rank == opts.rootRank:
            sources = list(inputs)
        for output, ins in zip(outputs, sources, strict=True):
            source = None
            if ins is not None:
                self._check_list("input", ins)
                source = call.joined(ins)
            target = call.writable(output)
            call.run(SCATTER, target.numel(), source, target, root=opts.rootRank)
        return call.end(outputs)

    def barrier(self, opts: Any = None) -> GroupWork | None:
        """Return, or be done, when every rank has called it."""
        call = self._call(opts or dist.BarrierOptions())
        call.start(Operation(BARRIER, 0, 0))
        return call.end([])

    def _exchange(
        self, call: GroupCall, target: torch.Tensor, source: torch.Tensor, receives: list[int], sends: list[int]
    ) -> None:
        """All-to-all of blocks with lengths in elements of the caller's tensors, of which dcomm may see the bytes."""
        per_send = source.numel() // (sum(sends) or 1)
        per_receive = target.numel() // (sum(receives) or 1)
        if self._world_size == 1:
            call.run(ALL_TO_ALL, source.numel(), source, target)
            return
        call.run(
            ALL_TO_ALL,
            0,
            source,
            target,
            send_lengths=[each * per_send for each in sends],
            recv_lengths=[each * per_receive for each in receives],
        )

    def _elements(self, name: str, tensor: torch.Tensor, splits: list[int]) -> list[int]:
        """Elements of each rank's rows.

        Raises:
            ValueError: The splits do not cover the tensor.
        """
        rows = tensor.shape[0] if tensor.dim() else 1
        if not splits:
            if rows % self._world_size:
                raise ValueError(
                    f"all_to_all_single: {name} has {rows} rows: expected a number that {self._world_size} ranks share "
                    f"evenly; pass {name}_split_sizes"
                )
            splits = [rows // self._world_size] * self._world_size
        if len(splits) != self._world_size or sum(splits) != rows or min(splits) < 0:
            raise ValueError(
                f"all_to_all_single: {name}_split_sizes={splits}: expected {self._world_size} numbers that add up to "
                f"the {rows} rows of {name}"
            )
        row = tensor.numel() // rows if rows else 0
        return [row * each for each in splits]

    @staticmethod
    def _check_equal(tensor: torch.Tensor, output: torch.Tensor) -> None:
        if tensor.numel() != output.numel() or tensor.dtype != output.dtype:
            raise ValueError(
                f"all_to_all_single: the output has {output.numel()} elements of {output.dtype}: expected "
                f"{tensor.numel()} of {tensor.dtype}, as the input has; or pass split sizes"
            )

    def _check_list(self, name: str, tensors: list[Any]) -> None:
        if len(tensors) != self._world_size:
            raise ValueError(
                f"the {name} list has {len(tensors)} tensors: expected {self._world_size}, one for each rank"
            )
        for before, after in pairwise(tensors):
            if isinstance(after, torch.Tensor) and before.dtype != after.dtype:
                raise ValueError(f"the {name} list has tensors of {before.dtype} and {after.dtype}: expected one dtype")

    def _check_whole(self, name: str, whole: torch.Tensor, of: str, block: torch.Tensor) -> None:
        if whole.numel() != block.numel() * self._world_size or whole.dtype != block.dtype:
            raise ValueError(
                f"the {name} has {whole.numel()} elements of {whole.dtype}: expected {self._world_size} times the "
                f"{block.numel()} of the {of}, of {block.dtype}"
            )
