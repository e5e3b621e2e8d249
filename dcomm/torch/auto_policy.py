"""HookState(policy="auto"): each bucket goes the way that was measured to be fastest for its size.

    DDP's step    1         2                     3                          4 ...
                  group     group (new buckets)   measure, tell, use it      use it

DDP lays its buckets out anew once, after its first step; in the third all ranks have the last sizes, and bucket 0 comes
first on every rank, so they measure at one point of their programs. Before that DDP's own group averages.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch._C._distributed_c10d import GradBucket

from dcomm.communicator import Communicator
from dcomm.torch.bucket_memory import SETTLED
from dcomm.torch.recommendation import GROUP, Recommendation, measure

logger = logging.getLogger("dcomm")


class AutoPolicy:
    """The choice for one DDP module."""

    def __init__(self, comm: Communicator, group: Any) -> None:
        self._comm = comm
        self._group = group
        self._num_steps = 0
        self._buckets: dict[int, torch.Tensor] = {}  # of the step before, by number
        self.recommendation: Recommendation | None = None

    @property
    def all_dcomm(self) -> bool:
        """Whether no bucket goes by the group."""
        found = self.recommendation
        return found is not None and all(verdict.choice != GROUP for verdict in found.verdicts)

    def choice_of(self, bucket: GradBucket, tensor: torch.Tensor, wire: str | None) -> str:
        """GROUP, DCOMM, or the dtype of the wire, for this bucket; collective where it measures."""
        if bucket.index() == 0:
            self._num_steps += 1
            if self._num_steps == SETTLED:
                self._measure(wire)
        if self.recommendation is None:
            self._buckets[bucket.index()] = tensor.new_empty(1).expand(tensor.numel())
            if bucket.is_last():  # what an earlier layout had beyond it
                self._buckets = {index: one for index, one in self._buckets.items() if index <= bucket.index()}
            return GROUP
        return self.recommendation.choice(tensor.numel(), str(tensor.dtype).removeprefix("torch."))

    def _measure(self, wire: str | None) -> None:
        self.recommendation = measure(self._comm, self._group, self._buckets.values(), [] if wire is None else [wire])
        self._buckets.clear()
        if self._comm.rank == 0:
            logger.warning("dcomm: policy='auto': %s", self.recommendation)
