"""Collectives with a root: broadcast, reduce, gather, scatter. The root need not hear from all, nor all from it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from dcomm import arrays, reduce_ops
from dcomm.collectives import block_shapes, split_shape
from dcomm.operation import (
    BROADCAST,
    GATHER,
    REDUCE,
    SCATTER,
    Endpoint,
    Operand,
    Operation,
    check_out,
    check_overlap,
    check_root,
    check_writable,
    operand,
)


class RootedCollectives(Endpoint):
    """The collectives with a root, as methods of a communicator."""

    def broadcast(
        self,
        x: Any,
        src: int = 0,
        *,
        async_op: bool = False,
        timeout: float | timedelta | None = None,
        stream: Any = None,
    ) -> Any:
        """Copy `x` of rank `src` into `x` of every rank.

        Args:
            x: array as for :meth:`all_reduce`, of the same count and dtype on every rank.
            src: The rank that sends.
            async_op: Return a :class:`Work` at once.
            timeout: As for :meth:`all_reduce`.
            stream: CUDA arrays only, as for :meth:`all_reduce`.

        Returns:
            `x`, or a :class:`Work`.

        Raises:
            ValueError: `src` is no rank, or `x` is read-only on a receiving rank.
            TypeError, DcommError: As for :meth:`all_reduce`. A rank that disagrees raises
                at the latest in its next operation, since `src` need not hear from all.
        """
        src = check_root("src", src, self.world_size)
        source = operand(x, stream)
        target = None
        if self.rank != src:
            check_writable("x", source)
            target = source
        operation = Operation(BROADCAST, source.view.count, source.view.dtype, source, target, x, root=src)
        return self._run(operation, async_op, timeout, stream)

    def reduce(
        self,
        x: Any,
        op: Any = "sum",
        *,
        dst: int = 0,
        out: Any = None,
        async_op: bool = False,
        timeout: float | timedelta | None = None,
        stream: Any = None,
    ) -> Any:
        """Reduce `x` over all ranks; rank `dst` gets the result. Canonical order, like "two_shot".

        Args:
            x: array as for :meth:`all_reduce`. On `dst` reduced in place unless `out` is given; left as it is on
                the other ranks.
            op: As for :meth:`all_reduce`.
            dst: The rank that gets the result.
            out: On `dst` only: array of the same shape and dtype that takes the result.
            async_op: Return a :class:`Work` at once.
            timeout: As for :meth:`all_reduce`.
            stream: CUDA arrays only, as for :meth:`all_reduce`.

        Returns:
            `out` or `x` on `dst`, None elsewhere; a :class:`Work` with `async_op`.

        Raises:
            ValueError: Bad op, dst, timeout, shapes or overlap; `out` on another rank than `dst`.
            TypeError, DcommError: As for :meth:`broadcast`.
        """
        op_code, factor = reduce_ops.op_code(op)
        dst = check_root("dst", dst, self.world_size)
        source = operand(x, stream)
        target = None
        if self.rank != dst:
            self._refuse_out(out, dst)
        elif out is None:
            check_writable("x", source, "pass out=, or a writable array")
            target = source
        else:
            target = operand(out, stream)
            check_out(source, target, [source.view.shape], "as x has; pass such an array")
            check_overlap(source, target, 0, " in part: pass the same array or disjoint ones")
        return self._run(
            Operation(
                REDUCE,
                source.view.count,
                source.view.dtype,
                source,
                target,
                None if target is None else target.array,
                op=op_code,
                root=dst,
                factor=factor,
            ),
            async_op,
            timeout,
            stream,
        )

    def gather(
        self,
        x: Any,
        *,
        dst: int = 0,
        out: Any = None,
        async_op: bool = False,
        timeout: float | timedelta | None = None,
        stream: Any = None,
    ) -> Any:
        """Give rank `dst` the arrays of all ranks, in rank order.

        Args:
            x: (n, ...) or (); array as for :meth:`all_reduce`, of the same count and dtype on every rank. Left as
                it is.
            dst: The rank that gets the result.
            out: On `dst` only: (world_size * n, ...), or (world_size, n, ...), which is the same memory; `x` may be
                its block `dst`. None: a new array of the former shape and `x`'s library.
            async_op: Return a :class:`Work` at once.
            timeout: As for :meth:`all_reduce`.
            stream: CUDA arrays only, as for :meth:`all_reduce`.

        Returns:
            `out` or the new array on `dst`, None elsewhere; a :class:`Work` with `async_op`.

        Raises:
            ValueError: Bad dst, timeout, shapes or overlap; `out` on another rank than `dst`.
            TypeError, DcommError: As for :meth:`broadcast`.
        """
        dst = check_root("dst", dst, self.world_size)
        source = operand(x, stream)
        target = None
        if self.rank != dst:
            self._refuse_out(out, dst)
        else:
            shapes = [arrays.blocks_shape(source.view.shape, self.world_size), (self.world_size, *source.view.shape)]
            target = operand(arrays.empty(x, shapes[0]) if out is None else out, stream)
            check_out(source, target, shapes, f"x of each of {self.world_size} ranks; pass such an array, or out=None")
            check_overlap(source, target, dst, f": pass disjoint arrays, or out's block {dst} as x")
        result = None if target is None else target.array
        return self._run(
            Operation(GATHER, source.view.count, source.view.dtype, source, target, result, root=dst),
            async_op,
            timeout,
            stream,
        )

    def scatter(
        self,
        x: Any = None,
        *,
        src: int = 0,
        out: Any = None,
        async_op: bool = False,
        timeout: float | timedelta | None = None,
        stream: Any = None,
    ) -> Any:
        """Give rank r block r of `x` of rank `src`.

        Args:
            x: On `src` only: (world_size * n, ...); array as for :meth:`all_reduce`. Left as it is.
            src: The rank that sends.
            out: (n, ...), of `x`'s dtype; on `src` also (...) where n is 1. On `src` it may be `x`'s block `src`, and
                None makes a new array of `x`'s library; on the other ranks it must be given.
            async_op: Return a :class:`Work` at once.
            timeout: As for :meth:`all_reduce`.
            stream: CUDA arrays only, as for :meth:`all_reduce`.

        Returns:
            `out`, or the new array; a :class:`Work` with `async_op`.

        Raises:
            ValueError: Bad src, timeout, shapes or overlap; `x` missing on `src` or given elsewhere; `out` missing.
            TypeError, DcommError: As for :meth:`broadcast`.
        """
        src = check_root("src", src, self.world_size)
        source: Operand | None = None
        if self.rank != src:
            if x is not None:
                raise ValueError(f"x on rank {self.rank}: expected x on src={src} only; pass out= only")
            if out is None:
                raise ValueError(f"no out on rank {self.rank}: only src={src} has x; pass out= for this rank's block")
            target = operand(out, stream)
            check_writable("out", target)
        else:
            if x is None:
                raise ValueError(f"no x on src={src}: expected a block for each of {self.world_size} ranks; pass x")
            source = operand(x, stream)
            block = split_shape(source, self.world_size, "scatter")
            shapes = block_shapes(block, source.view.shape, self.world_size)
            target = operand(arrays.empty(x, block) if out is None else out, stream)
            reason = f"a block of x for each of {self.world_size} ranks"
            check_out(source, target, shapes, f"{reason}; pass such an array, or out=None for a new one")
            check_overlap(source, target, src, f": pass disjoint arrays, or x's block {src} as out")
        operation = Operation(SCATTER, target.view.count, target.view.dtype, source, target, target.array, root=src)
        return self._run(operation, async_op, timeout, stream)

    def _refuse_out(self, out: Any, dst: int) -> None:
        if out is not None:
            raise ValueError(f"out on rank {self.rank}: expected out on dst={dst} only; pass out=None here")
