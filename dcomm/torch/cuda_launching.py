"""How a bucket of gradients on a GPU is reduced beside backward: on a stream of its own.

    current stream   | gradients of bucket 0 | gradients of bucket 1 | ...          | finish: waits | optimizer
    side stream               waits for them | all_reduce 0          | all_reduce 1 |

No host thread waits for the GPU. The buckets are dcomm's own memory, so no allocator needs to know of the side stream.
"""

from __future__ import annotations

import torch

from dcomm.communicator import Communicator
from dcomm.torch.launching import Pending


class _Event:
    """The end of one reduction."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._device = stream.device
        self._event = stream.record_event()

    def wait(self) -> None:
        """Let the current stream wait; returns at once."""
        torch.cuda.current_stream(self._device).wait_event(self._event)


class CudaLauncher:
    """A side stream for reductions that start in backward; others run on the current stream."""

    def __init__(self, comm: Communicator, device: torch.device) -> None:
        self._comm = comm
        self._device = device
        self.canonical_algo = "auto"  # takes no other ones on a GPU
        self._side = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
        self._writers: dict[int, torch.cuda.Stream] = {}  # that gradients came from since the last start

    def note(self) -> None:
        """Backward may use several streams: a reduction waits for all that have written gradients."""
        stream = torch.cuda.current_stream(self._device)
        self._writers[stream.cuda_stream] = stream

    def join(self) -> None:
        """The current stream waits for the other writers."""
        current = torch.cuda.current_stream(self._device)
        for stream in self._writers.values():
            if stream != current:
                current.wait_stream(stream)
        self._writers.clear()

    def drain(self) -> None:
        """The host waits for the current stream."""
        torch.cuda.current_stream(self._device).synchronize()

    def start(self, buffer: torch.Tensor, op: str, wire_dtype: str | None, algo: str = "auto") -> Pending:
        """On the side stream, after what the writers were given so far."""
        for stream in self._writers.values():
            self._side.wait_stream(stream)
        self._writers.clear()  # what comes later on the side stream comes after them, too
        self._comm.all_reduce(buffer, op, wire_dtype=wire_dtype, algo=algo, stream=self._side)
        return _Event(self._side)

    def run(self, buffer: torch.Tensor, op: str, wire_dtype: str | None, algo: str = "auto") -> None:
        """On the current stream, after what the other writers were given."""
        self.join()
        self._comm.all_reduce(buffer, op, wire_dtype=wire_dtype, algo=algo)
