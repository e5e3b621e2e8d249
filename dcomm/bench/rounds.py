"""Measuring in turn: every round has every case once, and is stamped with the state of the cores.

A hypervisor moves virtual CPUs within seconds, and every figure changes with it; so what is compared must be measured
side by side, and only what was measured in one state counts together. A round has one segment for each size of dcomm
and gloo and one for each MPI, with a probe at each border: what was measured between two probes that agree has their
state.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dcomm.bench.case import Case, Measured
from dcomm.bench.core_state import CoreState, probe
from dcomm.bench.exact import exact_chain
from dcomm.bench.mpi import Peers, Variant
from dcomm.bench.ranks import Average, RankError, Ranks

Progress = Callable[[float, str], None]  # share of the rounds that is done, what is going on


@dataclass
class Plan:
    """What one round consists of."""

    ranks: Ranks
    cases: list[Case]  # of dcomm and gloo
    mpi: list[tuple[Variant, list[Case]]]
    average: Average
    peers: Peers | None = None

    @property
    def all_cases(self) -> list[Case]:
        """In the order in which :func:`run_round` measures them."""
        return [*self.cases, *(case for _, cases in self.mpi for case in cases)]

    @property
    def segments(self) -> list[int]:
        """For each case the segment of the round in which it is measured, numbered in that order."""
        pairs = itertools.pairwise(self.cases)
        own = list(itertools.accumulate((int(case.count != last.count) for last, case in pairs), initial=0))
        return own + [number for number, (_, cases) in enumerate(self.mpi, own[-1] + 1) for _ in cases]


def fingerprint(ranks: Ranks) -> tuple[CoreState, float]:
    """The cores' state and the time of an 8-byte all-reduce.

    Raises:
        RankError: Its result was wrong, or a rank failed.
    """
    calls = exact_chain(ranks.world_size, 16, "float32")
    state, eight = probe(), ranks.measure(Case(2, calls, 25))
    if eight.num_wrong:
        raise RankError(f"{eight.num_wrong} wrong elements in the 8-byte all-reduce")
    return state, statistics.median(eight.us)


def run_round(plan: Plan, tell: Callable[[int, str], None]) -> tuple[list[Measured], list[CoreState]]:
    """Every case once, and the states of the cores in between; `tell` hears how many cases are done."""
    found: list[Measured] = []
    states: list[CoreState] = []
    for case, last in zip(plan.cases, [plan.cases[0], *plan.cases], strict=False):
        if case.count != last.count:
            states.append(probe())
        tell(len(found), f"{case.lib} {case.collective}, {case.count} x {case.dtype}")
        found.append(plan.ranks.measure(case, plan.average))
    for variant, cases in plan.mpi:
        assert plan.peers is not None
        tell(len(found), variant.title)
        states.append(probe())
        found += plan.peers.measure(variant, cases)
    return found, states


def measure_rounds(
    plan: Plan, rounds: int, max_seconds: float, progress: Progress, *, until_counted: bool
) -> tuple[list[Any], list[Any]]:
    """The rounds' stamps, and for each case one Measured per round.

    With `until_counted` it goes on until `rounds` rounds count in every segment. No round is started that would end
    after `max_seconds`, except the first. A stamp has what was probed at each border, the state of each segment, and
    that of the whole round; where it changed it is mixed.
    """
    stamps: list[dict[str, Any]] = []
    results: list[list[Measured]] = [[] for _ in plan.all_cases]
    start = time.monotonic()
    state, eight = fingerprint(plan.ranks)
    while True:
        begun, number = time.monotonic(), len(stamps)

        def tell(done: int, what: str, number: int = number) -> None:
            progress(min(1.0, (number + done / len(results)) / rounds), f"round {number + 1} of {rounds}: {what}")

        found, between = run_round(plan, tell)
        for measured, collected in zip(found, results, strict=True):
            collected.append(measured)
        state_after, eight_after = fingerprint(plan.ranks)
        states = [state, *between, state_after]
        stamps.append(
            {
                "state": _common(states),
                "segments": [_common(border) for border in itertools.pairwise(states)],
                "flag_ns": [one.flag_ns for one in states],
                "read_gbps": [one.read_gbps for one in states],
                "eight_byte_us": [round(eight, 3), round(eight_after, 3)],
            }
        )
        state, eight = state_after, eight_after
        now = time.monotonic()
        progress(min(1.0, (number + 1) / rounds), f"round {number + 1}: {stamps[-1]['state']}, {now - begun:.0f} s\n")
        enough = len(stamps) >= rounds
        if enough and until_counted:
            enough = min(len(counted) for counted in chosen_rounds(stamps)[1]) >= rounds
        if enough or now - start + (now - begun) > max_seconds:
            return stamps, results


def _common(states: Iterable[CoreState]) -> str:
    names = {state.name for state in states}
    return names.pop() if len(names) == 1 else "mixed"


def chosen_rounds(stamps: list[dict[str, Any]]) -> tuple[str, list[list[int]]]:
    """The state seen most, and for each segment the rounds in which it had that state.

    Mixed ones count only if there are no others.
    """
    return counted_rounds(list(zip(*(stamp["segments"] for stamp in stamps), strict=True)))


def counted_rounds(states: Sequence[Sequence[str]]) -> tuple[str, list[list[int]]]:
    """As :func:`chosen_rounds`, of the states of each thing by round."""
    pure = [name for names in states for name in names if name != "mixed"]
    chosen = Counter(pure or ["mixed"]).most_common(1)[0][0]
    return chosen, [[number for number, name in enumerate(names) if name == chosen] for names in states]


class Turns:
    """The states of the cores while several things are measured in turn, round after round."""

    def __init__(self, names: Iterable[str]) -> None:
        self.states: dict[str, list[str]] = {name: [] for name in names}
        self._before = probe()

    @contextlib.contextmanager
    def turn(self, name: str) -> Iterator[None]:
        """What is measured inside has the state of the probes before and after it, or is mixed."""
        yield
        after = probe()
        self.states[name].append(_common([self._before, after]))
        self._before = after

    @property
    def num_counted(self) -> int:
        """Of the thing that was measured least often in the state seen most."""
        return min(len(rounds) for rounds in counted_rounds(list(self.states.values()))[1])
