"""torch's arrays and clocks on a GPU. Not run on a GPU yet."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy

from dcomm import _core
from dcomm.bench.cuda import machine, torch_timing
from dcomm.bench.cuda.engine import Call
from dcomm.bench.exact import Array
from dcomm.errors import CudaError


def why_not() -> str:
    """Why torch and dcomm cannot measure on a GPU here, and what to do; "" where they can."""
    try:
        _core.cuda_device_count()
    except CudaError as error:
        return f"{error}; `dcomm doctor` says what else is missing"
    if importlib.util.find_spec("torch") is None:
        return "needs torch, which holds the arrays; pip install torch, a build with CUDA"
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build for the CPU; install one with CUDA (pytorch.org, Get Started)"
    if not torch.cuda.is_available():
        return "torch finds no GPU; `nvidia-smi` shows whether the driver does, `dcomm doctor` what is wrong"
    return ""


class TorchDevice:
    """GPU 0 of what this process may see, through torch; calls are on torch's current stream."""

    def __init__(self) -> None:
        """Make the CUDA context."""
        import torch

        self._torch = torch
        torch.cuda.set_device(0)
        torch.cuda.synchronize()

    def facts(self) -> dict[str, Any]:
        """See :class:`~dcomm.bench.cuda.engine.Device`, here and below."""
        return machine.gpu_facts()

    def versions(self) -> dict[str, str]:
        """Of torch and CUDA."""
        return machine.torch_versions()

    def empty(self, count: int, dtype: str) -> Any:
        """A torch tensor."""
        return self._torch.empty(count, dtype=getattr(self._torch, dtype), device="cuda")

    def write(self, array: Any, host: Array) -> None:
        """From a NumPy array."""
        array.copy_(self._as_tensor(host, array.dtype))
        self._torch.cuda.synchronize()

    def _as_tensor(self, host: Array, dtype: Any) -> Any:
        if dtype == self._torch.bfloat16:
            return self._torch.from_numpy(host.view(numpy.int16)).view(dtype)
        return self._torch.from_numpy(host)

    def read(self, array: Any) -> Array:
        """Into a new NumPy array."""
        host = array.cpu()
        if host.dtype == self._torch.bfloat16:
            return host.view(self._torch.int16).numpy().view(numpy.uint16)  # type: ignore[no-any-return]
        return host.numpy()  # type: ignore[no-any-return]

    def copy(self, target: Any, source: Any) -> None:
        """On the current stream."""
        target.copy_(source)

    def clear(self, array: Any) -> None:
        """On the current stream."""
        array.view(self._torch.uint8).fill_(255)

    def synchronize(self) -> None:
        """The whole GPU, of this process."""
        self._torch.cuda.synchronize()

    def release(self) -> None:
        """Of torch's cache."""
        self._torch.cuda.empty_cache()

    def capture(self, enqueue: Call, calls: int) -> Call:
        """torch.cuda.graph."""
        graph = torch_timing.capture(enqueue, calls)
        return lambda: graph.replay()

    def times_us(self, batch: Call, batches: int, before_each: Call, hold_seconds: float) -> list[float]:
        """By CUDA events around each."""
        return torch_timing.alone_times_us(batch, batches, before_each, hold_seconds)

    def host_seconds(self, enqueue: Call) -> float:
        """Of its second call."""
        return torch_timing.host_seconds(enqueue)

    def copy_bandwidth(self, nbytes: int) -> float:
        """Of Tensor.copy_."""
        return torch_timing.copy_bandwidth(nbytes)
