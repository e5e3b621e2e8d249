"""Finds out, in a model's first steps, with which bucket size they are shortest. Once, and the same for all ranks.

    step          1       2 ...                                        26        27 ...
    bucket size   1 MiB   1 4 8 25 64 MiB, and four times more         verdict   the best

The sizes take turns, so that whatever slows the machine down meets all of them. Gradients stay where they are, their
neighbours travel with them or do not (buckets.py). What is timed is what a bucket size can change: from the first
gradient of the step's last backward pass to the end of the exchange, on the slowest rank; where no rank overlaps, the
exchange alone, on the rank that came last. Rank 0's verdict goes to all.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy

from dcomm.communicator import Communicator
from dcomm.torch.buckets import GradientBuckets

MIB = 1 << 20
CANDIDATES = tuple(size * MIB for size in (1, 4, 8, 25, 64))
ROUNDS = 5
# Within so much of the fastest the smallest is taken: it is closest to what starts early beside backward.
_AS_FAST = 1.01


class BucketTrial:
    """The steps that are measured."""

    def __init__(self, comm: Communicator, buckets: GradientBuckets, overlap: bool, drain: Callable[[], None]) -> None:
        """drain: returns when what was enqueued on this rank has happened."""
        self._comm = comm
        self._overlap = overlap
        self._drain = drain
        by_groups = {str(buckets.groups(size)): size for size in reversed(CANDIDATES)}
        self.sizes = sorted(by_groups.values())  # of those with equal buckets the smallest
        self._whole: list[float] = []  # ms, of each step
        self._exchange: list[float] = []
        self._pass_begin: float | None = None
        self._finish_begin = 0.0

    @property
    def num_steps(self) -> int:
        """How many are measured; 0: there is nothing to choose from."""
        return ROUNDS * len(self.sizes) if len(self.sizes) > 1 else 0

    @property
    def is_over(self) -> bool:
        """True: it is time for :meth:`verdict`."""
        return len(self._whole) == self.num_steps

    @property
    def bucket_bytes(self) -> int:
        """Of the next step; each round begins with another size."""
        number, place = divmod(len(self._whole), len(self.sizes))
        return self.sizes[(number + place) % len(self.sizes)]

    def begin_pass(self) -> None:
        """A backward pass has produced its first gradient."""
        self._drain()
        self._pass_begin = time.perf_counter()

    def begin_finish(self) -> None:
        """The step's exchange is about to be completed."""
        self._finish_begin = time.perf_counter()

    def end_step(self) -> None:
        """It is complete."""
        self._drain()
        now = time.perf_counter()
        begin = self._finish_begin if self._pass_begin is None else self._pass_begin
        self._whole.append(1e3 * (now - begin))
        self._exchange.append(1e3 * (now - self._finish_begin))
        self._pass_begin = None

    def verdict(self) -> tuple[int, str]:
        """Collective: the size for all further steps, and why."""
        if not self.num_steps:
            return CANDIDATES[0], "the buckets are the same with every size"
        mine = numpy.array([float(self._overlap), *self._whole, *self._exchange])
        everyone = self._comm.all_gather(mine).reshape(self._comm.world_size, mine.size)
        if everyone[:, 0].any():
            what, ms = "backward and exchange", everyone[:, 1 : 1 + self.num_steps].max(axis=0)
        else:
            what, ms = "exchange", everyone[:, 1 + self.num_steps :].min(axis=0)
        medians = self._medians(ms)
        chosen = numpy.array([choose(self.sizes, medians)])
        self._comm.broadcast(chosen, src=0)
        times = ", ".join(f"{size // MIB} MiB {value:.2f} ms" for size, value in zip(self.sizes, medians, strict=True))
        return int(chosen[0]), f"median of {ROUNDS} steps each, {what}: {times}"

    def _medians(self, ms: numpy.ndarray) -> list[float]:
        rounds = ms.reshape(ROUNDS, len(self.sizes))
        in_order = [numpy.roll(row, number) for number, row in enumerate(rounds)]
        return [float(value) for value in numpy.median(in_order, axis=0)]


def choose(sizes: list[int], ms: list[float]) -> int:
    """The smallest size that is about as fast as the fastest."""
    return next(size for size, value in zip(sizes, ms, strict=True) if value <= _AS_FAST * min(ms))
