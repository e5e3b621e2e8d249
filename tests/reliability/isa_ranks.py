"""Rank processes of test_instruction_sets.py."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

import dcomm

CASES = [
    ("float32", ("sum", "avg", "prod", "min", "max"), (None, "float16", "bfloat16")),
    ("float64", ("sum", "avg", "prod", "min", "max"), (None,)),
    ("float16", ("sum", "avg", "min", "max"), (None,)),
    ("int32", ("sum", "prod", "min", "max"), (None,)),
    ("uint8", ("sum", "max"), (None,)),
]


def odd_values(dtype: str, count: int, rank: int) -> np.ndarray:
    """Values on which instruction sets could differ: subnormal, huge, NaN, infinite, signed zeros."""
    rng = np.random.default_rng(100 + rank)
    if not dtype.startswith("float"):
        return rng.integers(0, 256, count).astype(dtype)
    x = rng.standard_normal(count) * 10.0 ** rng.integers(-4, 4, count)
    special = [np.nan, np.inf, -np.inf, 0.0, -0.0, np.finfo(dtype).smallest_subnormal, np.finfo(dtype).max]
    at = rng.integers(0, count, count // 20)
    x[at] = rng.choice(special, len(at))
    return x.astype(dtype)


def reduce_all(rank: int, world_size: int) -> dict[str, Any]:
    """One SHA-256 of all results on this rank, and the instruction set that it used."""
    comm = dcomm.init(rank=rank, world_size=world_size, timeout=40)
    digest, num_reductions = hashlib.sha256(), 0
    for dtype, ops, wires in CASES:
        for algo in ("one_shot", "two_shot", "ring", "tree"):
            for op in ops:
                for wire in wires:
                    if wire is not None and op not in ("sum", "avg"):
                        continue
                    for count in (1, 31, 10_007):
                        x = odd_values(dtype, count, rank)
                        comm.all_reduce(x, op, algo=algo, wire_dtype=wire)
                        digest.update(x.tobytes())
                        num_reductions += 1
    comm.close()
    return {"sha256": digest.hexdigest(), "num_reductions": num_reductions}
