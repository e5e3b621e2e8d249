"""What a narrow wire makes of an array, without sending it."""

from __future__ import annotations

import operator
from typing import Any

from dcomm import _core, arrays
from dcomm.operation import check_out, check_overlap, check_writable, cpu_operand


def quantize(x: Any, wire_dtype: Any, *, divisor: int = 1, out: Any = None) -> Any:
    """Round `x` to what the other ranks get to see of it, bit for bit, in one pass.

    These are the terms that ``all_reduce(x, wire_dtype=wire_dtype)`` adds up, so ``x - quantize(x, wire_dtype)`` is
    what this rank's part of the sum loses on its way (the result is rounded once more, for all ranks alike). Blocks of
    an fp8 wire are counted from the first element of the message, whatever the number of ranks: a part of a larger
    message has the same bits where it begins at a multiple of 32 ("fp8") or 128 ("fp8_block128") elements. A number
    that has been rounded is rounded to itself.

    Args:
        x: (count,) or any shape, float32: contiguous NumPy array, torch CPU tensor or buffer. Left as it is.
        wire_dtype: As for :meth:`dcomm.Communicator.all_reduce`; "float16", "bfloat16", "fp8" or "fp8_block128".
        divisor: Number of ranks of an "avg", whose terms are x / divisor; 1 for a "sum".
        out: Contiguous array of the shape and library of `x`, which it may be; None: a new one.

    Returns:
        `out`: float32, rounded x / divisor. What is beyond the range of a half wire is inf; with fp8 an inf or NaN
        makes its whole block NaN.

    Raises:
        ValueError: Not float32, not contiguous, a wire that is none, `divisor` below 1, or `out` does not fit.
        TypeError: Not an array.
        CudaError: In device memory.
    """
    source = cpu_operand(x, "quantize")
    if source.view.dtype_name != "float32":
        raise ValueError(f"x is of {source.view.dtype_name}: expected float32, which alone travels as something else")
    wire = arrays.wire_code(wire_dtype)
    if isinstance(divisor, bool) or operator.index(divisor) < 1:
        raise ValueError(f"divisor={divisor!r}: expected the number of ranks, at least 1")
    target = cpu_operand(arrays.empty_like(x) if out is None else out, "quantize")
    check_out(source, target, [source.view.shape], "as x has; pass such an array")
    check_writable("out", target)
    check_overlap(source, target, 0, " in part: pass the same array or disjoint ones")
    for name, each in (("x", source), ("out", target)):
        if not each.view.contiguous:
            raise ValueError(f"{name} is not contiguous: pass a contiguous copy")
    _core.quantize(source.view.address, target.view.address, source.view.count, wire, operator.index(divisor))
    return target.array
