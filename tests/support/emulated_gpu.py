"""A GPU for tests on machines without one: host memory, streams that are threads, dcomm's kernels on emulated blocks.

What it is made of: tests/cc/cuda_emulated_library.cc. Its arrays show only what the protocols of CUDA arrays show, so
that nothing can reach their memory as that of a host array.
"""

from __future__ import annotations

import contextlib
import ctypes
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import dcomm
from dcomm import _core

Host = NDArray[Any]


class EmulatedStream:
    """A stream, by its handle, as CuPy's are."""

    def __init__(self, gpu: EmulatedGpu, handle: int) -> None:
        self.gpu, self.ptr = gpu, handle

    def hold(self) -> Host:
        """Lets what comes next wait until the returned word is set to 1."""
        word = np.zeros(1, np.int32)
        self.gpu.held.append(word)
        self.gpu.library.emulated_hold(self.ptr, word.ctypes.data)
        return word

    def copy(self, target: Host, source: Host) -> None:
        """Copies when the stream comes to it."""
        assert target.nbytes == source.nbytes
        self.gpu.kept += [target, source]
        self.gpu.library.emulated_copy(self.ptr, target.ctypes.data, source.ctypes.data, source.nbytes)

    @contextlib.contextmanager
    def capture(self) -> Iterator[EmulatedGraph]:
        """What the stream is given inside goes into a graph."""
        graph = EmulatedGraph(self.gpu)
        self.gpu.library.emulated_capture_begin(self.ptr)
        try:
            yield graph
        finally:
            graph.handle = self.gpu.library.emulated_capture_end(self.ptr)

    def synchronize(self, seconds: float = 30) -> None:
        assert self.gpu.library.emulated_wait(self.ptr, seconds) == 1, "the stream is still busy"


class EmulatedGraph:
    """Launches, made again by each replay."""

    def __init__(self, gpu: EmulatedGpu) -> None:
        self.gpu, self.handle = gpu, 0

    def replay(self, stream: EmulatedStream) -> None:
        self.gpu.library.emulated_replay(self.handle, stream.ptr)


class InterfaceArray:
    """An array with `__cuda_array_interface__` alone."""

    def __init__(self, gpu: EmulatedGpu, host: Host, changes: dict[str, Any], device: int = 0) -> None:
        self.host, self._changes = host, changes
        gpu.place(host, device)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        host = self.host
        plain = {
            "shape": host.shape,
            "typestr": host.dtype.str,
            "data": (host.ctypes.data, not host.flags.writeable),
            "strides": None if host.flags.c_contiguous else host.strides,
            "version": 3,
        }
        return {**plain, **self._changes}


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _DLTensor),
    )


_DLPACK_CODES = {"i": 0, "u": 1, "f": 2, "c": 5, "b": 6}


class DLPackArray:
    """An array with `__dlpack__` alone. `bfloat16`: of uint16 that are called so. `is_old`: from before DLPack 1.0."""

    def __init__(
        self, gpu: EmulatedGpu, host: Host, *, device: int = 0, bfloat16: bool = False, is_old: bool = False
    ) -> None:
        self.host, self._device, self._bfloat16, self._is_old = host, device, bfloat16, is_old
        self.streams: list[int] = []  # what consumers asked for
        gpu.place(host, device)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self._device

    def __dlpack__(self, *, stream: int, **kwargs: Any) -> Any:
        if self._is_old and kwargs:
            raise TypeError("no such argument")
        self.streams.append(stream)
        host = self.host
        self._shape = (ctypes.c_int64 * host.ndim)(*host.shape)
        self._strides = (ctypes.c_int64 * host.ndim)(*(stride // host.itemsize for stride in host.strides))
        code = 4 if self._bfloat16 else _DLPACK_CODES[host.dtype.kind]
        offset = 16  # counted from here
        tensor = _DLTensor(
            host.ctypes.data - offset, 2, self._device, host.ndim, code, 8 * host.itemsize, 1, self._shape,
            self._strides, offset,
        )  # fmt: skip
        self._tensor = tensor if self._is_old else _Versioned(1, 0, None, None, int(not host.flags.writeable), tensor)
        return _new_capsule(
            ctypes.addressof(self._tensor), b"dltensor" if self._is_old else b"dltensor_versioned", None
        )


_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


class EmulatedGpu:
    """The library and what tests make of it; a Gpu of cuda_cases."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.library = ctypes.CDLL(str(path))
        self.library.emulated_stream.restype = ctypes.c_void_p
        self.library.emulated_capture_begin.argtypes = [ctypes.c_void_p]
        self.library.emulated_capture_end.argtypes = [ctypes.c_void_p]
        self.library.emulated_capture_end.restype = ctypes.c_void_p
        self.library.emulated_replay.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        self.library.emulated_hold.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        self.library.emulated_copy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64]
        self.library.emulated_wait.argtypes = [ctypes.c_void_p, ctypes.c_double]
        self.library.emulated_place.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int32]
        self.kept: list[Host] = []  # what streams may still use
        self.held: list[Host] = []
        self.streams = [EmulatedStream(self, 0)]

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """dcomm takes this GPU for the machine's."""
        _core._use_cuda_library(str(self.path))
        try:
            yield
        finally:
            _core._use_cuda_library("")
            for word in self.held:  # a test that failed leaves no stream behind that waits
                word.fill(1)

    def array(self, host: Host, device: int = 0, **changes: Any) -> InterfaceArray:
        """`host`'s own memory as that of the GPU. changes: to the interface, such as stream=."""
        return InterfaceArray(self, host, changes, device)

    def place(self, host: Host, device: int) -> None:
        """From now on, as long as it lives, the array's memory is that GPU's."""
        owner = host
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        if owner.nbytes == 0:
            return
        self.library.emulated_place(owner.ctypes.data, owner.nbytes, device)
        weakref.finalize(owner, self.library.emulated_place, owner.ctypes.data, owner.nbytes, -1)

    def memory_of(self, array: dcomm.CudaArray) -> Host:
        """The memory of a dcomm array, which the caller keeps alive."""
        if array.nbytes == 0:
            return np.empty(array.shape, array.dtype)
        memory = (ctypes.c_ubyte * array.nbytes).from_address(array._address)
        return np.frombuffer(memory, np.uint8).view(array.dtype).reshape(array.shape)

    @property
    def num_direct(self) -> int:
        """Launches so far that used the ranks' arrays where they lie."""
        return int(self.library.emulated_num_direct())

    def absent(self, rank: int) -> None:
        """This rank's blocks stay away from the next launch."""
        self.library.emulated_absent(rank)

    @property
    def num_launched(self) -> int:
        return int(self.library.emulated_num_launched())

    # ---- As cuda_cases wants it ----

    def _wrap(self, host: Host) -> InterfaceArray | DLPackArray:
        if host.dtype.name == "bfloat16":
            return DLPackArray(self, host.view(np.uint16), bfloat16=True)
        return self.array(host)

    def put(self, host: Host) -> InterfaceArray | DLPackArray:
        return self._wrap(host.copy())

    def part(self, buffer: InterfaceArray | DLPackArray, begin: int, end: int) -> InterfaceArray | DLPackArray:
        if isinstance(buffer, DLPackArray):
            return DLPackArray(self, buffer.host[begin:end], bfloat16=True)
        return self.array(buffer.host[begin:end])

    def get(self, buffer: InterfaceArray | DLPackArray) -> Host:
        for stream in self.streams:
            stream.synchronize()
        return buffer.host

    def stream(self) -> EmulatedStream:
        self.streams.append(EmulatedStream(self, self.library.emulated_stream()))
        return self.streams[-1]

    def hold(self, stream: EmulatedStream) -> Callable[[], None]:
        word = stream.hold()
        return lambda: word.fill(1)

    def write(self, stream: EmulatedStream, buffer: InterfaceArray | DLPackArray, host: Host) -> None:
        stream.copy(buffer.host, host)

    def read(self, stream: EmulatedStream, buffer: InterfaceArray | DLPackArray) -> Callable[[], Host]:
        found = np.empty_like(buffer.host)
        stream.copy(found, buffer.host)

        def wait() -> Host:
            stream.synchronize()
            return found

        return wait
