"""Ranks that leave in every way there is, once their part is done or while others wait for them.

    python tests/reliability/exit_storm.py after 1000 --seed 1
    python tests/reliability/exit_storm.py amid 32

after: one rank leaves right after its last operation; nobody may get an error, and all results are right.
amid: one rank leaves while the others wait for it; they must learn how it went. The exit status is 1 when a run failed;
the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
sys.path.append(str(Path(__file__).resolve().parents[1] / "support"))

import failpoint_core
from killable_ranks import ForkedRanks, prepare

if TYPE_CHECKING:
    from exit_ranks import ExitCase

HANG_S = 20.0


class Run:
    """One case: what went wrong, and how long after the leaver's end the last of the others knew."""

    def __init__(self, case: ExitCase) -> None:
        self.case = case
        self.problems: list[str] = []
        self.num_untold = 0  # ranks that know who has left, but not how
        self.delay_ms = 0.0

    def run(self) -> Run:
        from exit_ranks import run_rank

        case = self.case
        job = secrets.token_hex(8)
        deadline = time.monotonic() + HANG_S
        seen: dict[int, dict[str, Any]] = {}
        ended_ns = 0
        with ForkedRanks(
            case.world_size, lambda rank, say: run_rank(case, rank, say), lambda _: {"DCOMM_JOB_ID": job}
        ) as ranks:
            while not all(rank.ended for rank in ranks.ranks) and time.monotonic() < deadline:
                for rank, lines in ranks.news(deadline):
                    if lines:
                        seen[rank.rank] = json.loads(lines[-1])
                    elif rank.rank == case.leaver:
                        ended_ns = time.monotonic_ns()
            leaver = ranks.ranks[case.leaver]
            hung = [rank.rank for rank in ranks.ranks if not rank.ended]
        if hung:
            self.problems.append(f"{case}: ranks {hung} hang")
            return self
        self.judge(seen, leaver.pid, os.waitstatus_to_exitcode(leaver.status))
        last_ns = max((one["at_ns"] for one in seen.values()), default=0)
        self.delay_ms = max(0.0, (last_ns - ended_ns) / 1e6)
        return self

    def judge(self, seen: dict[int, dict[str, Any]], pid: int, status: int) -> None:
        from exit_ranks import STATUSES, UNTOLD, WAYS

        case = self.case
        if status != STATUSES.get(case.way, 0):
            self.problems.append(f"{case}: its status is {status}")
        name = f": rank {case.leaver} (pid {pid}) "
        for rank in set(range(case.world_size)) - {case.leaver}:
            one = seen.get(rank, {"error": "it said nothing", "right": False})
            if not one["right"]:
                self.problems.append(f"{case}: rank {rank} has a wrong result")
            if not case.amid and one["error"]:
                self.problems.append(f"{case}: rank {rank} has a false {one['error']}")
            if not case.amid:
                continue
            kind, _, text = one["error"].partition(name)
            if text.startswith(UNTOLD) and case.way != "close":
                self.num_untold += 1
            elif not (kind.startswith("PeerLostError") and text.startswith(f"{WAYS[case.way]} after completing")):
                self.problems.append(f"{case}: rank {rank} does not say how it left: {one['error']}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("when", choices=("after", "amid"))
    parser.add_argument("runs", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--core", type=Path, help="an extension with failpoints; default: the installed one")
    arguments = parser.parse_args()
    if arguments.core is not None:
        failpoint_core.install(arguments.core)
    from exit_ranks import ExitCase

    prepare()
    start = time.monotonic()
    runs = []
    for index in range(arguments.runs):
        runs.append(Run(ExitCase(arguments.seed, index, arguments.when == "amid")).run())
        for problem in runs[-1].problems:
            print("FAILED", problem, flush=True)
    seconds = time.monotonic() - start
    summary = {
        "runs": len(runs),
        "problems": sum(len(run.problems) for run in runs),
        "untold": sum(run.num_untold for run in runs),
        "max_ms": round(max(run.delay_ms for run in runs), 1),
        "seconds": round(seconds, 1),
        "ms_per_run": round(1e3 * seconds / len(runs), 1),
    }
    print(json.dumps(summary))
    return 1 if summary["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
