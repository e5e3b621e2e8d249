"""Reduce operations and algorithms: what callers may pass, and the numbers that the core knows them by."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Any

# Codes of csrc/base/dtype.h and csrc/protocol/control.h.
OP_NAMES = {"sum": 0, "avg": 1, "prod": 2, "min": 3, "max": 4, "band": 5, "bor": 6, "bxor": 7}
PREMUL_SUM_CODE = 8
ALGO_CODES = {"auto": 0, "ring": 1, "two_shot": 2, "one_shot": 4, "tree": 5, "direct": 6}  # of all_reduce
BLOCK_ALGO_CODES = {"auto": 0, "flat": 3, "direct": 6}  # of reduce_scatter and all_gather

_TORCH_NAMES = {"PRODUCT": "prod"}
OP_CODES: dict[Any, int] = dict(OP_NAMES)  # `op` arguments seen so far; csrc/python/fast_call.cc reads it


@dataclass(frozen=True)
class PremulSum:
    """The sum of what the ranks hold, each rank's elements multiplied by its own `factor` first.

    Made by :func:`premul_sum`.
    """

    factor: float


def premul_sum(factor: float) -> PremulSum:
    """An `op` that multiplies this rank's elements by `factor` and then sums over the ranks.

    The product is taken in float32 (float64 arrays: in float64) and rounded once, before the element is cast to the
    wire dtype or added. Float arrays only. Each rank may have another factor.

    Args:
        factor: A finite number.

    Raises:
        TypeError: Not a number.
        ValueError: Infinite or NaN.
    """
    given: Any = factor
    if isinstance(given, bool) or not isinstance(given, numbers.Real):
        raise TypeError(f"premul_sum(factor={given!r}): expected a number; pass float(factor)")
    if not math.isfinite(factor):
        raise ValueError(f"premul_sum(factor={factor!r}): expected a finite number; scale the array itself instead")
    return PremulSum(float(factor))


def op_code(op: Any) -> tuple[int, float]:
    """The code and the factor of an `op` argument: a name, a torch.distributed.ReduceOp or a premul_sum.

    Raises:
        ValueError: None of these.
    """
    if isinstance(op, PremulSum):
        return PREMUL_SUM_CODE, op.factor
    try:
        return OP_CODES[op], 1.0
    except (KeyError, TypeError):
        pass
    if type(op).__module__.partition(".")[0] == "torch":
        name = str(op).rpartition(".")[2]
        code = OP_NAMES.get(_TORCH_NAMES.get(name, name.lower()))
        if code is not None:
            OP_CODES[op] = code
            return code, 1.0
    raise ValueError(
        f"op={op!r}: expected one of {', '.join(map(repr, OP_NAMES))}, the torch.distributed.ReduceOp of that name, or "
        "dcomm.premul_sum(factor)"
    )


def algo_code(algo: Any, codes: dict[str, int] = ALGO_CODES) -> int:
    """The code of an `algo` argument, of those in `codes`.

    Raises:
        ValueError: No algorithm of this name.
    """
    code = codes.get(algo) if isinstance(algo, str) else None
    if code is None:
        raise ValueError(f"algo={algo!r}: expected one of {', '.join(map(repr, codes))}")
    return code
