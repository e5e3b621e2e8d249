"""Reduces gradients while backward still runs: a bucket starts when it and all buckets before it are complete.

    backward   | w4 b4 | w3 b3 w2 | b2 w1 b1 |
    buckets            | 0 ------ | 1 ------ | 2 ------|            async: on the progress thread
    finish                                         | wait, agree |

The fixed order of buckets makes the ranks' operations match whatever order their gradients come in. What a rank has
not reduced when its backward ends is reduced in finish(), where the ranks also exchange one byte for each bucket
("reduce it once more") and for each parameter ("I have a gradient"), so that no rank needs to guess what another did.
Sources: PyTorch DDP (Li et al. 2020, arXiv 2006.15704), whose reducer works alike on a copy of the gradients.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy
import torch

from dcomm.communicator import Communicator
from dcomm.torch.buckets import GradientBuckets
from dcomm.torch.error_feedback import ErrorFeedback
from dcomm.torch.launching import Launcher, Pending
from dcomm.torch.timeline import Timeline

_LATE = (
    "gradient of {name!r} came while its bucket was being reduced: a backward pass ran inside another one. "
    "Use checkpoint(..., use_reentrant=False), or overlap=False"
)
_FORGOTTEN = (
    "GradientSynchronizer: gradients of a new step begin to come, but finish() was not called in the step before, "
    "whose gradients are gone. Call finish() before optimizer.step(), or put the step into `with sync.step():`"
)
_SUMMED = (
    "gradient of {name!r} was added to one that is summed over all ranks already, which would be summed again. "
    "Put all backward passes before the last one into no_sync(), or call zero_grad() between steps"
)


class Reducer:
    """The default mode of GradientSynchronizer: one reduction of each bucket in a step, as early as possible."""

    def __init__(
        self,
        comm: Communicator,
        launcher: Launcher,
        names: Sequence[str],
        parameters: Sequence[torch.nn.Parameter],
        buckets: GradientBuckets,
        *,
        average: bool,
        wire_dtype: str | None,
        feedback: ErrorFeedback | None,
        overlap: bool,
        timeline: Timeline | None,
    ) -> None:
        self._comm = comm
        self._launcher = launcher
        self._names = names
        self._parameters = parameters
        self._op = "avg" if average else "sum"
        self._wire_dtype = wire_dtype
        self._feedback = feedback
        self._algo = "auto" if feedback is None else launcher.canonical_algo  # no partial sums on the wire
        self._overlap = overlap
        self._timeline = timeline
        self.order_seen: list[int] = []  # parameters in the order of their first gradients
        self._has_warned = False
        self._ever_seen = [False] * len(parameters)
        self.use(buckets)

    def use(self, buckets: GradientBuckets) -> None:
        """Reduce these from the next step on."""
        self._buckets = buckets
        self._views = buckets.views
        self._bucket_of = buckets.bucket_of
        self._num_missing_at_start = [len(bucket.indices) for bucket in buckets.buckets]
        self._num_missing = list(self._num_missing_at_start)
        self._num_complete = 0  # in order, so these are the first buckets
        self._num_launched = 0  # as many, or, without overlap, none before finish()
        self._changed = [False] * len(buckets.buckets)  # launched, and added to since
        self._works: list[tuple[int, Pending]] = []

    def begin_pass(self) -> None:
        """A backward pass has produced its first gradient: only gradients of this very pass make a bucket complete."""
        self._settle()  # what is left of a pass that failed
        self._num_missing = list(self._num_missing_at_start)

    def take(self, index: int, syncing: bool) -> None:
        """Parameter `index` has its gradient of this pass."""
        parameter, view = self._parameters[index], self._views[index]
        gradient = parameter.grad
        is_fresh = gradient is not view
        number = self._bucket_of[index]
        if number < self._num_complete:
            self._check_late(index, number, is_fresh)
        if is_fresh:
            assert gradient is not None
            view.copy_(gradient.detach() if gradient.requires_grad else gradient)
            parameter.grad = view
        self._launcher.note()
        if not self._ever_seen[index]:
            self._ever_seen[index] = True
            self.order_seen.append(index)
        if number < self._num_launched:
            self._changed[number] = True
        elif syncing:
            self._num_missing[number] -= 1
            while self._num_complete < len(self._num_missing) and self._num_missing[self._num_complete] == 0:
                self._num_complete += 1
                if self._overlap:
                    self._launch(self._num_launched)
                    self._num_launched += 1

    def end_pass(self) -> None:
        """Nothing may be in flight while a later backward accumulates."""
        self._settle()

    def finish(self) -> None:
        """Reduce what is left and agree on which parameters have gradients. Collective."""
        num_in_backward = self._num_launched
        while self._num_launched < len(self._buckets.buckets):
            self._fill_in(self._num_launched)
            self._launch(self._num_launched)
            self._num_launched += 1
        self.wait()
        has_gradient = [parameter.grad is not None for parameter in self._parameters]
        mine = numpy.array(self._changed + has_gradient, numpy.uint8)
        anyone = self._comm.all_gather(mine).reshape(self._comm.world_size, mine.size).any(axis=0)
        for number in numpy.flatnonzero(anyone[: len(self._changed)]).tolist():
            if number < num_in_backward:  # the others hold the average by now, also of parameters without gradient here
                self._fill_in(number)
            self._launch(number)
        self.wait()
        for index in numpy.flatnonzero(anyone[len(self._changed) :]).tolist():
            if self._parameters[index].grad is None:
                self._parameters[index].grad = self._views[index]
        if self._feedback is not None:
            for index in numpy.flatnonzero(anyone[len(self._changed) :] == 0).tolist():
                self._feedback.take_back(index)
            self._feedback.end_step()
        self._num_complete = self._num_launched = 0
        self._num_missing = list(self._num_missing_at_start)
        self._changed = [False] * len(self._changed)

    def wait(self) -> None:
        """Wait for all reductions in flight."""
        works, self._works = self._works, []
        for number, work in works:
            work.wait()
            self._mark("reduced", number)

    def _settle(self) -> None:
        """As wait(), for hooks, where no rank may wait for another: what that has not started is left to finish()."""
        while self._works and self._works[-1][1].withdraw():
            number, _ = self._works.pop()
            self._num_complete = self._num_launched = number
            self._changed[number] = False
        self.wait()

    def _check_late(self, index: int, number: int, is_fresh: bool) -> None:
        """A gradient of a bucket that was complete in this step: right only where averages may be averaged again."""
        if any(number == running for running, _ in self._works):
            raise RuntimeError(_LATE.format(name=self._names[index]))
        if is_fresh and self._feedback is not None:  # the sum that it was part of is gone
            self._feedback.take_back(index)
        if is_fresh and not self._has_warned:  # zero_grad() came between
            self._has_warned = True
            warnings.warn(_FORGOTTEN, RuntimeWarning, stacklevel=2)
        if not is_fresh and self._op == "sum":
            raise RuntimeError(_SUMMED.format(name=self._names[index]))

    def _fill_in(self, number: int) -> None:
        """Bring the gradients of a bucket to where they are reduced, those too that no hook has seen."""
        for index in self._buckets.buckets[number].indices:
            gradient, view = self._parameters[index].grad, self._views[index]
            if gradient is None:
                view.zero_()
            elif gradient is not view:
                view.copy_(gradient.detach())
                self._parameters[index].grad = view
        self._launcher.note()

    def _launch(self, number: int) -> None:
        buffer = self._buckets.buckets[number].buffer
        wire_dtype = self._wire_dtype if buffer.dtype is torch.float32 else None
        if self._feedback is not None and wire_dtype is not None:
            self._launcher.join()
            self._feedback.encode(self._buckets.buckets[number])
            self._launcher.note()
        self._mark("launched", number)
        if self._overlap:
            self._works.append((number, self._launcher.start(buffer, self._op, wire_dtype, self._algo)))
        else:
            self._launcher.run(buffer, self._op, wire_dtype, self._algo)
            self._mark("reduced", number)

    def _mark(self, kind: str, number: int) -> None:
        if self._timeline is not None:
            self._timeline.mark(kind, self._buckets.buckets[number].label)
