"""A storm's operations, what they are given and must return: small whole numbers, exact in every dtype and order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from storm_cases import Operation

if TYPE_CHECKING:
    import dcomm

Array = npt.NDArray[np.generic]
# Of an odd period, so that no two chunks of a message are alike.
_BASES = {dtype: (np.arange(65_521) % 5).astype(dtype) for dtype in ("float16", "uint8", "int32", "int64")} | {
    dtype: (np.arange(65_521) % 5).astype(dtype) for dtype in ("float32", "float64")
}


def _terms(dtype: str, count: int, offset: int = 0) -> Array:
    base = _BASES[dtype]
    if offset + count <= len(base):
        return base[offset : offset + count].copy()
    return np.resize(base, offset + count)[offset:]


def given(operation: Operation, rank: int, world_size: int) -> Array:
    """Rank r has the terms + r."""
    blocks = world_size if operation.kind in ("reduce_scatter", "scatter", "all_to_all") else 1
    x = _terms(operation.dtype, blocks * operation.count)
    x += x.dtype.type(rank)
    return x


def _reduced(operation: Operation, terms: Array, n: int) -> Array:
    exact = terms.astype(np.float64)
    if operation.op == "sum":
        exact = exact * n + n * (n - 1) / 2
    else:
        exact = exact + ((n - 1) / 2 if operation.op == "avg" else n - 1)
    return exact.astype(operation.dtype)


def expected(operation: Operation, rank: int, n: int) -> Array | None:
    """None: nothing to look at on this rank."""
    kind, dtype, count, root = operation.kind, operation.dtype, operation.count, operation.root
    terms = _terms(dtype, count)
    one = terms.dtype.type
    if kind == "all_reduce":
        return _reduced(operation, terms, n)
    if kind == "reduce":
        return _reduced(operation, terms, n) if rank == root else None
    if kind == "reduce_scatter":
        return _reduced(operation, _terms(dtype, count, rank * count), n)
    if kind == "broadcast":
        return terms + one(root)
    if kind == "all_gather" or (kind == "gather" and rank == root):
        return np.concatenate([terms + one(peer) for peer in range(n)])
    if kind == "scatter":
        return _terms(dtype, count, rank * count) + one(root)
    if kind == "all_to_all":
        return np.concatenate([_terms(dtype, count, rank * count) + one(peer) for peer in range(n)])
    return None


def call(comm: dcomm.Communicator, operation: Operation, x: Array) -> Any:
    """Calls it with what is given: its result or its Work."""
    kind = operation.kind
    a_sync = operation.is_async
    if kind == "barrier":
        return comm.barrier(async_op=a_sync)
    if kind == "all_reduce":
        return comm.all_reduce(x, operation.op, algo=operation.algo, async_op=a_sync)
    if kind == "reduce_scatter":
        return comm.reduce_scatter(x, operation.op, async_op=a_sync)
    if kind == "reduce":
        return comm.reduce(x, dst=operation.root, op=operation.op, async_op=a_sync)
    if kind == "gather":
        return comm.gather(x, dst=operation.root, async_op=a_sync)
    if kind == "broadcast":
        return comm.broadcast(x, src=operation.root, async_op=a_sync)
    if kind == "scatter":
        out = np.empty(operation.count, operation.dtype)
        on_root = x if comm.rank == operation.root else None
        return comm.scatter(on_root, src=operation.root, out=out, async_op=a_sync)
    return getattr(comm, kind)(x, async_op=a_sync)
