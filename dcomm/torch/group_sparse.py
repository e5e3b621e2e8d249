"""All-reduce of sparse tensors (COO): the gradients of an embedding with ``sparse=True``, for one.

Every rank gets every rank's indices and values, and adds up those at the same place; as in gloo. What travels grows
with what the ranks hold together, not with the size of the tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from dcomm.operation import ALL_GATHER
from dcomm.torch.group_call import SUM_CODE, GroupCall, reduction

Gather = Callable[[GroupCall, Sequence[torch.Tensor], torch.Tensor], None]


def all_reduce(call: GroupCall, gather: Gather, world_size: int, tensor: torch.Tensor, op: Any) -> None:
    """Start the sum of `tensor` over the ranks, in place.

    The ranks tell each other how much they hold before anything of it moves; the caller waits for that.

    Args:
        call: Moves indices and values.
        gather: Starts an all-gather of tensors that differ in length.
        world_size: How many ranks there are.
        tensor: Of layout ``torch.sparse_coo``, on every rank with the same shape and the same sparse dimensions.
        op: torch's ReduceOp.

    Raises:
        TypeError: Another layout.
        ValueError: Another operation than SUM, or ranks whose tensors differ in shape or sparse dimensions.
        MismatchError: Ranks whose tensors differ in the number of dimensions or in dtype.
    """
    if tensor.layout is not torch.sparse_coo:
        raise TypeError(f"all_reduce got a {tensor.layout} tensor: expected torch.strided or torch.sparse_coo")
    if reduction(op) != (SUM_CODE, 1.0, None):
        raise ValueError(f"all_reduce of a sparse tensor with op={op.op}: expected SUM; or pass tensor.to_dense()")
    mine = tensor.detach().coalesce()
    indices, values = mine.indices(), mine.values()
    counts = _agree(call.beforehand(), world_size, mine)
    all_indices = [indices.new_empty(each, mine.sparse_dim()) for each in counts]
    all_values = [values.new_empty(each, *values.shape[1:]) for each in counts]
    gather(call, all_indices, indices.t().contiguous())
    gather(call, all_values, values)

    def add_up() -> None:
        total = torch.sparse_coo_tensor(
            torch.cat(all_indices).t(), torch.cat(all_values), mine.shape, check_invariants=False
        )
        with torch.no_grad():  # detach() would give a tensor with places of its own
            tensor.copy_(total.coalesce())

    call.after(add_up)


def _agree(first: GroupCall, world_size: int, mine: torch.Tensor) -> list[int]:
    """How many places each rank has values for."""
    # A list of another length, where the ranks' tensors have other numbers of dimensions, is noticed by dcomm.
    told = torch.tensor([mine.values().shape[0], mine.sparse_dim(), *mine.shape], device=mine.device)
    table = told.new_empty(world_size, told.numel())
    first.run(ALL_GATHER, told.numel(), told, table)
    first.end([])
    rows = table.tolist()
    for rank, (_, sparse_dim, *shape) in enumerate(rows):
        if sparse_dim != mine.sparse_dim() or shape != list(mine.shape):
            raise ValueError(
                f"all_reduce of sparse tensors: rank {rank} has shape {tuple(shape)} with {sparse_dim} sparse "
                f"dimensions, this rank {tuple(mine.shape)} with {mine.sparse_dim()}: expected the same on all ranks"
            )
    return [row[0] for row in rows]
