"""What happened when in a step: a list of marks, for pictures and for finding out where time goes."""

from __future__ import annotations

import time
from typing import NamedTuple


class Event(NamedTuple):
    """One moment of a step.

    `kind`: "ready" (a gradient is accumulated; `label` is the parameter's name), "launched" and "reduced" (of bucket
    `label`), "backward_end", "finish", "finished", or a caller's own.
    """

    ns: int  # time.perf_counter_ns()
    kind: str
    label: str


class Timeline:
    """Records the events of one step and keeps those of the step before."""

    def __init__(self) -> None:
        self.last: list[Event] = []
        self._current: list[Event] = []

    def mark(self, kind: str, label: str = "") -> None:
        """Record an event now; about 0.3 us."""
        self._current.append(Event(time.perf_counter_ns(), kind, label))

    def end_step(self) -> None:
        """The step is complete: what was recorded becomes :attr:`last`."""
        self.last, self._current = self._current, []
