"""The Communicator: collectives among the ranks of one host."""

from __future__ import annotations

import atexit
import weakref
from collections import deque
from datetime import timedelta
from types import TracebackType
from typing import Any

from dcomm import _core, arrays
from dcomm.errors import CudaError
from dcomm.work import Work, to_seconds

# Codes of csrc/base/dtype.h and csrc/protocol/control.h.
_OPS = {"sum": 0, "avg": 1}
_ALGOS = {"auto": 0, "ring": 1, "two_shot": 2, "one_shot": 4, "tree": 5}
_ALL_REDUCE, _BROADCAST, _BARRIER = 1, 2, 3

_live: weakref.WeakSet[Communicator] = weakref.WeakSet()


def _op_code(op: Any) -> int:
    """The code of a reduce op given as a name or as torch.distributed.ReduceOp."""
    code = _OPS.get(op) if isinstance(op, str) else _OPS.get(str(op).rpartition(".")[2].lower())
    if code is None:
        raise ValueError(f"op={op!r}: expected one of {', '.join(map(repr, _OPS))}")
    return code


def _timeout_ns(timeout: float | timedelta | None) -> int:
    seconds = to_seconds(timeout)
    return 0 if seconds is None else max(1, int(seconds * 1e9))


class Communicator:
    """One rank's membership in a group of ranks on one host.

    Made by :func:`dcomm.init` (ranks are processes) or :func:`dcomm.init_threads` (ranks are threads of this
    process). All ranks call the same collectives in the same order. One thread at a time may use a communicator;
    different communicators are free. After an error it is broken on every rank.

    On the CPU a synchronous call blocks until this rank's part is done, with the GIL released; an asynchronous one
    runs on the communicator's progress thread, strictly in call order.
    """

    def __init__(self, core: _core.Communicator, *, local_rank: int | None = None) -> None:
        """Wrap a core communicator; use :func:`dcomm.init` or :func:`dcomm.init_threads` instead."""
        self._core = core
        self._local_rank = core.rank if local_rank is None else local_rank
        self._fast = core.fast_all_reduce()
        self._pending: deque[Work] = deque()
        _live.add(self)

    @property
    def rank(self) -> int:
        """This rank's number, 0 to world_size - 1."""
        return self._core.rank

    @property
    def world_size(self) -> int:
        """How many ranks there are."""
        return self._core.world_size

    @property
    def local_rank(self) -> int:
        """This rank's number on its host."""
        return self._local_rank

    @property
    def closed(self) -> bool:
        """True after :meth:`close`."""
        return self._core.closed

    def stats(self) -> dict[str, Any]:
        """Operations and array bytes so far: ``{"num_operations": ..., "num_bytes": ...}``."""
        return self._core.stats()

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
            x: (count,) or any shape; float32, float16, bfloat16, float64, int32 or int64; NumPy array, torch
                tensor or writable buffer. Reduced in place unless `out` is given. Non-contiguous arrays are copied
                in and out. CUDA tensors: contiguous, float types, ranks that are threads on one GPU; the call blocks
                the host until all ranks have called and is then asynchronous to the GPU.
            op: "sum" or "avg" (floats only), or the torch.distributed.ReduceOp of that name. Half-precision
                arrays are summed in float32; integers wrap.
            out: Array of the same shape and dtype that takes the result; `x` is then left as it is.
            wire_dtype: "float16" / "bfloat16": float32 data travels in that type and is summed in float32; "avg"
                divides before the cast. None: no conversion.
            algo: "auto", "two_shot" (canonical order: the result does not depend on how a tensor is split) or
                "ring".
            async_op: Return a :class:`Work` at once.
            timeout: Seconds (or timedelta) until :class:`CollectiveTimeoutError`; None: the communicator's.
            stream: CUDA arrays only: the stream to run on, as an integer handle or a torch or CuPy stream; None: the
                current stream of the array's device.

        Returns:
            `out`, or `x`; a :class:`Work` with `async_op`.

        Raises:
            ValueError: Bad op, algo, wire_dtype, timeout, shapes or overlap.
            TypeError: Not an array, or an unsupported dtype.
            PeerLostError, CollectiveTimeoutError, MismatchError, AbortedError, ForkedProcessError,
            ConcurrentUseError: See :mod:`dcomm.errors`.
        """
        plain = out is None and async_op is False and timeout is None and stream is None
        if plain and self._all_reduce_plain(x, op, algo, wire_dtype):
            return x
        source = arrays.view(x)
        target = source
        if out is not None:
            target = arrays.view(out)
            self._check_pair(x, source, out, target)
        elif not source.writable:
            raise ValueError("x is read-only: pass out=, or a writable array")
        op_code = _OPS[op] if type(op) is str and op in _OPS else _op_code(op)
        wire = source.dtype if wire_dtype is None else arrays.wire_code(wire_dtype)
        algo_code = _ALGOS.get(algo) if isinstance(algo, str) else None
        if algo_code is None:
            raise ValueError(f"algo={algo!r}: expected one of {', '.join(map(repr, _ALGOS))}")
        timeout_ns = 0 if timeout is None else _timeout_ns(timeout)

        if source.device >= 0:
            if async_op:
                raise ValueError("async_op is for CPU arrays: a CUDA call is asynchronous to the host already")
            if not (source.contiguous and target.contiguous):
                raise ValueError("got a non-contiguous CUDA array: pass .contiguous()")
            stream_id = arrays.stream_handle(x, stream)
            codes = (source.count, source.dtype, wire, op_code, algo_code, 0)
            arguments = (source.device, source.address, target.address, *codes, stream_id, timeout_ns)
            self._core.collective_cuda(_ALL_REDUCE, *arguments)
            return x if out is None else out
        if stream is not None:
            raise ValueError("stream= is for CUDA arrays; CPU operations have none")
        if not (source.contiguous and target.contiguous):
            return self._all_reduce_staged(x, x if out is None else out, op_code, wire, algo_code, async_op, timeout_ns)
        result = x if out is None else out
        args = self._all_reduce_args(source, target, wire, op_code, algo_code, timeout_ns)
        if async_op:
            handle = self._core.collective_async(*args)
            return self._track(Work(handle, result, (x, out), self.abort))
        self._core.collective(*args)
        return result

    def broadcast(
        self,
        x: Any,
        src: int = 0,
        *,
        async_op: bool = False,
        timeout: float | timedelta | None = None,
    ) -> Any:
        """Copy `x` of rank `src` into `x` of every rank.

        Args:
            x: Array as for :meth:`all_reduce`, of the same count and dtype on every rank.
            src: The rank that sends.
            async_op: Return a :class:`Work` at once.
            timeout: As for :meth:`all_reduce`.

        Returns:
            `x`, or a :class:`Work`.

        Raises:
            ValueError: `src` is no rank, or `x` is read-only on a receiving rank.
            TypeError, DcommError: As for :meth:`all_reduce`. A rank that disagrees raises at the latest in its
                next operation, since `src` need not hear from all.
        """
        if not isinstance(src, int) or not 0 <= src < self.world_size:
            raise ValueError(f"src={src!r}: expected a rank from 0 to {self.world_size - 1}")
        described = arrays.view(x)
        if described.device >= 0:
            raise CudaError("got a CUDA array: broadcast serves CPU arrays only so far; move it with .cpu()")
        if not described.writable and self.rank != src:
            raise ValueError("x is read-only: pass a writable array")
        timeout_ns = _timeout_ns(timeout)
        staged = x
        finish = None
        if not described.contiguous:
            staged = arrays.contiguous_copy(x)
            described = arrays.view(staged)

            if self.rank != src:

                def finish() -> None:
                    arrays.copy_into(x, staged)

        address, count, dtype = described.address, described.count, described.dtype
        args = (_BROADCAST, address, address, count, dtype, -1, 0, 0, src, 1.0, None, None, timeout_ns)
        if async_op:
            return self._track(Work(self._core.collective_async(*args), x, (x, staged), self.abort, finish))
        self._core.collective(*args)
        if finish is not None:
            finish()
        return x

    def barrier(self, *, async_op: bool = False, timeout: float | timedelta | None = None) -> Work | None:
        """Return when every rank has called it.

        Args:
            async_op: Return a :class:`Work` at once.
            timeout: As for :meth:`all_reduce`.
        """
        timeout_ns = _timeout_ns(timeout)
        args = (_BARRIER, 0, 0, 0, 0, -1, 0, 0, 0, 1.0, None, None, timeout_ns)
        if async_op:
            return self._track(Work(self._core.collective_async(*args), None, (), self.abort))
        self._core.collective(*args)
        self._settle_pending()
        return None

    def abort(self) -> None:
        """End every wait on every rank with :class:`AbortedError`; callable from any thread."""
        self._core.abort()

    def close(self) -> None:
        """Finish queued operations, tell the peers, free the shared memory. Idempotent."""
        self._core.close()
        self._settle_pending()

    def __enter__(self) -> Communicator:
        """The communicator itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; after an exception without waiting for what is queued."""
        if kind is None:
            self.close()
        else:
            self._core.leave()

    def __del__(self) -> None:
        core = getattr(self, "_core", None)
        if core is not None:
            core.leave()  # before the arrays of pending operations are freed

    def __repr__(self) -> str:
        state = ", closed" if self.closed else ""
        return f"dcomm.Communicator(rank={self.rank}, world_size={self.world_size}{state})"

    def _all_reduce_plain(self, x: Any, op: Any, algo: str, wire_dtype: Any) -> bool:
        """The shortest way for the common call; False: take the long one, which also explains what is wrong."""
        try:
            op_code, algo_code = _OPS[op], _ALGOS[algo]
            wire = -1 if wire_dtype is None else arrays.WIRE_CODES[wire_dtype]
        except (KeyError, TypeError):
            return False
        kind = arrays.KINDS.get(type(x))
        if kind == arrays.KIND_BUFFER:
            return self._fast(x, op_code, algo_code, wire)
        if kind == arrays.KIND_TENSOR and x.is_cpu:
            try:
                address, plain = x.data_ptr(), x.is_contiguous() and not x.is_neg()
            except RuntimeError:  # a sparse tensor
                return False
            code = arrays.TORCH_CODES.get(x.dtype)
            if plain and code is not None:
                return self._fast(address, x.numel(), code, op_code, algo_code, wire)
        return False

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

    @staticmethod
    def _check_pair(x: Any, source: arrays.View, out: Any, target: arrays.View) -> None:
        if target.dtype != source.dtype or target.count != source.count:
            names = arrays.DTYPE_NAMES
            raise ValueError(
                f"out has {target.count} elements of {names[target.dtype]}: expected {source.count} of "
                f"{names[source.dtype]}, as x has"
            )
        if getattr(x, "shape", None) != getattr(out, "shape", None):
            raise ValueError(f"out has shape {tuple(out.shape)}: expected {tuple(x.shape)}, as x has")
        if not target.writable:
            raise ValueError("out is read-only: pass a writable array")
        if (source.device < 0) != (target.device < 0):
            raise ValueError("x and out are on different devices: put both on one")
        if not (source.contiguous and target.contiguous):
            return  # copied before anything is written
        nbytes = source.count * arrays.DTYPE_BYTES[source.dtype]
        if source.address != target.address and abs(source.address - target.address) < nbytes:
            raise ValueError("x and out overlap in part: pass the same array or disjoint ones")

    @staticmethod
    def _all_reduce_args(
        source: arrays.View, target: arrays.View, wire: int, op: int, algo: int, timeout_ns: int
    ) -> tuple[Any, ...]:
        codes = (source.count, source.dtype, wire, op, algo)
        return (_ALL_REDUCE, source.address, target.address, *codes, 0, 1.0, None, None, timeout_ns)

    def _all_reduce_staged(
        self, x: Any, result: Any, op: int, wire: int, algo: int, async_op: bool, timeout_ns: int
    ) -> Any:
        """Non-contiguous arrays: copied in, reduced, copied out."""
        arrays.check_no_repeats(result)
        source = arrays.view(x)
        if source.contiguous:  # only `result` is strided
            staged = arrays.empty_like(x)
            target = arrays.view(staged)
        else:
            staged = arrays.contiguous_copy(x)
            source = target = arrays.view(staged)
        args = self._all_reduce_args(source, target, wire, op, algo, timeout_ns)

        def finish() -> None:
            arrays.copy_into(result, staged)

        if async_op:
            handle = self._core.collective_async(*args)
            return self._track(Work(handle, result, (x, result, staged), self.abort, finish))
        self._core.collective(*args)
        finish()
        return result


@atexit.register
def _leave_all() -> None:
    """Say goodbye before the interpreter goes: no thread of dcomm's outlives it."""
    for comm in list(_live):
        comm._core.leave()
