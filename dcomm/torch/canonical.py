"""Reduces gradients so that the bits depend on the global batch alone: not on ranks, buckets or launch order.

Each rank sums its microbatches as a binary counter (accumulation.py); finish() sums over the ranks in the same
canonical order and divides once. Nothing is reduced before: a sum over ranks that starts before the last microbatch
would join terms of different ranks too early.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import torch

from dcomm.communicator import Communicator
from dcomm.torch.accumulation import BinaryCounter
from dcomm.torch.buckets import GradientBuckets
from dcomm.torch.launching import Launcher
from dcomm.torch.timeline import Timeline

_NESTED = (
    "deterministic=True: a backward pass ran inside another one, or the one before failed, so microbatches cannot be "
    "counted. Use checkpoint(..., use_reentrant=False); after a failure call finish() and zero_grad()"
)


class CanonicalReducer:
    """The deterministic mode of GradientSynchronizer: everything is reduced in finish()."""

    def __init__(
        self,
        comm: Communicator,
        launcher: Launcher,
        parameters: Sequence[torch.nn.Parameter],
        buckets: GradientBuckets,
        *,
        average: bool | str,
        timeline: Timeline | None,
    ) -> None:
        self._comm = comm
        self._launcher = launcher
        self._parameters = parameters
        self._buckets = buckets
        self._average = average
        self._timeline = timeline
        self._counters = [BinaryCounter(view) for view in buckets.views]
        self._nbytes = [view.numel() * view.element_size() for view in buckets.views]
        self._waiting = [True] * len(parameters)  # for their gradients of this pass
        self._in_pass = False
        self._num_microbatches = 0
        self._held_bytes = 0
        self._peak_bytes = 0
        self.accumulation_bytes = 0  # the largest number of bytes held in partial sums in the last step

    def use(self, buckets: GradientBuckets) -> None:
        """Reduce these from the next step on: the same memory, cut in another way."""
        self._buckets = buckets

    def begin_pass(self) -> None:
        """A microbatch has produced its first gradient."""
        if self._in_pass:
            raise RuntimeError(_NESTED)
        self._in_pass = True
        self._waiting = [True] * len(self._parameters)

    def take(self, index: int, syncing: bool) -> None:
        """Parameter `index` has its gradient of this microbatch; no_sync() changes nothing here."""
        parameter = self._parameters[index]
        term = parameter.grad
        assert term is not None
        parameter.grad = None  # so that the next one is not added to it
        self._waiting[index] = False
        self._add(index, term.detach() if term.requires_grad else term)
        self._launcher.note()

    def end_pass(self) -> None:
        """The microbatch is complete: whoever has no gradient by now gets an absent term."""
        if torch._C._current_autograd_node() is not None:
            raise RuntimeError(_NESTED)
        self._close_pass()

    def finish(self) -> None:
        """Sum over microbatches, then over ranks, then divide. Collective."""
        if self._in_pass:
            self._close_pass()  # it failed
        has_gradient = [counter.result() for counter in self._counters]
        anyone, num_microbatches = self._agree(has_gradient)
        for bucket in self._buckets.buckets:
            self._mark("launched", bucket.label)
            op = "avg" if self._average is True else "sum"
            self._launcher.run(bucket.buffer, op, None, self._launcher.canonical_algo)
            if self._average == "microbatches" and num_microbatches:
                bucket.buffer.div_(num_microbatches)  # true division: no reciprocal
            self._mark("reduced", bucket.label)
        for index in numpy.flatnonzero(anyone).tolist():
            parameter, view = self._parameters[index], self._buckets.views[index]
            parameter.grad = view if view.dtype == parameter.dtype else view.to(parameter.dtype)
        self.accumulation_bytes = self._peak_bytes
        self._num_microbatches = self._held_bytes = self._peak_bytes = 0

    def wait(self) -> None:
        """Nothing is ever in flight."""

    def _add(self, index: int, term: torch.Tensor | None) -> None:
        counter, nbytes = self._counters[index], self._nbytes[index]
        before = counter.num_held
        if term is not None:
            self._peak_bytes = max(self._peak_bytes, self._held_bytes + nbytes)
        counter.add(term)
        self._held_bytes += (counter.num_held - before) * nbytes

    def _close_pass(self) -> None:
        self._in_pass = False
        self._num_microbatches += 1
        for index, is_waiting in enumerate(self._waiting):
            if is_waiting:
                self._add(index, None)

    def _agree(self, has_gradient: list[bool]) -> tuple[numpy.ndarray, int]:
        """Which parameters have a gradient on any rank, and how many microbatches all ranks have."""
        flags = numpy.array(has_gradient, numpy.uint8)
        count = numpy.frombuffer(self._num_microbatches.to_bytes(8, "little"), numpy.uint8)
        gathered = self._comm.all_gather(numpy.concatenate([count, flags])).reshape(self._comm.world_size, -1)
        counts = [int.from_bytes(row[:8].tobytes(), "little") for row in gathered]
        return gathered[:, 8:].any(axis=0), sum(counts)

    def _mark(self, kind: str, label: str) -> None:
        if self._timeline is not None:
            self._timeline.mark(kind, label)
