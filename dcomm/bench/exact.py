"""Inputs whose reduced values are known exactly, in every dtype, on every wire and after repeated calls in place.

Sums of floats are made of small integers times a power of two: as long as every partial sum has no more significant
bits than the narrowest type on its way, no order of summation rounds anything, and a result is right only if its
bits are. Products are of powers of two and signs; integers wrap and are exact whatever they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dcomm.bench.dtypes import COMPLEX_PARTS, FLOATS, storage_dtype

Array = npt.NDArray[Any]

# Significant bits, exponent of the smallest unit used, largest exponent: what a dtype holds exactly.
_CARRIERS = {"float64": (53, -1022, 1023), "float32": (24, -126, 127), "float16": (11, -24, 15)}
_CARRIERS["bfloat16"] = (8, -126, 127)
_CARRIERS["fp8_block32"] = _CARRIERS["fp8_block128"] = (4, -100, 100)  # of small integers in one block
_PRIMES = (997, 509, 251, 127, 61, 31, 13, 7, 5, 3)
_MAX_POWER = 14  # products of more powers of two would leave float16


class Craft(NamedTuple):
    """Inputs ``scale * (1 ... prime)`` whose sums over ranks and over repeated calls are exact."""

    prime: int
    scale: float


class Exact(NamedTuple):
    """One period of each rank's input, and of what a reduction over the ranks must give."""

    inputs: list[Array]
    reduced: Array | None


def craft(world_size: int, chain: int, carrier: str, op: str = "sum") -> Craft | None:
    """Choose inputs for `chain` sums (or averages) in place over one buffer; None: none are exact in `carrier`."""
    digits, lowest, highest = _CARRIERS[carrier]
    if op == "avg":
        return _craft_average(world_size, chain, digits, highest)
    growth = world_size ** (chain - 1)  # after the first call all ranks hold the sum, then n times the sum, ...
    for prime in _PRIMES:
        if chain > 1 and prime < world_size:  # ranks with the same inputs: rather fewer calls
            return None
        first = prime * world_size
        if world_size & (world_size - 1) == 0:  # growth only moves the exponent
            exponent = min(0, highest - (first * growth).bit_length())
            if first < 2**digits and exponent >= lowest:
                return Craft(prime, 2.0**exponent)
        elif first * growth < 2 ** min(digits, highest):
            return Craft(prime, 1.0)
    return None


def _craft_average(world_size: int, chain: int, digits: int, highest: int) -> Craft | None:
    """Inputs are multiples of the number of ranks, so the division is exact wherever an algorithm does it."""
    power_of_two = world_size & (world_size - 1) == 0
    if chain > 1 and not power_of_two:  # later inputs are no multiples of it
        return None
    bound = world_size if chain == 1 and power_of_two else world_size**2
    for prime in _PRIMES:
        if bound * prime < 2**digits:
            exponent = min(0, highest - (world_size**2 * prime).bit_length())
            return Craft(prime, 2.0**exponent)
    return None


def exact_chain(world_size: int, wanted: int, carrier: str, op: str = "sum") -> int:
    """The most calls in place over one buffer, at most `wanted`, whose results are known; 0: not even one."""
    carrier = COMPLEX_PARTS.get(carrier, carrier)
    if op in ("prod", "bxor"):
        return 1
    if carrier not in _CARRIERS or op not in ("sum", "avg"):
        return wanted
    return next((n for n in range(wanted, 0, -1) if craft(world_size, n, carrier, op) is not None), 0)


def integers(prime: int, rank: int) -> npt.NDArray[np.int64]:
    """One period of 1 ... prime; no power of two divides it, so that a chunk taken for its neighbour is seen."""
    index = np.arange(prime**2, dtype=np.int64)
    return 1 + (index + index // prime * 5 + rank * 11) % prime


def encode(values: npt.NDArray[Any], dtype: str) -> Array:
    """The values, which `dtype` holds exactly, as it stores them; bfloat16 as its upper half of float32."""
    if dtype == "bfloat16":  # the values have at most 8 significant bits
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(storage_dtype(dtype))


def make(dtype: str, carrier: str, op: str, world_size: int, chain: int) -> Exact:
    """Inputs of all ranks in `dtype`, and their reduction after `chain` calls in place.

    Args:
        dtype: Of the array.
        carrier: The narrowest type that the data takes on its way: the wire's or the array's.
        op: "sum", ..., or "none" for a collective that only moves data.
        world_size: How many ranks.
        chain: How often each buffer is reduced in place.

    Raises:
        ValueError: No inputs have a known exact result.
    """
    if exact_chain(world_size, chain, carrier, op) < chain:
        raise ValueError(f"{chain} calls of {op} on {world_size} ranks are not exact in {carrier}")
    if dtype in COMPLEX_PARTS:
        parts = make(COMPLEX_PARTS[dtype], COMPLEX_PARTS[dtype], op, world_size, chain)
        pairs = [_as_pairs(part, dtype) for part in parts.inputs]
        return Exact(pairs, None if parts.reduced is None else _as_pairs(parts.reduced, dtype))
    if dtype == "bool":
        return _make_bool(op, world_size)
    if dtype not in FLOATS:
        return _make_integers(dtype, op, world_size, chain)
    if op in ("sum", "avg"):
        return _make_sums(dtype, carrier, op, world_size, chain)
    return _make_floats(dtype, carrier, op, world_size)


def _as_pairs(part: Array, dtype: str) -> Array:
    """Two periods of a float sequence as one of complex numbers; the period is odd."""
    return np.resize(part, 2 * part.size).view(dtype)


def _make_sums(dtype: str, carrier: str, op: str, world_size: int, chain: int) -> Exact:
    chosen = craft(world_size, chain, carrier, op)
    assert chosen is not None  # exact_chain() said so
    raw = [integers(chosen.prime, rank) for rank in range(world_size)]
    growth = 1.0 if op == "avg" else float(world_size ** (chain - 1))
    factor = world_size if op == "avg" else 1
    inputs = [encode(values * (chosen.scale * factor), dtype) for values in raw]
    return Exact(inputs, encode(np.sum(raw, axis=0) * (chosen.scale * growth), dtype))


def _make_floats(dtype: str, carrier: str, op: str, world_size: int) -> Exact:
    prime = 251 if carrier == "bfloat16" else 997
    raw = [(integers(prime, rank) - prime // 2).astype(np.float64) for rank in range(world_size)]
    if op == "prod":
        powers = [(values % 3 - 1) * (rank < _MAX_POWER) for rank, values in enumerate(raw)]
        raw = [np.where(values % 2 == 0, 1.0, -1.0) * 2.0**power for values, power in zip(raw, powers, strict=True)]
    reduced = None if op == "none" else _UFUNCS[op].reduce(raw)
    return Exact([encode(values, dtype) for values in raw], None if reduced is None else encode(reduced, dtype))


_UFUNCS: dict[str, Any] = {
    "sum": np.add,
    "prod": np.multiply,
    "min": np.minimum,
    "max": np.maximum,
    "band": np.bitwise_and,
    "bor": np.bitwise_or,
    "bxor": np.bitwise_xor,
}


def _make_integers(dtype: str, op: str, world_size: int, chain: int) -> Exact:
    storage = storage_dtype(dtype)
    narrow = storage.itemsize == 1
    offset = 0 if storage.kind == "u" else (63 if narrow else 498)
    raw = [integers(127 if narrow else 997, rank) - offset for rank in range(world_size)]
    if op == "prod":
        raw = [2 * values + 1 for values in raw]  # odd: products of even numbers soon are all zero bits
    inputs = [values.astype(storage) for values in raw]
    if op == "none":
        return Exact(inputs, None)
    reduced = _UFUNCS[op].reduce(np.array(inputs), axis=0, dtype=storage)
    if op == "sum":
        growth = np.uint64(pow(world_size, chain - 1, 1 << 64))
        reduced = (reduced.astype(np.int64).view(np.uint64) * growth).astype(storage)  # wraps, as it should
    return Exact(inputs, reduced)


def _make_bool(op: str, world_size: int) -> Exact:
    """Reduce as defined: sum and max are or, prod and min are and; each rank decides some elements alone."""
    every = {"sum": False, "max": False, "bor": False, "bxor": False, "none": False}.get(op, True)
    raw = [integers(127, rank) % (2 * world_size) == 0 for rank in range(world_size)]
    inputs = [~bits if every else bits for bits in raw]
    combine: Callable[[list[Array]], Array] = np.logical_and.reduce if every else np.logical_or.reduce
    combine = np.logical_xor.reduce if op == "bxor" else combine
    return Exact(inputs, None if op == "none" else np.asarray(combine(inputs)))
