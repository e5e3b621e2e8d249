"""What the bench needs of a library of GPU arrays: torch's is in torch_engine, tests have one of host memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from dcomm.bench.collectives import input_count, output_count
from dcomm.bench.cuda.case import CudaCase
from dcomm.bench.exact import Array

Call = Callable[[], Any]
Pairs = list[tuple[Any, Any]]  # what goes in and what comes out, by rank; in place the same object


class Device(Protocol):
    """Arrays and clocks of one GPU; "enqueued": on the stream that the calls use, asynchronous to the host."""

    def facts(self) -> dict[str, Any]:
        """The machine's GPU, for the head of a report."""

    def versions(self) -> dict[str, str]:
        """Of the libraries."""

    def empty(self, count: int, dtype: str) -> Any:
        """A new array of shape (count,) on the GPU."""

    def write(self, array: Any, host: Array) -> None:
        """Fill from host memory (bfloat16: as uint16); done when it returns."""

    def read(self, array: Any) -> Array:
        """The content, in host memory (bfloat16: as uint16), after all that was enqueued."""

    def copy(self, target: Any, source: Any) -> None:
        """Enqueued."""

    def clear(self, array: Any) -> None:
        """Every byte 0xff, which no result has; enqueued."""

    def synchronize(self) -> None:
        """Wait for all that was enqueued."""

    def release(self) -> None:
        """Give memory of dropped arrays back to the GPU: other processes use it too."""

    def capture(self, enqueue: Call, calls: int) -> Call:
        """A CUDA graph of `calls` calls; what is returned enqueues a replay."""

    def times_us(self, batch: Call, batches: int, before_each: Call, hold_seconds: float) -> list[float]:
        """The GPU's time of each batch; before_each, outside the clock; the stream is held back before a batch."""

    def host_seconds(self, enqueue: Call) -> float:
        """What the host takes for a call."""

    def copy_bandwidth(self, nbytes: int) -> float:
        """Bytes read and written per second by a copy of `nbytes`."""


class Engine:
    """A device, and the arrays of a case."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def pairs(self, case: CudaCase, ranks: Sequence[int], world_size: int) -> Pairs:
        """Arrays of these ranks for `case`, in place where the case is."""
        found: Pairs = []
        for rank in ranks:
            x = self.device.empty(num_inputs(case, rank, world_size), case.dtype)
            num_outputs = output_count(case.collective, case.count, rank, case.root, world_size)
            found.append((x, x if case.in_place else self.device.empty(num_outputs, case.dtype)))
        return found


def num_inputs(case: CudaCase, rank: int, world_size: int) -> int:
    """Elements of the array that a rank passes in; in place it takes the result too."""
    counts = [
        function(case.collective, case.count, rank, case.root, world_size) for function in (input_count, output_count)
    ]
    return max(counts) if case.in_place else counts[0]
