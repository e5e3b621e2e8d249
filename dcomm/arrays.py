"""What an array is: address, element count and dtype of NumPy arrays, torch tensors, buffers and CUDA arrays.

The core knows only pointers; this module and :mod:`dcomm.device_arrays`, for those in device memory, are the ones that
know array libraries. torch is never imported here: a tensor brings it along.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy

from dcomm import _core

# Codes of csrc/base/dtype.h.
DTYPE_CODES = {
    "float32": 0,
    "float16": 1,
    "bfloat16": 2,
    "float64": 3,
    "int32": 4,
    "int64": 5,
    "int8": 6,
    "uint8": 7,
    "bool": 8,
    "complex64": 9,
    "complex128": 10,
}
DTYPE_NAMES = {code: name for name, code in DTYPE_CODES.items()}
DTYPE_BYTES = {0: 4, 1: 2, 2: 2, 3: 8, 4: 4, 5: 8, 6: 1, 7: 1, 8: 1, 9: 8, 10: 16}

# What no array has, but float32 may travel as: e4m3 numbers with a scale for each 32 or 128 of them.
FP8_CODES = {"fp8_block32": 11, "fp8_block128": 12}
WIRE_NAMES = {**DTYPE_NAMES, **{code: name for name, code in FP8_CODES.items()}}
_WIRE_ALIASES = {"fp16": "float16", "half": "float16", "bf16": "bfloat16", "fp32": "float32", "fp8": "fp8_block32"}

# What was seen before; csrc/python/array_reader.cc and fast_call.cc read these three.
KIND_BUFFER, KIND_TENSOR = 1, 2
KINDS: dict[type, int] = {numpy.ndarray: KIND_BUFFER}  # how to reach the memory of a type
TORCH_CODES: dict[Any, int] = {}  # torch dtypes
WIRE_CODES: dict[Any, int] = {}  # wire_dtype arguments


@dataclass(frozen=True)
class View:
    """An array as the core sees it."""

    address: int
    count: int
    dtype: int
    contiguous: bool
    writable: bool
    device: int  # CUDA device index; -1: host memory
    shape: tuple[int, ...]
    stream: int | None = None  # CUDA: on which its data is ready, where the array says so

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return self.count * DTYPE_BYTES[self.dtype]

    @property
    def dtype_name(self) -> str:
        """Its dtype as users write it."""
        return DTYPE_NAMES[self.dtype]


def is_tensor(array: Any) -> bool:
    """True for a torch tensor; False for NumPy arrays and buffers."""
    return hasattr(array, "data_ptr")


def _torch_view(tensor: Any) -> View:
    code = TORCH_CODES.get(tensor.dtype)
    if code is None:
        name = str(tensor.dtype).removeprefix("torch.")
        if name not in DTYPE_CODES:
            raise TypeError(unsupported(f"a torch tensor of {name}"))
        code = TORCH_CODES[tensor.dtype] = DTYPE_CODES[name]
    device = -1
    if not tensor.is_cpu:
        if tensor.device.type != "cuda":
            raise TypeError(f"got a tensor on {tensor.device}: dcomm handles cpu and cuda tensors; move it with .cpu()")
        device = tensor.device.index
    if tensor.layout is not sys.modules["torch"].strided:
        raise TypeError(f"got a {tensor.layout} tensor: dcomm handles dense tensors; convert it with .to_dense()")
    KINDS[type(tensor)] = KIND_TENSOR
    # A view that negates or conjugates lazily is read through a copy.
    plain = tensor.is_contiguous() and not tensor.is_neg() and not tensor.is_conj()
    return View(tensor.data_ptr(), tensor.numel(), code, plain, True, device, tuple(tensor.shape))


def unsupported(what: str) -> str:
    """The text of an error about the dtype of `what`."""
    return f"got {what}: expected one of {', '.join(DTYPE_CODES)}; convert it first"


def view(array: Any, stream: Any = None) -> View:
    """Describe `array` without copying it.

    Args:
        array: NumPy array, torch tensor (dense, cpu or cuda), any object with the buffer protocol; in device memory,
            any with ``__cuda_array_interface__`` or ``__dlpack__``.
        stream: Where the array will be used, as for :func:`dcomm.device_arrays.stream_handle`; DLPack wants to know.

    Raises:
        TypeError: Not an array, or of a dtype that dcomm does not move.
        CudaError: In device memory, and there is no CUDA part.
    """
    if is_tensor(array):
        return _torch_view(array)
    try:
        address, count, code, contiguous, writable, shape, format_text = _core.buffer_view(array)
    except (TypeError, ValueError, BufferError) as error:
        from dcomm.device_arrays import device_view

        on_device = device_view(array, stream)
        if on_device is not None:
            return on_device
        dtype = getattr(array, "dtype", None)
        if getattr(dtype, "name", "") == "bfloat16":  # ml_dtypes: NumPy exports no buffer of it
            return replace(view(array.view("float16")), dtype=DTYPE_CODES["bfloat16"])
        kind = f"{type(array).__module__}.{type(array).__qualname__}"
        raise TypeError(f"got {kind}: expected a NumPy array, a torch tensor, a CUDA array or a buffer") from error
    if code < 0:
        raise TypeError(unsupported(f"an array of {getattr(array, 'dtype', repr(format_text))}"))
    return View(address, count, code, contiguous, writable, -1, shape)


def dtype_name(dtype: Any) -> tuple[str, bool]:
    """The name of a NumPy dtype (or of what stands for one) or of a torch dtype, and whether it is torch's.

    Raises:
        TypeError: Neither, or one that dcomm does not move.
    """
    is_torch = type(dtype).__module__ == "torch"
    name = ""
    if is_torch:
        name = str(dtype).removeprefix("torch.")
    else:
        try:
            described = numpy.dtype(dtype)
            name = described.name if described.isnative else ""
        except TypeError:
            pass
    if name not in DTYPE_CODES:
        hint = " (NumPy has no bfloat16: pass torch.bfloat16)" if dtype == "bfloat16" else ""
        raise TypeError(unsupported(f"dtype={dtype!r}{hint}"))
    return name, is_torch


def wire_code(wire_dtype: Any) -> int:
    """The dtype code of a `wire_dtype` argument: a name, or a NumPy or torch dtype.

    Raises:
        ValueError: Neither None nor a dtype that could travel.
    """
    try:
        return WIRE_CODES[wire_dtype]
    except (KeyError, TypeError):
        pass
    name = str(getattr(wire_dtype, "name", None) or getattr(wire_dtype, "__name__", None) or wire_dtype)
    name = name.removeprefix("torch.")
    name = _WIRE_ALIASES.get(name, name)
    code = FP8_CODES.get(name, DTYPE_CODES.get(name))
    if code is None or not name.startswith(("float", "bfloat", "fp8")):
        raise ValueError(
            f"wire_dtype={wire_dtype!r}: expected None, 'float16' ('fp16'), 'bfloat16' ('bf16'), 'fp8' ('fp8_block32') "
            "or 'fp8_block128'"
        )
    WIRE_CODES[wire_dtype] = code
    return code


def wire_name(wire_dtype: Any) -> str | None:
    """The one name of a `wire_dtype` argument; None for None.

    Raises:
        ValueError: As :func:`wire_code`.
    """
    return None if wire_dtype is None else WIRE_NAMES[wire_code(wire_dtype)]


def contiguous_copy(array: Any) -> Any:
    """A C-contiguous array with the elements of a NumPy array or torch tensor."""
    if is_tensor(array):
        return array.detach().resolve_neg().resolve_conj().contiguous()
    return numpy.ascontiguousarray(array)


def copy_into(target: Any, source: Any) -> None:
    """target[...] = source, for arrays of one library."""
    if is_tensor(target):
        target.detach().copy_(source)
    else:
        numpy.asarray(target)[...] = source


def check_no_repeats(array: Any) -> None:
    """Refuse to write through a view that shows one element several times, such as ``tensor.expand()``.

    Raises:
        ValueError: A stride is 0.
    """
    strides = array.stride() if is_tensor(array) else array.strides
    if any(stride == 0 and length > 1 for stride, length in zip(strides, array.shape, strict=True)):
        raise ValueError("the result cannot be stored: elements of the array share memory; pass a copy, or out=")


def kind(operand_view: View, array: Any) -> str:
    """Whose arrays of this sort are, for texts: operands of one call are of one kind."""
    if is_tensor(array):
        return "a torch tensor"
    return "a NumPy array" if operand_view.device < 0 else "a CUDA array"


def empty_like(array: Any) -> Any:
    """An uninitialised C-contiguous array of the same library, shape and dtype."""
    return empty(array, tuple(array.shape))


def empty(array: Any, shape: tuple[int, ...]) -> Any:
    """An uninitialised C-contiguous array of the same library, dtype and device; of NumPy for a buffer.

    Raises:
        ValueError: A CUDA array of a library that dcomm cannot ask for one.
    """
    if is_tensor(array):
        return array.detach().new_empty(shape)
    from dcomm.device_arrays import empty_on_device, is_on_device

    if is_on_device(array):
        return empty_on_device(array, shape)
    return numpy.empty(shape, numpy.asarray(array).dtype)


def blocks_shape(shape: tuple[int, ...], num_blocks: int) -> tuple[int, ...]:
    """The shape of `num_blocks` arrays one after the other along their first dimension."""
    return (num_blocks * shape[0], *shape[1:]) if shape else (num_blocks,)


def row_count(shape: tuple[int, ...]) -> int:
    """Elements of one entry of the first dimension."""
    return math.prod(shape[1:])
