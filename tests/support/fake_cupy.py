"""As much of CuPy as examples/02_cupy.py uses, over dcomm's emulated GPU."""

from __future__ import annotations

import sys
import threading
import types
from typing import Any

import numpy as np
from emulated_gpu import EmulatedGpu, EmulatedStream, InterfaceArray

_current = threading.local()


def install(gpu: EmulatedGpu) -> None:
    """`import cupy` gives the fake."""

    class Stream(EmulatedStream):
        def __init__(self, non_blocking: bool) -> None:
            assert non_blocking
            super().__init__(gpu, gpu.library.emulated_stream())

        def __enter__(self) -> Stream:
            _current.stream = self
            return self

        def __exit__(self, *error: object) -> None:
            del _current.stream

    class Array(InterfaceArray):
        """Filled when its stream comes to it, as CuPy's are."""

        dtype = property(lambda self: self.host.dtype)
        device = property(lambda self: Device())

        def get(self) -> Any:
            return self.host

        def __getitem__(self, index: int) -> Any:
            return self.host[index]

    Array.__module__ = "cupy"

    class Device:
        def __enter__(self) -> None:
            pass

        def __exit__(self, *error: object) -> None:
            pass

        def __str__(self) -> str:
            return "<CUDA Device 0>"

    def empty(count: Any, dtype: Any) -> Array:
        return Array(gpu, np.zeros(count, dtype), {})

    def full(count: int, value: float, dtype: Any) -> Array:
        array = empty(count, dtype)
        _current.stream.copy(array.host, np.full(count, value, dtype))
        return array

    fake: Any = types.ModuleType("cupy")
    fake.float32, fake.int64, fake.full, fake.empty = np.float32, np.int64, full, empty
    fake.empty_like = lambda array: empty(array.host.shape, array.host.dtype)
    fake.cuda = types.SimpleNamespace(Stream=Stream, Device=Device, get_current_stream=lambda: _current.stream)
    sys.modules["cupy"] = fake
