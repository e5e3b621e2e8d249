"""What became of random mismatches (disagreements.py), and of those of ranks that are threads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from disagreements import Case, make_case, problems, run_case
from figures import record_figure
from rank_threads import thread_outcomes


class Tally:
    """Cases, how they went, and the slowest error."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self.found: list[str] = []
        self.slowest_s = 0.0
        self.hangs = 0

    def add(self, case: Case, told: list[Any]) -> None:
        self.kinds[case.kind] += 1
        strange = [one for one in told if not isinstance(one, dict)]
        self.found += [f"{case}\n  {problem}" for problem in ([repr(strange)] if strange else problems(case, told))]
        self.slowest_s = max([self.slowest_s, *(one["seconds"] for one in told if isinstance(one, dict))])

    def add_hang(self, what: str) -> None:
        self.hangs += 1
        self.found.append(what)

    def check(self, key: str) -> None:
        num_cases = sum(self.kinds.values())
        silent = sum("silent success" in problem for problem in self.found)
        figures = {"mismatches": num_cases, "silent": silent, "hangs": self.hangs, "problems": len(self.found)}
        record_figure(key, **figures, slowest_s=self.slowest_s)
        print(dict(self.kinds))
        assert not self.found, "\n".join(self.found)


def of_threads(seeds: Iterable[int]) -> Tally:
    tally = Tally()
    for seed in seeds:
        case = make_case(seed)
        try:
            tally.add(case, thread_outcomes(case.world_size, lambda comm, case=case: run_case(comm, case), timeout=20))
        except AssertionError as error:
            tally.add_hang(f"{case}: {error}")
    return tally
