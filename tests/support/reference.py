"""What an all-reduce must give, written from docs/decisions.md 1 to 4 alone, in NumPy.

Inputs are one array per rank. float16 and bfloat16 data are passed as float32 arrays of representable values, and
come back so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Rounding = Callable[[Array], Array]
CHUNK_ALIGN = 16  # elements; csrc/schedule/partition.h


def to_float16(x: Array) -> Array:
    """Rounded to float16, as float32."""
    with np.errstate(over="ignore"):
        return x.astype(np.float16).astype(np.float32)


def to_bfloat16(x: Array) -> Array:
    """Rounded to nearest even bfloat16, as float32; for values that are not NaN."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded & np.uint32(0xFFFF0000)).view(np.float32)


def unrounded(x: Array) -> Array:
    return x


def to_fp8(x: Array, block: int) -> Array:
    """Each block of a flat array rounded to e4m3 times the least power of two by which its largest is at most 448."""
    rows = np.pad(np.asarray(x, np.float64), (0, -len(x) % block)).reshape(-1, block)
    largest = np.abs(rows).max(axis=1, initial=0.0)
    finite = np.isfinite(largest)
    significand, exponent = np.frexp(np.where(finite, largest, 1.0))  # significand in [0.5, 1); 448 = 0.875 x 2^9
    exponent = np.maximum(exponent - 9 + (significand > 0.875), -126)
    with np.errstate(invalid="ignore"):
        scaled = np.ldexp(rows, -exponent[:, None])
        unit = np.ldexp(1.0, np.maximum(np.frexp(scaled)[1] - 4, -9))  # 4 significant bits; 2^-9 below 2^-6
        rounded = np.ldexp(np.rint(scaled / unit) * unit, exponent[:, None])
    rounded = np.where(finite[:, None], rounded, np.nan)
    with np.errstate(over="ignore"):
        return rounded.astype(np.float32).reshape(-1)[: len(x)]


ROUNDINGS: dict[str | None, Rounding] = {None: unrounded, "float16": to_float16, "bfloat16": to_bfloat16}
ROUNDINGS |= {f"fp8_block{block}": partial(to_fp8, block=block) for block in (32, 128)}


def pairwise_sum(terms: Sequence[Array]) -> Array:
    """The balanced tree: split at the largest power of two below the length."""
    if len(terms) == 1:
        return terms[0]
    half = 1 << ((len(terms) - 1).bit_length() - 1)
    return pairwise_sum(terms[:half]) + pairwise_sum(terms[half:])


def two_shot(inputs: Sequence[Array], op: str, wire: str | None = None, dtype: str = "float32") -> Array:
    """Decision 1; decision 4 for avg: a wire divides before the cast, otherwise the sum is divided."""
    n = len(inputs)
    into_wire = ROUNDINGS[wire]
    terms = [into_wire(x / x.dtype.type(n) if op == "avg" and wire else x) for x in inputs]
    total = pairwise_sum(terms)
    if op == "avg" and not wire:
        total = total / total.dtype.type(n)
    return into_wire(ROUNDINGS[dtype if dtype in ROUNDINGS else None](total))


def chunk_bounds(count: int, world_size: int) -> list[tuple[int, int]]:
    """Chunks are equal multiples of 16 elements; the last ones take what is left."""
    least = math.ceil(count / world_size)
    length = math.ceil(least / CHUNK_ALIGN) * CHUNK_ALIGN
    return [(min(count, c * length), min(count, (c + 1) * length)) for c in range(world_size)]


def ring(inputs: Sequence[Array], op: str, wire: str | None = None) -> Array:
    """Chunk c is summed in the order c+1, c+2, ..., c; a half wire rounds the partial sum at every hop."""
    n = len(inputs)
    into_wire = ROUNDINGS[wire]
    divide_first = op == "avg" and wire is not None
    result = np.empty_like(inputs[0])
    for c, (begin, end) in enumerate(chunk_bounds(len(inputs[0]), n)):
        partial: Array | None = None
        for hop in range(1, n + 1):
            term = inputs[(c + hop) % n][begin:end]
            if divide_first:
                term = term / term.dtype.type(n)
            partial = into_wire(term if partial is None else partial + term)
        assert partial is not None
        if op == "avg" and not divide_first:
            partial = partial / partial.dtype.type(n)
        result[begin:end] = partial
    return result


def all_reduce(inputs: Sequence[Array], op: str, algo: str, wire: str | None = None) -> Array:
    return (ring if algo == "ring" else two_shot)(inputs, op, wire)
