"""One random call of any collective, what it must give, and how far from it the result may be.

Expected values are computed in float64 (float64 arrays: long double), in integers, or in bool; the bounds are those of
docs/algorithms.md, with the rounding of the float32 additions beside them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import reference
from numpy.typing import NDArray
from rank_pool import RankPool

import dcomm

Array = NDArray[Any]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOATS = ["float32", "float16", "bfloat16", "float64"]
INTEGERS = ["int8", "uint8", "int32", "int64"]
COMPLEX = ["complex64", "complex128"]
DTYPES = [*FLOATS, *INTEGERS, "bool", *COMPLEX]
REDUCTIONS = ["all_reduce", "reduce_scatter", "reduce"]
MOVES = ["all_gather", "broadcast", "gather", "scatter", "all_to_all"]
COLLECTIVES = [*REDUCTIONS, *MOVES]
ALGOS = ["auto", "one_shot", "two_shot", "ring", "tree"]
LAYOUTS = ["plain", "odd address", "every other", "reversed", "transposed"]
UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}
TINY = {"float16": 2.0**-25, "bfloat16": 2.0**-134, "float32": 2.0**-150, "float64": 2.0**-1075}  # half of the smallest
CANONICAL_NAN = {2: {"float16": 0x7E00, "bfloat16": 0x7FC0}, 4: 0x7FC00000, 8: 0x7FF8000000000000}


def ops_of(dtype: str) -> list[str]:
    if dtype in FLOATS:
        return ["sum", "avg", "prod", "min", "max", "premul_sum"]
    if dtype in COMPLEX:
        return ["sum", "avg"]
    return ["sum", "prod", "min", "max", "band", "bor", "bxor"]


def numpy_dtype(name: str) -> np.dtype[Any]:
    return BFLOAT16 if name == "bfloat16" else np.dtype(name)


@dataclass(frozen=True)
class Case:
    """A call on `world_size` ranks. `rows`: of the array, or of a block."""

    world_size: int
    collective: str
    dtype: str
    op: str
    algo: str
    wire: str | None
    rows: int
    layout: str
    out_layout: str | None  # None: in place, or a new array
    special: bool  # NaN, infinities, zeros of both signs; the ends of the range of integers
    async_op: bool
    root: int
    seed: int


def place(values: Array, layout: str) -> Array:
    """The same elements at another kind of address or with other strides."""
    if layout == "plain":
        return values.copy()
    if layout == "odd address":
        room = bytearray(values.nbytes + 3)
        placed = np.frombuffer(room, np.uint8)[3 : 3 + values.nbytes].view(values.dtype).reshape(values.shape)
    elif layout == "every other":
        placed = np.zeros((2 * values.shape[0], *values.shape[1:]), values.dtype)[::2]
    elif layout == "reversed":
        placed = np.zeros_like(values)[::-1]
    else:
        placed = np.zeros(values.shape[::-1], values.dtype).T
    placed[...] = values
    return placed


def random_values(case: Case, rank: int, rows: int) -> Array:
    """(rows,), or (rows, 2) for a layout that has two dimensions."""
    rng = np.random.default_rng([case.seed, rank])
    shape = (rows, 2) if case.layout == "transposed" else (rows,)
    if case.dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    if case.dtype in INTEGERS:
        info = np.iinfo(case.dtype)
        values = rng.integers(info.min, info.max, shape, case.dtype, endpoint=True)
        if case.special:
            values[rng.random(shape) < 0.2] = info.min
        return values
    parts = []
    for _ in range(2 if case.dtype in COMPLEX else 1):
        part = rng.uniform(-100, 100, shape)
        if case.op == "prod":
            part = np.exp2(rng.uniform(-1, 1, shape)) * rng.choice([-1.0, 1.0], shape)
        if case.special:
            some = rng.random(shape) < 0.2
            part[some] = rng.choice([np.nan, np.inf, -np.inf, 0.0, -0.0], int(some.sum()))
        parts.append(part)
    if len(parts) == 1:
        return parts[0].astype(numpy_dtype(case.dtype))
    values = np.empty(shape, case.dtype)
    values.real, values.imag = parts
    return values


def factor_of(rank: int) -> float:
    return 0.75 * rank - 1.25


def ordered(values: Array) -> Array:
    """Integers in the order of these floats, with -0 below +0."""
    bits = values.view(f"i{values.itemsize}").astype(np.int64)
    lowest = np.int64(-(2 ** (8 * values.itemsize - 1)))
    return np.where(bits < 0, lowest - bits - 1, bits)


def extreme(inputs: list[Array], op: str) -> Array:
    """min or max of floats, bit for bit but for NaN, which wins."""
    best = inputs[0].copy()
    for values in inputs[1:]:
        better = ordered(values) < ordered(best) if op == "min" else ordered(values) > ordered(best)
        best = np.where(better, values, best)
    for values in inputs:
        best[np.isnan(values)] = np.nan
    return best


def exact(inputs: list[Array], case: Case) -> Array | None:
    """The only right result; None where rounding leaves a choice."""
    op = case.op
    if case.dtype == "bool":
        stack = np.array(inputs)
        if op in ("sum", "max", "bor"):
            return stack.any(axis=0)
        return np.logical_xor.reduce(stack) if op == "bxor" else stack.all(axis=0)
    if case.dtype in INTEGERS:
        functions: dict[str, Any] = {
            "sum": np.add, "prod": np.multiply, "min": np.minimum, "max": np.maximum,
            "band": np.bitwise_and, "bor": np.bitwise_or, "bxor": np.bitwise_xor,
        }  # fmt: skip
        with np.errstate(over="ignore"):
            return functions[op].reduce(np.array(inputs), axis=0, dtype=inputs[0].dtype)  # type: ignore[no-any-return]
    if op in ("min", "max"):
        if case.wire:
            return extreme([reference.ROUNDINGS[case.wire](values) for values in inputs], op)
        return extreme(inputs, op)
    return None


def components(values: Array) -> Array:
    if values.dtype.kind != "c":
        return values
    return np.ascontiguousarray(values).view(f"f{values.itemsize // 2}")


def rounded(inputs: list[Array], case: Case) -> tuple[Array, Array]:
    """The result in higher precision, and how far from it a correct one may be."""
    n = case.world_size
    wide = np.longdouble if case.dtype in ("float64", "complex128") else np.float64
    terms = np.array([components(values).astype(wide) for values in inputs])
    name = {"complex64": "float32", "complex128": "float64"}.get(case.dtype, case.dtype)
    unit, tiny = UNIT[case.wire or name], TINY[case.wire or name]
    accumulate = UNIT["float64" if name == "float64" else "float32"]
    with np.errstate(all="ignore"):
        if case.op == "premul_sum":
            terms = terms * np.array([factor_of(rank) for rank in range(n)]).reshape(n, *[1] * (terms.ndim - 1))
        if case.op == "prod":
            value = np.prod(terms, axis=0)
            bound = np.abs(value) * (2 * n * unit + 2 * n * accumulate) + tiny
            return value, bound
        divisor = n if case.op == "avg" else 1
        value = terms.sum(axis=0) / divisor
        mean_abs = np.abs(terms).sum(axis=0) / divisor
        if unit == accumulate:
            return value, (n + 2) * unit * mean_abs + (n + 1) * tiny
        if case.algo in ("ring", "tree") and case.collective == "all_reduce":
            bound = n * unit * mean_abs + n * tiny
        else:
            bound = unit * (mean_abs + np.abs(value)) + (n + 1) * tiny
        return value, bound * (1 + n * unit) + (n + 2) * accumulate * mean_abs


def check_reduction(got: Array, inputs: list[Array], case: Case) -> None:
    wanted = exact(inputs, case)
    if wanted is None:
        value, bound = rounded(inputs, case)
        got = components(got)
        finite = np.isfinite(value)
        with np.errstate(invalid="ignore"):
            error = np.abs(got.astype(value.dtype) - value)
        worst = int(np.argmax(np.where(finite, error - bound, -1))) if got.size else 0
        assert (error <= bound)[finite].all(), (
            f"element {worst}: got {got.flat[worst]!r}, expected {value.flat[worst]!r} +- {bound.flat[worst]!r}"
        )
        np.testing.assert_array_equal(got.astype(np.float64)[~finite], value.astype(np.float64)[~finite])
    else:
        is_nan = np.isnan(wanted) if wanted.dtype.kind not in "iub" else np.zeros(wanted.shape, bool)
        bits = f"u{wanted.itemsize}"
        np.testing.assert_array_equal(got.view(bits)[~is_nan], wanted.astype(got.dtype).view(bits)[~is_nan])
        assert (got != got)[is_nan].all()
    if got.dtype.kind not in "iub":
        canonical: Any = CANONICAL_NAN[got.itemsize]
        canonical = canonical[case.dtype] if isinstance(canonical, dict) else canonical
        assert (got.view(f"u{got.itemsize}")[got != got] == canonical).all()


def split(values: Array, num_blocks: int) -> list[Array]:
    length = len(values) // num_blocks
    return [values[index * length : (index + 1) * length] for index in range(num_blocks)]


def check_case(pool: RankPool, case: Case, spoil: Callable[[Array], None] | None = None) -> None:
    """Make the call and check what every rank got. spoil: changes rank 0's result first, to see it noticed."""
    n = case.world_size
    has_blocks = case.collective in ("reduce_scatter", "scatter", "all_to_all")
    inputs = [random_values(case, rank, case.rows * (n if has_blocks else 1)) for rank in range(n)]
    placed = [place(values, case.layout) for values in inputs]
    outs = [out_array(case, inputs[0], rank) for rank in range(n)]

    def body(comm: dcomm.Communicator) -> Any:
        x, out = placed[comm.rank], outs[comm.rank]
        kwargs: dict[str, Any] = {"async_op": case.async_op, "timeout": 30}
        op: Any = dcomm.premul_sum(factor_of(comm.rank)) if case.op == "premul_sum" else case.op
        if case.collective == "all_reduce":
            result = comm.all_reduce(x, op, out=out, algo=case.algo, wire_dtype=case.wire, **kwargs)
        elif case.collective == "reduce":
            result = comm.reduce(x, op, dst=case.root, out=out, **kwargs)
        elif case.collective == "reduce_scatter":
            result = comm.reduce_scatter(x, op, out=out, **kwargs)
        elif case.collective == "broadcast":
            result = comm.broadcast(x, case.root, **kwargs)
        elif case.collective == "gather":
            result = comm.gather(x, dst=case.root, out=out, **kwargs)
        elif case.collective == "scatter":
            result = comm.scatter(x if comm.rank == case.root else None, src=case.root, out=out, **kwargs)
        else:
            result = getattr(comm, case.collective)(x, out=out, **kwargs)
        return result.wait(timeout=30) if case.async_op else result

    results = [None if result is None else np.ascontiguousarray(result) for result in pool.run(body)]
    first = 0 if case.collective not in ("reduce", "gather") else case.root
    if spoil is not None and results[first] is not None:
        spoil(results[first])
    for rank, got in enumerate(results):
        if rank != case.root and case.collective in ("reduce", "gather"):
            assert got is None
            continue
        assert got is not None
        blocks = [split(values, n)[rank] for values in inputs] if has_blocks else inputs
        if case.collective in REDUCTIONS:
            if case.collective == "all_reduce" and rank > 0:
                assert got.tobytes() == results[0].tobytes(), f"ranks 0 and {rank} differ"  # type: ignore[union-attr]
            else:
                check_reduction(got, blocks, case)
        else:
            wanted = {
                "all_gather": lambda: np.concatenate(inputs),
                "gather": lambda: np.concatenate(inputs),
                "broadcast": lambda: inputs[case.root],
                "scatter": lambda blocks=blocks: blocks[case.root],
                "all_to_all": lambda blocks=blocks: np.concatenate(blocks),
            }[case.collective]()
            assert got.shape == wanted.shape
            assert got.tobytes() == wanted.tobytes(), f"rank {rank} got other bytes than were sent"
    check_inputs(case, inputs, placed)


def check_inputs(case: Case, inputs: list[Array], placed: list[Array]) -> None:
    """Arrays that are only read are as they were."""
    for rank in range(case.world_size):
        in_place = case.collective in ("all_reduce", "reduce") and case.out_layout is None
        if case.collective == "broadcast" or (in_place and (case.collective == "all_reduce" or rank == case.root)):
            continue
        assert placed[rank].tobytes() == inputs[rank].tobytes(), f"x of rank {rank} has changed"


def out_array(case: Case, x: Array, rank: int) -> Array | None:
    """What the call gets as `out`."""
    n = case.world_size
    is_root = rank == case.root
    if case.collective == "broadcast" or (case.collective in ("gather", "reduce") and not is_root):
        return None
    layout = case.out_layout
    if layout is None:
        if case.collective != "scatter" or is_root:
            return None
        layout = "plain"
    rows = {"all_gather": n * len(x), "gather": n * len(x), "reduce_scatter": len(x) // n, "scatter": len(x) // n}
    shape = (rows.get(case.collective, len(x)), *x.shape[1:])
    return place(np.zeros(shape, x.dtype), layout if x.ndim == 2 or layout != "transposed" else "plain")
