"""Collectives in which all ranks play the same part: all_reduce, reduce_scatter, all_gather, all_to_all, barrier."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

from dcomm import _core, arrays, reduce_ops
from dcomm.bucket import Bucket, as_bucket
from dcomm.operation import (
    ALL_GATHER,
    ALL_REDUCE,
    ALL_TO_ALL,
    BARRIER,
    REDUCE_SCATTER,
    Endpoint,
    Operand,
    Operation,
    check_out,
    check_overlap,
    check_writable,
    operand,
    timeout_to_ns,
)
from dcomm.work import Work

_OVERLAP_IN_PART = " in part: pass the same array or disjoint ones"


def split_shape(x: Operand, world_size: int, what: str) -> tuple[int, ...]:
    """The shape of one of `world_size` equal blocks along the first dimension of `x`.

    Raises:
        ValueError: They cannot be equal.
    """
    shape = x.view.shape
    if not shape or shape[0] % world_size:
        raise ValueError(
            f"{what}: x has shape {shape}: expected a first dimension that {world_size} ranks share evenly; pad x"
        )
    return (shape[0] // world_size, *shape[1:])


def block_shapes(block: tuple[int, ...], whole: tuple[int, ...], num_blocks: int) -> list[tuple[int, ...]]:
    """Shapes for one block of an array of shape `whole`: where that has a row for each rank, also the row itself."""
    return [block, whole[1:]] if whole[0] == num_blocks else [block]


class SymmetricCollectives(Endpoint):
    """The collectives without a root, as methods of a communicator."""

    def __init__(self, core: _core.Communicator) -> None:
        super().__init__(core)
        tables = (reduce_ops.OP_CODES, reduce_ops.ALGO_CODES, arrays.WIRE_CODES, arrays.KINDS, arrays.TORCH_CODES)
        self._fast = core.fast_all_reduce(*tables)
        self._fast_async = core.fast_all_reduce_async(*tables)

    def all_reduce(
        self,
        x: Any,
        op: Any = "sum",
        *,
        out: Any = None,
        wire_dtype: Any = None,
        algo: str = "auto",
        async_op: bool = False,
        timeout: float | timedelta | None = None,
        stream: Any = None,
    ) -> Any:
        """Reduce `x` element by element over all ranks; every rank gets the result, bit for bit the same.

        Args:
            x: (count,) or any shape; float32, float16, bfloat16, float64, int8, uint8, int32, int64, bool, complex64
                or complex128; NumPy array, torch tensor or writable buffer. Reduced in place unless `out` is given.
                Non-contiguous arrays are copied in and out. Or a :class:`dcomm.Bucket`: many arrays as one message,
                read where they lie. CUDA arrays (torch, CuPy, ``__cuda_array_interface__``, DLPack): contiguous, of
                float32, float16 or bfloat16 ("sum" and "avg"), int8, uint8, int32, int64 or bool ("sum"). Where ranks
                are threads they share one GPU, and the call blocks the host until all have called (docs/gpu.md); where
                they are processes only the first CUDA call waits for all (docs/gpu_processes.md). Either way it is
                asynchronous to the GPU.
            op: "sum", "avg" (floats and complex numbers), "prod", "min", "max" (all but complex numbers), "band",
                "bor", "bxor" (integers and bool), the torch.distributed.ReduceOp of that name, or
                :func:`dcomm.premul_sum` (floats). Half-precision arrays are reduced in float32; integers wrap; of
                bool, sum and max are or, prod and min are and. In min and max NaN wins, and -0 < +0.
            out: Array of the same shape and dtype that takes the result; `x` is then left as it is. A Bucket, or with a
                Bucket as `x`: contiguous memory of as many elements.
            wire_dtype: "float16" / "bfloat16": float32 data travels in that type and is reduced in float32; "avg"
                divides before the cast. "fp8" (or "fp8_block32") / "fp8_block128": as e4m3 numbers with a power of two
                as scale for each 32 or 128 of them, 1.03 or 1.01 bytes an element; sums, averages and premul_sum only,
                always by two_shot; an inf or NaN makes its block NaN (docs/compression.md). None: no conversion.
            algo: "auto"; "two_shot" or "one_shot" (canonical order: the result does not depend on how a tensor is
                split); "ring" or "tree"; "direct" (canonical order): only for arrays of :meth:`empty` or
                :meth:`register`, for which "auto" takes it in place of "two_shot". For integer and bool CUDA arrays
                "auto" is "two_shot", and besides it there is "ring".
            async_op: Return a :class:`Work` at once.
            timeout: Seconds (or timedelta) until :class:`CollectiveTimeoutError`; None: the communicator's.
            stream: CUDA arrays only: the stream to run on, as an integer handle or a torch or CuPy stream. None:
                torch's or CuPy's current stream of the array's device; of other libraries the one that the array names,
                else the legacy default stream. The result is there in the order of this stream.

        Returns:
            `out`, or `x`; a :class:`Work` with `async_op`.

        Raises:
            ValueError: Bad op, algo, wire_dtype, timeout, shapes or overlap.
            TypeError: Not an array, or an unsupported dtype.
            PeerLostError, CollectiveTimeoutError, MismatchError, AbortedError, ForkedProcessError,
            ConcurrentUseError: See :mod:`dcomm.errors`.
        """
        plain = async_op is False and timeout is None and stream is None and self._collected is None
        if plain and self._fast(x, out, op, algo, wire_dtype):
            return x if out is None else out
        if isinstance(x, Bucket) or isinstance(out, Bucket):
            return self._all_reduce_lists(x, out, op, wire_dtype, algo, async_op, timeout, stream)
        source = target = operand(x, stream)
        if out is None:
            check_writable("x", source, "pass out=, or a writable array")
        else:
            target = operand(out, stream)
            check_out(source, target, [source.view.shape], "as x has; pass such an array")
            check_overlap(source, target, 0, _OVERLAP_IN_PART)
        op_code, factor = reduce_ops.op_code(op)
        operation = Operation(
            ALL_REDUCE,
            source.view.count,
            source.view.dtype,
            source,
            target,
            target.array,
            wire=-1 if wire_dtype is None else arrays.wire_code(wire_dtype),
            op=op_code,
            algo=reduce_ops.algo_code(algo),
            factor=factor,
        )
        return self._run(operation, async_op, timeout, stream)

    def _start_plain(self, x: Any, op: str) -> Work | bool:
        """Begin an all-reduce of `x` in place; True: it is done already, False: not begun, `x` needs the long way."""
        started = self._fast_async(x, None, op, "auto", None)
        return started if isinstance(started, bool) else self._track(Work(started, x, (x,), self.abort))

    def all_reduce_coalesced(
        self,
        arrays: Iterable[Any],
        op: Any = "sum",
        *,
        wire_dtype: Any = None,
        algo: str = "auto",
        async_op: bool = False,
        timeout: float | timedelta | None = None,
    ) -> Any:
        """Reduce many arrays in place as one message: :meth:`all_reduce` of a :class:`dcomm.Bucket` made on the spot.

        Where the same arrays are reduced again and again, make the Bucket once.

        Args:
            arrays: Arrays of one dtype, as for :class:`dcomm.Bucket`.
            op: As for :meth:`all_reduce`.
            wire_dtype: As for :meth:`all_reduce`.
            algo: As for :meth:`all_reduce`.
            async_op: Return a :class:`Work` at once.
            timeout: As for :meth:`all_reduce`.

        Returns:
            The Bucket; a :class:`Work` with `async_op`.

        Raises:
            ValueError, TypeError, DcommError: As for :class:`dcomm.Bucket` and :meth:`all_reduce`.
        """
        return self.all_reduce(Bucket(arrays), op, wire_dtype=wire_dtype, algo=algo, async_op=async_op, timeout=timeout)

    def _all_reduce_lists(
        self,
        x: Any,
        out: Any,
        op: Any,
        wire_dtype: Any,
        algo: str,
        async_op: bool,
        timeout: float | timedelta | None,
        stream: Any,
    ) -> Any:
        if stream is not None:
            raise ValueError(f"stream={stream!r} with a Bucket: stream= is for CUDA arrays; leave it out")
        self._check_on_host()
        source = as_bucket(x)
        target = source if out is None else as_bucket(out)
        op_code, factor = reduce_ops.op_code(op)
        wire = -1 if wire_dtype is None else arrays.wire_code(wire_dtype)
        call = (source._core, target._core, wire, op_code, reduce_ops.algo_code(algo), factor, timeout_to_ns(timeout))
        result = x if out is None else out
        if async_op:
            core_work = _core.all_reduce_lists_async(self._core, *call)
            return self._track(Work(core_work, result, (source, target), self.abort, None))
        _core.all_reduce_lists(self._core, *call)
        return result

    def reduce_scatter(
        self,
        x: Any,
        op: Any = "sum",
        *,
        out: Any = None,
        algo: str = "auto",
        async_op: bool = False,
        timeout: float | timedelta | None = None,
        stream: Any = None,
    ) -> Any:
        """Reduce `x` over all ranks; rank r gets block r of the result. Canonical order, like "two_shot".

        Args:
            x: (world_size * n, ...); array as for :meth:`all_reduce`. Left as it is.
            op: As for :meth:`all_reduce`.
            out: (n, ...), or (...) where n is 1; may be this rank's own block of `x`. None: a new array of `x`'s
                library.
            algo: "flat": through slots. "direct": every rank reads the others' `x` where it lies, for which all must
                pass parts, not necessarily the same ones, of one array of :meth:`empty`; without premul_sum. "auto":
                the ranks find out, from 32 KiB on, whether all of them have done so. The bits are the same. CUDA
                arrays: "auto".
            async_op: Return a :class:`Work` at once.
            timeout: As for :meth:`all_reduce`.
            stream: CUDA arrays only, as for :meth:`all_reduce`.

        Returns:
            `out`, or the new array; a :class:`Work` with `async_op`.

        Raises:
            ValueError: Bad op, algo or timeout, the first dimension does not divide, `out` has another shape or dtype,
                is read-only or overlaps `x`; with "direct", memory that the other ranks do not reach.
            MismatchError: Also where "direct" gets parts of different arrays; on every rank.
            TypeError, DcommError: As for :meth:`all_reduce`.
        """
        op_code, factor = reduce_ops.op_code(op)
        source = operand(x, stream)
        block = split_shape(source, self.world_size, "reduce_scatter")
        shapes = block_shapes(block, source.view.shape, self.world_size)
        target = self._take_out(source, out, stream, shapes, f"a block of x for each of {self.world_size} ranks", "x")
        return self._run(
            Operation(
                REDUCE_SCATTER,
                target.view.count,
                source.view.dtype,
                source,
                target,
                target.array,
                op=op_code,
                algo=reduce_ops.algo_code(algo, reduce_ops.BLOCK_ALGO_CODES),
                factor=factor,
            ),
            async_op,
            timeout,
            stream,
        )

    def all_gather(
        self,
        x: Any,
        *,
        out: Any = None,
        algo: str = "auto",
        async_op: bool = False,
        timeout: float | timedelta | None = None,
        stream: Any = None,
    ) -> Any:
        """Give every rank the arrays of all ranks, in rank order.

        Args:
            x: (n, ...) or (); array as for :meth:`all_reduce`, of the same count and dtype on every rank. Left as
                it is.
            out: (world_size * n, ...), or (world_size, n, ...), which is the same memory; `x` may be its block of this
                rank. None: a new array of the former shape and `x`'s library.
            algo: As for :meth:`reduce_scatter`. `x` may also be this rank's block of an `out` that lies there.
            async_op: Return a :class:`Work` at once.
            timeout: As for :meth:`all_reduce`.
            stream: CUDA arrays only, as for :meth:`all_reduce`.

        Returns:
            `out`, or the new array; a :class:`Work` with `async_op`.

        Raises:
            ValueError: Bad algo or timeout; `out` has another shape or dtype, is read-only or overlaps `x`; with
                "direct", memory that the other ranks do not reach.
            TypeError, DcommError: As for :meth:`all_reduce`.
        """
        source = operand(x, stream)
        shapes = [arrays.blocks_shape(source.view.shape, self.world_size), (self.world_size, *source.view.shape)]
        target = self._take_out(source, out, stream, shapes, f"x of each of {self.world_size} ranks", "out")
        code = reduce_ops.algo_code(algo, reduce_ops.BLOCK_ALGO_CODES)
        count, dtype = source.view.count, source.view.dtype
        operation = Operation(ALL_GATHER, count, dtype, source, target, target.array, algo=code)
        return self._run(operation, async_op, timeout, stream)

    def all_to_all(
        self,
        x: Any,
        *,
        out: Any = None,
        send_counts: Sequence[int] | None = None,
        recv_counts: Sequence[int] | None = None,
        async_op: bool = False,
        timeout: float | timedelta | None = None,
        stream: Any = None,
    ) -> Any:
        """Send block p of `x` to rank p; what rank p sends here becomes block p of the result.

        Args:
            x: (n, ...); array as for :meth:`all_reduce`. Left as it is. CUDA arrays: without `send_counts`.
            out: (world_size * (n / world_size), ...), or (sum(recv_counts), ...); shares no memory with `x`. None: a
                new array of `x`'s library.
            send_counts: Rows of `x` for each rank, one block after the other. None: n / world_size for each.
            recv_counts: Rows from each rank; with `send_counts`. recv_counts[p] here is send_counts[r] of rank p, where
                r is this rank.
            async_op: Return a :class:`Work` at once.
            timeout: As for :meth:`all_reduce`.
            stream: CUDA arrays only, as for :meth:`all_reduce`.

        Returns:
            `out`, or the new array; a :class:`Work` with `async_op`.

        Raises:
            ValueError: Bad timeout or counts, the first dimension does not divide, `out` has another shape or dtype,
                is read-only or overlaps `x`.
            MismatchError: A rank sends another count than its peer expects; on every rank.
            TypeError, DcommError: As for :meth:`all_reduce`.
        """
        source = operand(x, stream)
        if send_counts is None and recv_counts is None:
            block = split_shape(source, self.world_size, "all_to_all")
            target = self._take_out(source, out, stream, [source.view.shape], "as x has", None)
            count = arrays.row_count((1, *block))
            return self._run(
                Operation(ALL_TO_ALL, count, source.view.dtype, source, target, target.array), async_op, timeout, stream
            )
        if send_counts is None or recv_counts is None:
            raise ValueError(
                "send_counts and recv_counts go together: expected both, or neither for equal blocks; pass "
                f"{'send_counts' if send_counts is None else 'recv_counts'} as well"
            )
        shape = source.view.shape
        sends = _row_counts("send_counts", send_counts, self.world_size)
        recvs = _row_counts("recv_counts", recv_counts, self.world_size)
        if not shape or sum(sends) != shape[0]:
            raise ValueError(
                f"send_counts={sends} are {sum(sends)} rows: expected the first dimension of x, which has shape "
                f"{shape}; pass counts that cover x"
            )
        if sends[self.rank] != recvs[self.rank]:
            raise ValueError(
                f"send_counts[{self.rank}]={sends[self.rank]} and recv_counts[{self.rank}]={recvs[self.rank]} on rank "
                f"{self.rank}: expected equal numbers for what a rank sends to itself; correct one of them"
            )
        target = self._take_out(source, out, stream, [(sum(recvs), *shape[1:])], "the sum of recv_counts in rows", None)
        row = arrays.row_count(shape)
        operation = Operation(ALL_TO_ALL, 0, source.view.dtype, source, target, target.array)
        if self.world_size == 1:
            operation.count = source.view.count
        else:
            operation.send_lengths = [row * rows for rows in sends]
            operation.recv_lengths = [row * rows for rows in recvs]
        return self._run(operation, async_op, timeout, stream)

    def barrier(
        self, *, async_op: bool = False, timeout: float | timedelta | None = None, stream: Any = None
    ) -> Work | None:
        """Return when every rank has called it.

        Args:
            async_op: Return a :class:`Work` at once.
            timeout: As for :meth:`all_reduce`.
            stream: A barrier of CUDA streams instead, on every rank: what comes after it on any rank's stream starts
                when what came before it on every rank's stream is done. The host waits for the calls alone.
        """
        work: Work | None = self._run(Operation(BARRIER, 0, 0), async_op, timeout, stream)
        if work is None:
            self._settle_pending()
        return work

    def _take_out(
        self,
        x: Operand,
        out: Any,
        stream: Any,
        shapes: list[tuple[int, ...]],
        reason: str,
        own_block_of: str | None,
    ) -> Operand:
        """The array for the result: `out` when it fits, or a new one."""
        if out is None:
            return operand(arrays.empty(x.array, shapes[0]), stream)
        target = operand(out, stream)
        check_out(x, target, shapes, f"{reason}; pass such an array, or out=None for a new one")
        if own_block_of is None:
            check_overlap(x, target, None, ": pass disjoint arrays, or out=None for a new one")
        else:
            small = "x" if own_block_of == "out" else "out"
            block = f"{own_block_of}'s block {self.rank} as {small}"
            check_overlap(x, target, self.rank, f": pass disjoint arrays, or {block}")
        return target


def _row_counts(name: str, counts: Sequence[int], world_size: int) -> list[int]:
    try:
        rows = [operator.index(count) for count in counts]
    except TypeError:
        raise TypeError(f"{name}={counts!r}: expected {world_size} whole numbers, one for each rank") from None
    if len(rows) != world_size:
        raise ValueError(f"{name}={rows} has {len(rows)} numbers: expected {world_size}, one for each rank")
    for rank, count in enumerate(rows):
        if count < 0:
            raise ValueError(f"{name}[{rank}]={count}: expected a number of rows, at least 0")
    return rows
