"""The dtypes as NumPy stores them, and their names in other programs."""

from __future__ import annotations

from typing import Any

import numpy as np

from dcomm.arrays import DTYPE_CODES, FP8_CODES

FLOATS = ("float64", "float32", "float16", "bfloat16")
COMPLEX_PARTS = {"complex64": "float32", "complex128": "float64"}
HALVES = ("float16", "bfloat16")
FP8 = tuple(FP8_CODES)  # wires alone
# What nccl-tests and shells call them.
ALIASES = {"float": "float32", "double": "float64", "half": "float16", "fp16": "float16", "bf16": "bfloat16"}
ALIASES |= {"fp32": "float32", "fp64": "float64", "f32": "float32", "f64": "float64", "f16": "float16"}
ALIASES |= {"fp8": "fp8_block32"}
NAMES = tuple(DTYPE_CODES)


def storage_dtype(name: str) -> np.dtype[Any]:
    """The NumPy dtype of the same bytes; bfloat16, which NumPy lacks, as uint16."""
    return np.dtype("uint16" if name == "bfloat16" else name)


def item_bytes(name: str) -> int:
    """Bytes of one element."""
    return storage_dtype(name).itemsize
