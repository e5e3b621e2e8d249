"""How a bucket of gradients on a GPU is reduced beside backward: asynchronously, behind all that has written to it.

    current stream   | gradients of bucket 0 | gradients of bucket 1 | ...          | finish: waits | optimizer
    side stream               waits for them         waits for them
    dcomm's stream               | all_reduce 0 |        | all_reduce 1 |

No host thread waits for the GPU, and none for another rank before finish(): ranks that are threads of one process share
one thread of torch's, which runs backward of all of them. A bucket is launched there by the rank that comes last. The
buckets are dcomm's own memory, so no allocator needs to know of the streams; those in torch's ordinary memory are kept
by their synchronizer and by their operations.

Where the ranks reach each other's GPU memory in no way, not even through slots, buckets go through the host.
"""

from __future__ import annotations

from typing import Any

import torch

from dcomm import _core
from dcomm.communicator import Communicator
from dcomm.cuda_work import CudaWork
from dcomm.torch.launching import HostLauncher, Pending


class _Operation:
    """A reduction that was started, and may still wait for another rank's thread to start it too."""

    def __init__(self, work: CudaWork) -> None:
        self._work = work

    def wait(self) -> None:
        """Let the current stream wait; the host does so only while some rank has not started it."""
        self._work.wait()

    def withdraw(self) -> bool:
        """Take it back if some rank has not."""
        return self._work._withdraw()


class CudaLauncher:
    """Reductions that start in backward wait for a side stream, which waits for all that has written gradients."""

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
                self._order(stream, current)
        self._writers.clear()

    def drain(self) -> None:
        """The host waits for the current stream."""
        torch.cuda.current_stream(self._device).synchronize()

    def start(self, buffer: torch.Tensor, op: str, wire_dtype: str | None, algo: str = "auto") -> Pending:
        """Behind what the writers were given so far; returns at once."""
        for stream in self._writers.values():
            self._order(stream, self._side)
        self._writers.clear()  # what comes later on the side stream comes after them, too
        work = self._comm.all_reduce(buffer, op, wire_dtype=wire_dtype, algo=algo, stream=self._side, async_op=True)
        return _Operation(work)

    def _order(self, before: torch.cuda.Stream, after: torch.cuda.Stream) -> None:
        """As `after.wait_stream(before)`, which makes an event each time."""
        _core.order_cuda_streams(self._device.index, before.cuda_stream, after.cuda_stream)

    def run(self, buffer: torch.Tensor, op: str, wire_dtype: str | None, algo: str = "auto") -> None:
        """On the current stream, after what the other writers were given."""
        self.join()
        self._comm.all_reduce(buffer, op, wire_dtype=wire_dtype, algo=algo)


class StagedLauncher(CudaLauncher):
    """Reductions by way of the host, each of which waits for the GPU: for finish() alone, where ranks may wait."""

    def __init__(self, comm: Communicator, device: torch.device) -> None:
        super().__init__(comm, device)
        self._on_host = HostLauncher(comm)
        self.canonical_algo = self._on_host.canonical_algo
        self._staging: torch.Tensor | None = None  # pinned bytes

    def start(self, buffer: torch.Tensor, op: str, wire_dtype: str | None, algo: str = "auto") -> Pending:
        """Not beside anything: :meth:`run`."""
        self.run(buffer, op, wire_dtype, algo)
        return _Done()

    def run(self, buffer: torch.Tensor, op: str, wire_dtype: str | None, algo: str = "auto") -> None:
        """After what the writers were given; the result is there in the order of the current stream."""
        self.join()
        nbytes = buffer.numel() * buffer.element_size()
        if self._staging is None or self._staging.numel() < nbytes:
            self._staging = pinned(nbytes)
        copy = self._staging[:nbytes].view(buffer.dtype)
        copy.copy_(buffer)  # the host waits for the current stream
        self._on_host.run(copy, op, wire_dtype, algo)
        buffer.copy_(copy)  # and for the end of this copy, so that the staging memory is free again


class _Done:
    """A reduction that is over."""

    def wait(self) -> Any:
        """Nothing: it is."""

    def withdraw(self) -> bool:
        """Too late."""
        return False


def pinned(nbytes: int) -> torch.Tensor:
    """(nbytes,) on the host, in pages that the GPU reaches."""
    return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
