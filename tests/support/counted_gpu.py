"""The host side of the real CUDA part over a CUDA runtime that only counts: tests/cc/counted.

Kernels do nothing, so no result may be looked at. What was launched is over at once, or, held, never.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dcomm import _core

# What neither allocates, nor frees, nor loads, nor waits: all that may be called between one rank's launch and
# another's.
HARMLESS = frozenset(
    {
        "cudaEventQuery",
        "cudaEventRecord",
        "cudaGetDevice",
        "cudaLaunchCooperativeKernel",
        "cudaPointerGetAttributes",
        "cudaSetDevice",
        "cudaStreamGetCaptureInfo",
        "cudaStreamIsCapturing",
        "cudaStreamWaitEvent",
        "cudaThreadExchangeStreamCaptureMode",
    }
)
LAUNCH = "cudaLaunchCooperativeKernel"


class Array:
    """(count,) float32 with `__cuda_array_interface__`; stream: what it says that its producer uses."""

    def __init__(self, count: int, stream: int | None = None) -> None:
        self.host = np.zeros(count, np.float32)
        self._stream = stream

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.host.shape,
            "typestr": "<f4",
            "data": (self.host.ctypes.data, False),
            "strides": None,
            "stream": self._stream,
            "version": 3,
        }


class CountedGpu:
    """The library, and what was called."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.library = ctypes.CDLL(str(path))
        self.library.counted_take.argtypes = [ctypes.c_char_p, ctypes.c_size_t]

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """dcomm takes it for its CUDA part."""
        _core._use_cuda_library(str(self.path))
        try:
            yield
        finally:
            self.library.counted_hold(0)
            _core._use_cuda_library("")

    def take(self) -> dict[str, int]:
        """How often each function was called since the last time."""
        text = ctypes.create_string_buffer(1 << 14)
        self.library.counted_take(text, len(text))
        pairs = (line.split() for line in text.value.decode().splitlines())
        return {name: int(number) for name, number in pairs}

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """Inside, nothing that was launched is over."""
        self.library.counted_hold(1)
        try:
            yield
        finally:
            self.library.counted_hold(0)


def check_harmless(calls: dict[str, int], num_launches: int) -> None:
    """As many launches, and nothing that allocates or waits."""
    assert calls.get(LAUNCH, 0) == num_launches, calls
    harmful = {name: number for name, number in calls.items() if name not in HARMLESS}
    assert not harmful, harmful
