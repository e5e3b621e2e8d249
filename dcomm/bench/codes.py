"""The names and numbers of operations and algorithms: the one place where the engine learns what dcomm knows."""

from __future__ import annotations

from dcomm.reduce_ops import ALGO_CODES, BLOCK_ALGO_CODES
from dcomm.reduce_ops import OP_NAMES as OP_CODES

__all__ = ["ALGO_CODES", "BLOCK_ALGO_CODES", "OP_CODES"]
