"""What an array is: address, element count and dtype of NumPy arrays, torch tensors and buffers.

The core knows only pointers; this module is the one place that knows array libraries. torch is never imported
here: a tensor brings it along.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy

from dcomm import _core

# Codes of csrc/base/dtype.h.
DTYPE_CODES = {"float32": 0, "float16": 1, "bfloat16": 2, "float64": 3, "int32": 4, "int64": 5}
DTYPE_NAMES = {code: name for name, code in DTYPE_CODES.items()}
DTYPE_BYTES = {0: 4, 1: 2, 2: 2, 3: 8, 4: 4, 5: 8}

_WIRE_ALIASES = {"fp16": "float16", "half": "float16", "bf16": "bfloat16", "fp32": "float32"}
# How to reach the memory of a type that was seen before.
KIND_BUFFER, KIND_TENSOR = 1, 2
KINDS: dict[type, int] = {numpy.ndarray: KIND_BUFFER}
TORCH_CODES: dict[Any, int] = {}  # torch dtypes of dense tensors seen so far

WIRE_CODES: dict[Any, int] = {}  # wire_dtype arguments seen so far


@dataclass(frozen=True)
class View:
    """An array as the core sees it."""

    address: int
    count: int
    dtype: int
    contiguous: bool
    writable: bool
    device: int  # CUDA device index; -1: host memory


def _torch_view(tensor: Any) -> View:
    code = TORCH_CODES.get(tensor.dtype)
    if code is None:
        name = str(tensor.dtype).removeprefix("torch.")
        if name not in DTYPE_CODES:
            raise TypeError(_unsupported(f"a torch tensor of {name}"))
        code = TORCH_CODES[tensor.dtype] = DTYPE_CODES[name]
    device = -1
    if not tensor.is_cpu:
        if tensor.device.type != "cuda":
            raise TypeError(f"got a tensor on {tensor.device}: dcomm handles cpu and cuda tensors; move it with .cpu()")
        device = tensor.device.index
    if tensor.layout is not _strided_layout():
        raise TypeError(f"got a {tensor.layout} tensor: dcomm handles dense tensors; convert it with .to_dense()")
    KINDS[type(tensor)] = KIND_TENSOR
    plain = tensor.is_contiguous() and not tensor.is_neg()  # a view that negates lazily is read through a copy
    return View(tensor.data_ptr(), tensor.numel(), code, plain, True, device)


def _strided_layout() -> Any:
    return sys.modules["torch"].strided


def _unsupported(what: str) -> str:
    return f"got {what}: expected one of {', '.join(DTYPE_CODES)}; convert it first"


def view(array: Any) -> View:
    """Describe `array` without copying it.

    Args:
        array: NumPy array, torch tensor (dense, cpu or cuda), or any object with the buffer protocol.

    Raises:
        TypeError: Not an array, or of a dtype that dcomm does not reduce.
    """
    if hasattr(array, "data_ptr"):
        return _torch_view(array)
    try:
        address, count, code, contiguous, writable, format_text = _core.buffer_view(array)
    except (TypeError, ValueError, BufferError) as error:
        dtype = getattr(array, "dtype", None)
        if getattr(dtype, "name", "") == "bfloat16":  # ml_dtypes: NumPy exports no buffer of it
            address, count, _, contiguous, writable, _ = _core.buffer_view(array.view("uint16"))
            return View(address, count, DTYPE_CODES["bfloat16"], contiguous, writable, -1)
        kind = f"{type(array).__module__}.{type(array).__qualname__}"
        raise TypeError(f"got {kind}: expected a NumPy array, a torch tensor or a buffer") from error
    if code < 0:
        raise TypeError(_unsupported(f"an array of {getattr(array, 'dtype', repr(format_text))}"))
    return View(address, count, code, contiguous, writable, -1)


def wire_code(wire_dtype: Any) -> int:
    """The dtype code of a `wire_dtype` argument: a name, or a NumPy or torch dtype."""
    try:
        return WIRE_CODES[wire_dtype]
    except (KeyError, TypeError):
        pass
    name = str(getattr(wire_dtype, "name", None) or getattr(wire_dtype, "__name__", None) or wire_dtype)
    name = name.removeprefix("torch.")
    name = _WIRE_ALIASES.get(name, name)
    if name not in DTYPE_CODES:
        raise ValueError(f"wire_dtype={wire_dtype!r}: expected None, 'float16' ('fp16') or 'bfloat16' ('bf16')")
    WIRE_CODES[wire_dtype] = DTYPE_CODES[name]
    return DTYPE_CODES[name]


def stream_handle(array: Any, stream: Any) -> int:
    """The CUDA stream to use as an integer; None: the current one of the tensor's device.

    Raises:
        TypeError: Not a stream.
    """
    if stream is None:
        return int(sys.modules["torch"].cuda.current_stream(array.device).cuda_stream)
    handle = getattr(stream, "cuda_stream", getattr(stream, "ptr", stream))
    if not isinstance(handle, int):
        raise TypeError(f"stream={stream!r}: expected an integer handle, a torch.cuda.Stream or a cupy.cuda.Stream")
    return handle


def contiguous_copy(array: Any) -> Any:
    """A C-contiguous copy of a NumPy array or torch tensor."""
    if hasattr(array, "data_ptr"):
        return array.detach().resolve_neg().contiguous()
    return numpy.ascontiguousarray(array)


def copy_into(target: Any, source: Any) -> None:
    """target[...] = source, for arrays of one library."""
    if hasattr(target, "data_ptr"):
        target.detach().copy_(source)
    else:
        numpy.asarray(target)[...] = source


def check_no_repeats(array: Any) -> None:
    """Refuse to write through a view that shows one element several times, such as ``tensor.expand()``.

    Raises:
        ValueError: A stride is 0.
    """
    strides = array.stride() if hasattr(array, "data_ptr") else array.strides
    if any(stride == 0 and length > 1 for stride, length in zip(strides, array.shape, strict=True)):
        raise ValueError("the result cannot be stored: elements of the array share memory; pass a copy, or out=")


def empty_like(array: Any) -> Any:
    """An uninitialised C-contiguous array of the same kind, shape and dtype."""
    if hasattr(array, "data_ptr"):
        return array.detach().new_empty(array.shape)
    return numpy.empty_like(numpy.asarray(array), order="C", subok=False)
