"""The one path of every collective: view the operands, check and stage them, call the core, copy results out."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

from dcomm import _core, arrays, cuda_operation
from dcomm.cuda_work import Keeper
from dcomm.errors import CudaError
from dcomm.work import Work, to_seconds

# Codes of csrc/protocol/control.h.
ALL_REDUCE, BROADCAST, BARRIER, REDUCE_SCATTER, ALL_GATHER, REDUCE, GATHER, SCATTER, ALL_TO_ALL, SEND, RECV = range(
    1, 12
)


def timeout_to_ns(timeout: float | timedelta | None) -> int:
    """A timeout argument as the core takes it; 0: the communicator's."""
    seconds = to_seconds(timeout)
    return 0 if seconds is None else max(1, int(seconds * 1e9))


class Operand(NamedTuple):
    """An array of the caller's and what it looks like."""

    array: Any
    view: arrays.View


@dataclass
class Operation:
    """A checked collective. `count`: of the message, or of a block where there is one for each rank."""

    kind: int
    count: int
    dtype: int
    source: Operand | None = None  # read
    target: Operand | None = None  # written; the same object as source: in place
    result: Any = None  # what the caller gets
    wire: int = -1
    op: int = 0
    algo: int = 0
    root: int = 0  # of a message: the other rank
    tag: int = 0
    factor: float = 1.0
    send_lengths: list[int] | None = None
    recv_lengths: list[int] | None = None


def operand(array: Any, stream: Any = None) -> Operand:
    """An operand in host memory or, contiguous, in device memory, where `stream` is what the caller passed.

    Raises:
        TypeError: Not an array, or of a dtype that dcomm does not move.
        ValueError: A non-contiguous CUDA array.
    """
    described = arrays.view(array, stream)
    if described.device >= 0 and not described.contiguous:
        raise ValueError("got a non-contiguous CUDA array: pass .contiguous()")
    return Operand(array, described)


def cpu_operand(array: Any, what: str) -> Operand:
    """An operand in host memory.

    Raises:
        TypeError: Not an array, or of a dtype that dcomm does not move.
        CudaError: In device memory.
    """
    described = arrays.view(array)
    if described.device >= 0:
        raise CudaError(f"got a CUDA array: {what} serves CPU arrays only so far; move it with .cpu()")
    return Operand(array, described)


def check_root(name: str, value: Any, world_size: int) -> int:
    """A `src` or `dst` argument as a rank.

    Raises:
        ValueError: No rank of the communicator.
    """
    try:
        root = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        root = -1
    if not 0 <= root < world_size:
        raise ValueError(f"{name}={value!r}: expected a rank from 0 to {world_size - 1}")
    return root


def check_writable(name: str, operand: Operand, advice: str = "pass a writable array") -> None:
    """Refuse a target that cannot be written, or whose elements share memory.

    Raises:
        ValueError: It is one of these.
    """
    if not operand.view.writable:
        raise ValueError(f"{name} is read-only: {advice}")
    if not operand.view.contiguous:
        arrays.check_no_repeats(operand.array)


def check_out(x: Operand, out: Operand, shapes: list[tuple[int, ...]], reason: str) -> None:
    """Refuse an `out` that cannot take a result of `x`'s dtype with one of `shapes`, the usual one first.

    Raises:
        TypeError: Of another library.
        ValueError: Of another dtype, count, shape or device, or read-only.
    """
    if arrays.is_tensor(x.array) != arrays.is_tensor(out.array):
        names = [arrays.kind(each.view, each.array) for each in (x, out)]
        raise TypeError(f"x is {names[0]} and out {names[1]}: expected both of one library; convert one of them")
    check_out_shape(out, x.view.dtype, shapes, reason)
    check_writable("out", out)
    if x.view.device != out.view.device:
        raise ValueError("x and out are on different devices: put both on one")


def check_out_shape(out: Operand, dtype: int, shapes: list[tuple[int, ...]], reason: str) -> None:
    """The part of :func:`check_out` about elements."""
    count = arrays.row_count((1, *shapes[0]))
    if out.view.dtype != dtype or out.view.count != count:
        raise ValueError(
            f"out has {out.view.count} elements of {out.view.dtype_name}: expected {count} of "
            f"{arrays.DTYPE_NAMES[dtype]}, {reason}"
        )
    if out.view.shape not in shapes:
        raise ValueError(f"out has shape {out.view.shape}: expected {shapes[0]}, {reason}")


def check_overlap(x: Operand, out: Operand, own_block: int | None, advice: str) -> None:
    """Refuse arrays that share memory, except where the smaller one is block `own_block` of the larger one.

    Raises:
        ValueError: They overlap.
    """
    if not (x.view.contiguous and out.view.contiguous):
        return  # copied before anything is written
    small, large = sorted((x.view, out.view), key=lambda view: view.nbytes)
    if small.nbytes == 0 or small.address >= large.address + large.nbytes:
        return
    if large.address >= small.address + small.nbytes:
        return
    if own_block is None or small.address != large.address + own_block * small.nbytes:
        raise ValueError(f"x and out overlap{advice}")


def _stage(operation: Operation) -> tuple[Any, Any, Callable[[], None] | None]:
    """Contiguous arrays to read and to write, and what copies the result out afterwards."""
    source, target = operation.source, operation.target
    read = None
    if source is not None:
        read = source.array if source.view.contiguous else arrays.contiguous_copy(source.array)
    if target is None:
        return read, None, None
    if target.view.contiguous:
        return read, target.array, None
    into = target.array
    write = read if target is source else arrays.empty_like(into)
    return read, write, lambda: arrays.copy_into(into, write)


class Endpoint:
    """What every collective needs of its communicator."""

    def __init__(self, core: _core.Communicator) -> None:
        self._core = core
        self._pending: deque[Work] = deque()
        self._keeper = Keeper()  # of CUDA arrays
        self._device: int | None = None  # the GPU that the communicator is bound to
        self._collected: list[Any] | None = None  # inside dcomm.group: what it keeps alive

    @property
    def rank(self) -> int:
        """This rank's number, 0 to world_size - 1."""
        return self._core.rank

    @property
    def world_size(self) -> int:
        """How many ranks there are."""
        return self._core.world_size

    def abort(self, reason: str = "") -> None:
        """End every wait on every rank with :class:`AbortedError`; callable from any thread.

        Args:
            reason: What the errors of all ranks say of it; the first 247 bytes are kept.
        """
        self._core.abort(reason)

    def _run(self, operation: Operation, async_op: bool, timeout: float | timedelta | None, stream: Any = None) -> Any:
        """Run a checked collective; its result, or a :class:`Work`."""
        timeout_ns = timeout_to_ns(timeout)
        if is_for_gpu(operation, stream):
            return cuda_operation.run(self, operation, async_op, timeout_ns, stream)
        self._check_on_host(stream)
        read, write, finish = _stage(operation)
        args = (
            operation.kind,
            _address(operation.source, read),
            _address(operation.target, write),
            operation.count,
            operation.dtype,
            operation.wire,
            operation.op,
            operation.algo,
            operation.root,
            operation.factor,
            operation.send_lengths,
            operation.recv_lengths,
            timeout_ns,
        )
        if async_op:
            kept = (operation.source, operation.target, read, write)
            return self._track(Work(self._core.collective_async(*args), operation.result, kept, self.abort, finish))
        self._core.collective(*args)
        if finish is not None:
            finish()
        return operation.result

    def _check_on_host(self, stream: Any = None) -> None:
        """Refuse what only CUDA arrays have: a stream, and a thread that plays all ranks."""
        if stream is not None:
            raise ValueError(f"stream={stream!r} with a CPU array: stream= is for CUDA arrays; leave it out")
        if self._collected is not None:
            raise ValueError(
                "inside dcomm.group only CUDA arrays are served: on the CPU this thread would wait for itself; leave "
                "the group first, and use a thread for each communicator"
            )

    def _track(self, work: Work) -> Work:
        """Keep the arrays of `work` alive until it is done, even if the caller drops the handle."""
        while self._pending and self._pending[0].done():
            self._pending.popleft()
        self._pending.append(work)
        return work

    def _settle_pending(self) -> None:
        """Forget the queued operations, all of which have ended; results go to non-contiguous arrays now."""
        while self._pending:
            work = self._pending.popleft()
            work._core.wait_for(1.0)  # the core forgets an operation just before it marks the handle
            work.done()


def is_for_gpu(operation: Operation, stream: Any) -> bool:
    """True where the arrays are in device memory; of a barrier, where it is asked to order a stream."""
    for each in (operation.source, operation.target):
        if each is not None:
            return each.view.device >= 0
    return stream is not None


def _address(operand: Operand | None, staged: Any) -> int:
    if operand is None:
        return 0
    return operand.view.address if staged is operand.array else arrays.view(staged).address
