"""The names and numbers of operations and algorithms: the one place where the engine learns what dcomm knows."""

from __future__ import annotations

from dcomm.communicator import _ALGOS as ALGO_CODES
from dcomm.communicator import _OPS as OP_CODES

__all__ = ["ALGO_CODES", "OP_CODES"]
