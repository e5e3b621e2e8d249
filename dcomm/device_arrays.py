"""Arrays in the memory of a GPU: the CUDA array interface, DLPack, and on which stream to use an array.

torch tensors describe themselves (:mod:`dcomm.arrays`); CuPy is met where a program brings it along.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy

from dcomm import _core
from dcomm.arrays import DTYPE_CODES, View, is_tensor, unsupported

LEGACY_STREAM = 0  # the legacy default stream, which the interfaces call 1
_PER_THREAD_STREAM = 2
_DLPACK_CUDA = (2, 13)  # kDLCUDA, kDLCUDAManaged


def is_on_device(array: Any) -> bool:
    """True for arrays of other libraries than torch that say they are in the memory of a GPU."""
    if hasattr(array, "__cuda_array_interface__"):
        return True
    return hasattr(array, "__dlpack_device__") and array.__dlpack_device__()[0] in _DLPACK_CUDA


def device_view(array: Any, stream: Any) -> View | None:
    """What such an array looks like; None: it is none. `stream`: as for :func:`stream_handle`.

    Raises:
        TypeError: Of a dtype that dcomm does not move, masked, or its description is not what the protocol says.
        CudaError: There is no CUDA part, or no GPU.
    """
    if hasattr(array, "__cuda_array_interface__"):
        return _interface_view(array)
    return _dlpack_view(array, stream) if is_on_device(array) else None


def _name(array: Any) -> str:
    return f"{type(array).__module__}.{type(array).__qualname__}"


def _interface_view(array: Any) -> View:
    interface = array.__cuda_array_interface__
    try:
        address, read_only = interface["data"]
        shape = tuple(interface["shape"])
        typestr = interface["typestr"]
        strides, stream = interface.get("strides"), interface.get("stream")
    except (KeyError, TypeError, ValueError) as error:
        raise TypeError(
            f"{_name(array)} has a __cuda_array_interface__ that is not one ({error!r}); update its library"
        ) from None
    if interface.get("mask") is not None:
        raise TypeError(f"got a masked {_name(array)}: dcomm handles plain arrays; fill it first")
    dtype = numpy.dtype(typestr)
    if dtype.name not in DTYPE_CODES or not dtype.isnative:
        hint = " (this interface has no bfloat16: pass a torch tensor, or an array with DLPack only)"
        raise TypeError(unsupported(f"a CUDA array of {typestr!r}{hint if dtype.kind == 'V' else ''}"))
    count = int(numpy.prod(shape, dtype=numpy.int64))
    if stream == 0:
        raise TypeError(f"{_name(array)} names stream 0, which __cuda_array_interface__ forbids; update its library")
    return View(
        int(address),
        count,
        DTYPE_CODES[dtype.name],
        _is_contiguous(shape, strides, dtype.itemsize),
        not read_only,
        _core.cuda_pointer_device(int(address)) if count else _stated_device(array),
        shape,
        None if stream is None else _from_interface(int(stream)),
    )


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...] | None, itemsize: int) -> bool:
    if strides is None or 0 in shape:
        return True
    expected = itemsize
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length != 1 and stride != expected:
            return False
        expected *= length
    return True


def _stated_device(array: Any) -> int:
    """An empty array has no memory that would tell."""
    device = getattr(array, "device", 0)
    index = getattr(device, "id", device)
    return index if isinstance(index, int) else 0


def _dlpack_view(array: Any, stream: Any) -> View:
    device = array.__dlpack_device__()[1]
    handle = LEGACY_STREAM if stream is None else handle_of(stream)
    wanted = {"stream": 1 if handle == LEGACY_STREAM else handle}  # of the consumer: its data is ready there
    try:
        capsule = array.__dlpack__(max_version=(1, 0), **wanted)
    except TypeError:  # from before DLPack 1.0
        capsule = array.__dlpack__(**wanted)
    address, count, code, contiguous, writable, shape = _core.dlpack_view(capsule)
    if code < 0:
        raise TypeError(unsupported(f"a CUDA array of {getattr(array, 'dtype', 'an unknown dtype')}"))
    return View(address, count, code, contiguous, writable, int(device), shape)


def _from_interface(stream: int) -> int:
    return LEGACY_STREAM if stream == 1 else stream


def handle_of(stream: Any) -> int:
    """A `stream` argument as an integer handle.

    Raises:
        TypeError: Not a stream.
    """
    if hasattr(stream, "__cuda_stream__"):
        return int(stream.__cuda_stream__()[1])
    handle = getattr(stream, "cuda_stream", getattr(stream, "ptr", stream))
    if not isinstance(handle, int) or isinstance(handle, bool):
        raise TypeError(f"stream={stream!r}: expected an integer handle, a torch.cuda.Stream or a cupy.cuda.Stream")
    return _from_interface(handle)


def stream_handle(array: Any, view: View, stream: Any) -> int:
    """The stream on which to use a CUDA array, as an integer handle.

    Args:
        array: The array.
        view: What it looks like.
        stream: The caller's choice: an integer or an object of torch, CuPy or cuda.core. None: torch's or CuPy's
            current stream on the array's device; of other libraries the stream that the array names, else the legacy
            default stream.

    Raises:
        TypeError: Not a stream.
    """
    return handle_of(stream) if stream is not None else current_stream(array, view)()


def current_stream(array: Any, view: View) -> Callable[[], int]:
    """What tells, now and later, the stream that such an array is used on; it does not keep the array alive."""
    if is_tensor(array):
        device, cuda = array.device, sys.modules["torch"].cuda
        return lambda: int(cuda.current_stream(device).cuda_stream)
    if _is_cupy(array):
        cupy = sys.modules["cupy"]
        return lambda: handle_of(cupy.cuda.get_current_stream())
    if view.stream is None or view.stream == _PER_THREAD_STREAM:  # which is ordered with the legacy one
        return lambda: LEGACY_STREAM
    named = view.stream
    return lambda: named


def make_ready(view: View, handle: int) -> None:
    """Let stream `handle` wait for what the array's own stream still does to it; returns at once."""
    if view.stream is not None and view.stream != handle:
        _core.order_cuda_streams(view.device, view.stream, handle)


def _is_cupy(array: Any) -> bool:
    return type(array).__module__.partition(".")[0] == "cupy"


def empty_on_device(array: Any, shape: tuple[int, ...]) -> Any:
    """An uninitialised array like `array`, which is on a GPU and not torch's.

    Raises:
        ValueError: Not CuPy's.
    """
    if not _is_cupy(array):
        raise ValueError(f"dcomm cannot make another {_name(array)} for the result: pass out=")
    with array.device:
        return sys.modules["cupy"].empty(shape, array.dtype)


def device_index(device: Any) -> int:
    """A `device` argument as the number of a GPU: "cuda", "cuda:1", 1 or a torch.device.

    Raises:
        ValueError: None of these.
    """
    torch = sys.modules.get("torch")
    if isinstance(device, int) and not isinstance(device, bool) and device >= 0:
        return device
    kind, _, number = str(device).partition(":")
    if kind == "cuda" and number.isdecimal():
        return int(number)
    if kind == "cuda" and not number:
        return int(torch.cuda.current_device()) if torch is not None and torch.cuda.is_available() else 0
    raise ValueError(
        f"device={device!r}: expected 'cuda', 'cuda:0', the number of a GPU or a torch.device of type cuda"
    )
