"""One call of a process group on its way to dcomm: tensors become operands, operations are started, results copied out.

torch passes tensors of any strides and of dtypes that dcomm does not reduce (int16, float8, quantised ones). What is
only moved travels as bytes then; what is not contiguous is copied in and out, so that the result is right where gloo
silently takes a view for its memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from dcomm import arrays, reduce_ops
from dcomm.communicator import Communicator
from dcomm.cuda_work import CudaWork
from dcomm.operation import Operation, operand
from dcomm.torch import device_streams
from dcomm.torch.completer import Completer
from dcomm.torch.group_cuda_work import CudaGroupWork
from dcomm.torch.group_work import GroupWork
from dcomm.work import Work

_KNOWN = {getattr(torch, name) for name in arrays.DTYPE_CODES}
_SUM = dist.ReduceOp(dist.ReduceOp.SUM)
_TORCH_OPS = {"SUM": "sum", "AVG": "avg", "PRODUCT": "prod", "MIN": "min", "MAX": "max"}
_TORCH_OPS.update({"BAND": "band", "BOR": "bor", "BXOR": "bxor"})
NAMES = {dist.ReduceOp(getattr(dist.ReduceOp, theirs)): ours for theirs, ours in _TORCH_OPS.items()}
_CODES = {op: reduce_ops.OP_NAMES[name] for op, name in NAMES.items()}
SUM_CODE = _CODES[_SUM]


class GroupCall:
    """The operations of one call, in order.

    Args:
        comm: The communicator that runs them.
        is_async: Whether the caller wants a handle.
        timeout: Of each wait; None: the communicator's.
        overlap: False: everything runs in the calling thread, or on its current stream.
        completer: What turns operations on the CPU into futures.
        sides: Where the futures of operations on a GPU come from.
    """

    def __init__(
        self,
        comm: Communicator,
        is_async: bool,
        timeout: timedelta | None,
        overlap: bool,
        completer: Completer,
        sides: device_streams.SideStreams,
    ) -> None:
        """See the class."""
        self._comm = comm
        self._completer = completer
        self._sides = sides
        self._gpu: int | None = None  # of the operations
        self._async = is_async
        self._overlap = overlap and is_async
        self._timeout = timeout
        self._works: list[Work] = []
        self._finishes: list[Callable[[], None]] = []

    def beforehand(self) -> GroupCall:
        """A call of the same communicator that runs in this thread: what must be known before the rest can start."""
        return GroupCall(self._comm, False, self._timeout, False, self._completer, self._sides)

    def run(self, kind: int, count: int, source: Any, target: Any, **parts: Any) -> None:
        """Start one operation on flat tensors; `count` as in :class:`dcomm.operation.Operation`."""
        read = None if source is None else operand(source)
        written = read if target is source else None if target is None else operand(target)
        of = read or written
        assert of is not None
        self.start(Operation(kind, count, of.view.dtype, read, written, **parts))

    def start(self, operation: Operation) -> None:
        """Start one operation; of CUDA tensors behind what the current stream holds now."""
        for each in (operation.source, operation.target):
            if each is not None and each.view.device >= 0:
                self._gpu = each.view.device
        self._note(self._comm._run(operation, self._overlap, self._timeout))

    def message(self, start: Callable[..., Any], tensor: torch.Tensor) -> None:
        """Start one message: `start` is called with the communicator, the tensor, and how to run it."""
        self._gpu = device_streams.gpu_of(tensor)
        self._note(start(self._comm, tensor, async_op=True, timeout=self._timeout))

    def after(self, finish: Callable[[], None]) -> None:
        """Call `finish` when all operations have succeeded."""
        self._finishes.append(finish)

    def readable(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor`, or the bytes of one whose dtype dcomm does not know, as something to read."""
        tensor = tensor.detach()
        if not (tensor.is_contiguous() or _is_staged(tensor)):
            tensor = tensor.contiguous()
        return tensor if tensor.dtype in _KNOWN else _bytes(tensor)

    def writable(self, tensor: torch.Tensor) -> torch.Tensor:
        """As :meth:`readable`, for a result."""
        tensor = tensor.detach()
        if tensor.is_contiguous():
            return tensor if tensor.dtype in _KNOWN else _bytes(tensor)
        if _is_staged(tensor):
            return tensor
        staged = tensor.contiguous()
        self.after(lambda: _copy(tensor, staged))
        return staged if staged.dtype in _KNOWN else _bytes(staged)

    def joined(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """The elements of all tensors, one after the other, to read; without a copy where they lie so."""
        whole = _adjacent(tensors)
        if whole is None:
            whole = torch.cat([each.detach().reshape(-1) for each in tensors])
        return self.readable(whole)

    def spread(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Memory for the elements of all tensors; what it holds in the end is copied to them, where they lie apart."""
        whole = _adjacent(tensors)
        if whole is None:
            counts = [each.numel() for each in tensors]
            whole = tensors[0].detach().new_empty(sum(counts))
            parts = torch.split(whole, counts)

            def copy_out() -> None:
                for into, part in zip(tensors, parts, strict=True):
                    _copy(into, part.view(into.shape))

            self.after(copy_out)
        return self.writable(whole)

    def end(self, tensors: list[torch.Tensor]) -> GroupWork | None:
        """What torch gets: a handle; None, when all is done, where it has not asked for one."""
        if self._works:
            return self._handle(tensors, GroupWork)
        self._finish()
        if not self._async:
            return None
        if self._gpu is not None:  # in the order of the current stream
            return CudaGroupWork((), tensors, self._completer, self._sides.of(self._gpu))
        return GroupWork((), tensors, self._completer)

    def end_message(self, tensors: list[torch.Tensor], handle: type[GroupWork]) -> GroupWork:
        """The handle of a message."""
        return self._handle(tensors, handle)

    def _note(self, result: Any) -> None:
        if isinstance(result, Work):
            self._works.append(result)

    def _handle(self, tensors: list[torch.Tensor], handle: type[GroupWork]) -> GroupWork:
        finish = self._finish if self._finishes else None
        if isinstance(self._works[0], CudaWork):
            assert self._gpu is not None
            return CudaGroupWork(self._works, tensors, self._completer, self._sides.of(self._gpu), finish)
        return handle(self._works, tensors, self._completer, finish)

    def _finish(self) -> None:
        for each in self._finishes:
            each()


def reduction(reduce_op: Any) -> tuple[int, float, torch.Tensor | None]:
    """A torch ReduceOp as dcomm's code and factor; of a factor that is a tensor, the tensor.

    Raises:
        ValueError: An operation that dcomm does not have.
    """
    try:
        return _CODES[reduce_op], 1.0, None
    except (KeyError, TypeError):
        pass
    if reduce_op.op == dist.ReduceOp.PREMUL_SUM:
        factor = reduce_op.__getstate__()[1]
        if isinstance(factor, torch.Tensor):
            return SUM_CODE, 1.0, factor
        return reduce_ops.PREMUL_SUM_CODE, float(factor), None
    raise ValueError(f"op={reduce_op.op}: expected SUM, AVG, PRODUCT, MIN, MAX, BAND, BOR, BXOR or PREMUL_SUM")


def _is_staged(tensor: torch.Tensor) -> bool:
    """The communicator copies such a tensor in and out, where it is not contiguous."""
    return tensor.dtype in _KNOWN and device_streams.gpu_of(tensor) is None


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    # A single element may have any stride and yet be contiguous; view() wants 1.
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)


def _copy(target: torch.Tensor, source: torch.Tensor) -> None:
    target.detach().copy_(source)


def _adjacent(tensors: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """All tensors as one flat one over the same memory; None where they do not lie one after the other."""
    full = [each for each in tensors if each.numel()]
    if not full:
        return tensors[0].detach().reshape(-1)
    first = full[0].detach()
    storage = first.untyped_storage().data_ptr()
    at = first.data_ptr()
    count = 0
    for each in full:
        if not each.is_contiguous() or each.data_ptr() != at or each.dtype != first.dtype:
            return None
        if each.untyped_storage().data_ptr() != storage:
            return None
        count += each.numel()
        at += each.numel() * each.element_size()
    return first.as_strided((count,), (1,))
