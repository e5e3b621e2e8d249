"""The machine's own GPU, through torch: a Gpu of cuda_cases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Host = NDArray[Any]
_HOLD_CYCLES = 2_000_000_000  # about a second


class TorchGpu:
    """Buffers are CUDA tensors."""

    def put(self, host: Host) -> Any:
        import torch

        if host.dtype.name == "bfloat16":
            tensor = torch.from_numpy(host.view(np.int16).copy()).view(torch.bfloat16).cuda()
        else:
            tensor = torch.from_numpy(host.copy()).cuda()
        torch.cuda.synchronize()  # ready on every stream
        return tensor

    def part(self, buffer: Any, begin: int, end: int) -> Any:
        return buffer[begin:end]

    def get(self, buffer: Any) -> Host:
        import torch

        torch.cuda.synchronize()
        if buffer.dtype == torch.bfloat16:
            return buffer.view(torch.int16).cpu().numpy().view(ml_dtypes.bfloat16)  # type: ignore[no-any-return]
        return buffer.cpu().numpy()  # type: ignore[no-any-return]

    def stream(self) -> Any:
        import torch

        return torch.cuda.Stream()

    def hold(self, stream: Any) -> Callable[[], None]:
        import torch

        with torch.cuda.stream(stream):
            torch.cuda._sleep(_HOLD_CYCLES)
        return lambda: None

    def write(self, stream: Any, buffer: Any, host: Host) -> None:
        import torch

        with torch.cuda.stream(stream):
            buffer.copy_(torch.from_numpy(host).pin_memory(), non_blocking=True)

    def read(self, stream: Any, buffer: Any) -> Callable[[], Host]:
        import torch

        with torch.cuda.stream(stream):
            found = buffer.clone()

        def wait() -> Host:
            stream.synchronize()
            return found.cpu().numpy()  # type: ignore[no-any-return]

        return wait
