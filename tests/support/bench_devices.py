"""Devices for the bench on machines without a GPU: dcomm's emulated one, and CPU tensors for the rivals.

Their clocks are the host's: what they measure means nothing.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from emulated_gpu import DLPackArray, EmulatedGpu, Host

from dcomm import _core
from dcomm.bench.cuda.engine import Call
from dcomm.bench.dtypes import storage_dtype


class _HostClock:
    def facts(self) -> dict[str, Any]:
        return {"gpu": "emulated on the host", "driver": "none", "multiprocessors": 2, "l2_bytes": 1 << 20}

    def versions(self) -> dict[str, str]:
        return {}

    def synchronize(self) -> None:
        pass

    def release(self) -> None:
        pass

    def capture(self, enqueue: Call, calls: int) -> Call:
        def replay() -> None:
            for _ in range(calls):
                enqueue()

        return replay

    def times_us(self, batch: Call, batches: int, before_each: Call, hold_seconds: float) -> list[float]:
        found = []
        for _ in range(batches):
            before_each()
            start = time.perf_counter()
            batch()
            self.synchronize()
            found.append(1e6 * (time.perf_counter() - start))
        return found

    def host_seconds(self, enqueue: Call) -> float:
        return 0.0

    def copy_bandwidth(self, nbytes: int) -> float:
        source, target = np.ones(nbytes, np.uint8), np.zeros(nbytes, np.uint8)
        start = time.perf_counter()
        np.copyto(target, source)
        return 2 * nbytes / (time.perf_counter() - start)


class EmulatedDevice(_HostClock):
    """dcomm's emulated GPU, in use from now on in this process."""

    def __init__(self, library: str) -> None:
        self.gpu = EmulatedGpu(Path(library))
        _core._use_cuda_library(library)

    def empty(self, count: int, dtype: str) -> Any:
        host = np.zeros(count, storage_dtype(dtype))
        return DLPackArray(self.gpu, host, bfloat16=True) if dtype == "bfloat16" else self.gpu.array(host)

    def write(self, array: Any, host: Host) -> None:
        self.synchronize()
        array.host[:] = host

    def read(self, array: Any) -> Host:
        self.synchronize()
        return np.array(array.host)

    def copy(self, target: Any, source: Any) -> None:
        self.gpu.streams[0].copy(target.host, source.host)

    def clear(self, array: Any) -> None:
        self.synchronize()
        array.host.view(np.uint8).fill(255)

    def synchronize(self) -> None:
        self.gpu.streams[0].synchronize()


class TensorDevice(_HostClock):
    """CPU tensors."""

    def empty(self, count: int, dtype: str) -> Any:
        import torch

        return torch.zeros(count, dtype=getattr(torch, dtype))

    def write(self, array: Any, host: Host) -> None:
        import torch

        array.view(torch.uint8).copy_(torch.from_numpy(host.view(np.uint8)))

    def read(self, array: Any) -> Host:
        import torch

        dtype = str(array.dtype).removeprefix("torch.")
        return array.view(torch.uint8).numpy().view(storage_dtype(dtype)).copy()

    def copy(self, target: Any, source: Any) -> None:
        target.copy_(source)

    def clear(self, array: Any) -> None:
        import torch

        array.view(torch.uint8).fill_(255)
