"""Kills ranks, most of them at named places inside the protocol, and looks at what the others make of it.

    python tests/reliability/kill_storm.py --seed 1 --kills 500
    python tests/reliability/kill_storm.py --seed 1 --case 17

Every case is a pure function of (seed, case): ranks, work, victims and where they die. Each survivor must raise
PeerLostError with the pid of a dead rank, in text and attributes, within 100 ms (99 of 100 times); find all the dead
within 2 s; have had right results before; and leave no descriptor, thread, mapping, segment or process behind. Needs
the core with failpoints (tests/support/failpoint_core.py). The exit status is 1 when a case failed; the last line is
JSON.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import re
import resource
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
sys.path.append(str(Path(__file__).resolve().parents[1] / "support"))

import failpoint_core
from killable_ranks import ForkedRank, ForkedRanks, has_children, prepare
from storm_cases import FAILPOINTS, Case, make_case

HANG_S = 20.0  # without an answer for so long a rank counts as hung
AIMED_WITHIN_S = 1.5  # a place that is not reached until then is given up, and the victim dies wherever it is


@dataclass
class Outcome:
    case: Case
    problems: list[str] = field(default_factory=list)
    delays_ms: list[float] = field(default_factory=list)  # of each survivor: from death, or from its call
    named_ms: list[float] = field(default_factory=list)  # until all the dead are known
    notice_ms: list[float] = field(default_factory=list)  # until this process's select() knew of a death
    num_kills: int = 0
    aimed: list[str] = field(default_factory=list)  # the failpoints at which somebody died


def _shm_names() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if "dcomm" in name}


def _stacks(ranks: list[ForkedRank]) -> str:
    """Where the ranks hang, so far as gdb and faulthandler can tell."""
    gdb = shutil.which("gdb")
    texts = []
    for rank in ranks:
        if gdb is None:
            os.kill(rank.pid, signal.SIGUSR1)  # Python's stacks, on stderr
            time.sleep(0.3)
            continue
        command = [gdb, "-p", str(rank.pid), "-batch", "-ex", "thread apply all bt 12"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        texts.append(f"rank {rank.rank}:\n{done.stdout}")
    return "\n".join(texts)


class Run:
    """One case."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.outcome = Outcome(case)
        self.died_ns: dict[int, int] = {}  # by victim
        self.started: set[int] = set()
        self.seen: dict[int, dict[str, Any]] = {}
        self.pids: list[int] = []

    def environment(self, job: str, rank: int) -> dict[str, str]:
        environment = {"DCOMM_JOB_ID": job, "DCOMM_FORCE_SHM": "1" if self.case.force_shm else "0"}
        for victim in self.case.victims:
            if victim.rank == rank and victim.failpoint is not None:
                environment["DCOMM_FAILPOINT"] = f"{victim.failpoint}:kill@{victim.passes}"
        return environment

    def run(self) -> Outcome:
        from storm_ranks import run_rank

        job = secrets.token_hex(8)
        names = _shm_names()
        with ForkedRanks(
            self.case.world_size,
            lambda rank, say: run_rank(self.case, rank, say),
            lambda rank: self.environment(job, rank),
        ) as ranks:
            self.pids = [rank.pid for rank in ranks.ranks]
            self.drive(ranks)
        deadline = time.monotonic() + 5
        while has_children() and time.monotonic() < deadline:
            time.sleep(0.005)
        if has_children():
            self.problem("leaks a process")
        if left := _shm_names() - names:
            self.problem(f"leaks named segments: {left}")
        if not self.outcome.problems:
            self.judge()
        return self.outcome

    def problem(self, text: str) -> None:
        self.outcome.problems.append(text)

    # ---- What happens ----

    def drive(self, ranks: ForkedRanks) -> None:
        case = self.case
        start = time.monotonic()
        kill_at: dict[int, float] = {}  # by victim: of those without a place of their own, once the time is known
        hung_at = start + HANG_S
        give_up_at = hung_at if case.scenario == "close" else start + AIMED_WITHIN_S
        survivors = {rank for rank in range(case.world_size) if all(v.rank != rank for v in case.victims)}
        first = case.victims[0]
        while not (survivors <= self.seen.keys() and len(self.died_ns) == len(case.victims)):
            now = time.monotonic()
            if now > hung_at:
                running = [rank for rank in ranks.ranks if not rank.ended]
                self.problem(f"ranks {[rank.rank for rank in running]} hang:\n{_stacks(running)}")
                return
            if first.failpoint is None and len(self.started) == case.world_size:
                kill_at.setdefault(first.rank, now + first.delay_us / 1e6)
            if now >= give_up_at:
                kill_at.setdefault(first.rank, now)
            if self.died_ns:
                for victim in case.victims:
                    later = 0.3 if victim.failpoint else victim.delay_us / 1e6
                    kill_at.setdefault(victim.rank, now + later)
            for rank, at in kill_at.items():
                if now >= at and rank not in self.died_ns:
                    self.kill(ranks.ranks[rank])
            due = [at for rank, at in kill_at.items() if rank not in self.died_ns]
            for rank, lines in ranks.news(min([hung_at, give_up_at if give_up_at > now else hung_at, *due])):
                self.hear(rank, lines, survivors)

    def kill(self, rank: ForkedRank) -> None:
        self.died_ns[rank.rank] = time.monotonic_ns()
        self.outcome.num_kills += 1
        os.kill(rank.pid, signal.SIGKILL)

    def hear(self, rank: ForkedRank, lines: list[str], survivors: set[int]) -> None:
        for line in lines:
            if line == "started":
                self.started.add(rank.rank)
            elif line.startswith("{"):
                self.seen[rank.rank] = json.loads(line)
            else:
                name, _, at_ns = line.split()
                if rank.rank not in self.died_ns:
                    self.died_ns[rank.rank] = int(at_ns)
                    self.outcome.num_kills += 1
                    self.outcome.aimed.append(name)
        if not lines and rank.rank in self.died_ns:
            self.outcome.notice_ms.append((time.monotonic_ns() - self.died_ns[rank.rank]) / 1e6)
        if not lines and rank.rank in survivors and rank.rank not in self.seen:
            self.problem(f"rank {rank.rank} ended with status {rank.status} and said nothing")
            self.seen[rank.rank] = {}

    # ---- What is made of it ----

    def judge(self) -> None:
        for rank, seen in self.seen.items():
            if "outlived" in seen:  # a victim that heard of another one's death first
                self.judge_results(rank, seen["outlived"])
            elif seen:
                self.judge_survivor(rank, seen["seen"])

    def judge_results(self, rank: int, seen: dict[str, Any]) -> None:
        if seen["wrong"]:
            self.problem(f"rank {rank} had wrong results: {seen['wrong']}")

    def judge_survivor(self, rank: int, seen: dict[str, Any]) -> None:
        self.judge_results(rank, seen)
        if seen.get("leaks"):
            self.problem(f"rank {rank} leaks {seen['leaks']}")
        first_ns = min(self.died_ns.values())
        if self.case.scenario == "close":
            if seen["error"]:
                self.problem(f"rank {rank}: a false {seen['error']}: {seen['text']}")
            self.outcome.delays_ms.append(max(0, seen["closed_ns"] - first_ns) / 1e6)
            return
        if self.case.scenario == "init" and seen["error"] == "CollectiveTimeoutError" and not seen.get("has_met"):
            return self.judge_absence(rank, seen)
        if seen["error"] != "PeerLostError":
            return self.problem(f"rank {rank}: {seen['error']}: {seen.get('text')}")
        if not any(self.is_named(victim, seen["text"]) for victim in self.died_ns):
            self.problem(f"rank {rank} does not name a dead rank: {seen['text']}")
        self.judge_attributes(rank, seen["text"], seen["named"])
        self.outcome.delays_ms.append((seen["at_ns"] - max(first_ns, seen["entered_ns"])) / 1e6)
        if not seen.get("has_met"):
            return
        if not seen["second"].startswith("PeerLostError"):
            self.problem(f"rank {rank}, next call: {seen['second']}")
        missing = [victim for victim in self.died_ns if not self.is_named(victim, seen.get("last", ""))]
        if missing:
            self.problem(f"rank {rank} does not name ranks {missing} in the end: {seen.get('last')}")
        self.judge_attributes(rank, seen["last"], seen["last_named"])
        self.outcome.named_ms.append((seen["all_named_ns"] - max(*self.died_ns.values(), seen["at_ns"])) / 1e6)

    def judge_attributes(self, rank: int, text: str, named: dict[str, Any]) -> None:
        """The error's attributes name whom its text names, in that order; in a part, by their numbers there."""
        told = re.findall(r"rank (\d+)(?: \(pid (\d+)\))? (?:died|closed|was|exit|ended|and|failed|sent)", text)
        ranks, pids = [int(number) for number, _ in told], [int(pid) if pid else None for _, pid in told]
        seq = re.search(r"after completing #(\d+)", text)
        last_seq = int(seq[1]) if seq else None
        if (named["ranks"], named["pids"], named["last_seq"]) != (ranks, pids, last_seq):
            self.problem(f"rank {rank}: attributes {named} of: {text}")

    def judge_absence(self, rank: int, seen: dict[str, Any]) -> None:
        """Who dies before anybody knew it is missing, no more; who comes when rank 0 has given up misses rank 0."""
        victim = self.case.victims[0].rank
        if f"rank {victim} did not arrive" not in seen["text"] and "rank 0 did not arrive" not in seen["text"]:
            self.problem(f"rank {rank} does not name rank {victim}: {seen['text']}")

    def is_named(self, victim: int, text: str) -> bool:
        """By its pid, since ranks have other numbers in a part; before everybody has met, perhaps by its number."""
        return f"(pid {self.pids[victim]})" in text or f"rank {victim} ended during set-up" in text


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def cpu_seconds() -> float:
    """Of this process and of all ranks that have ended: what the storm costs where nothing else runs."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


class Storm:
    """Many cases, and their sum."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.outcomes: list[Outcome] = []
        self.seconds = 0.0

    def run(self, indices: range, verbose: bool) -> None:
        start = time.monotonic()
        for index in indices:
            case = make_case(self.seed, index)
            case_start = time.monotonic()
            outcome = Run(case).run()
            self.outcomes.append(outcome)
            if verbose:
                took_ms = (time.monotonic() - case_start) * 1e3
                delays = ", ".join(f"{ms:.1f}" for ms in outcome.delays_ms)
                print(f"{case}: died at {outcome.aimed or 'a random moment'}, told after {delays} ms; {took_ms:.0f} ms")
            for problem in outcome.problems:
                print(f"FAILED {case}: {problem}\n  again: {self.command(case)}", flush=True)
        self.seconds += time.monotonic() - start

    def command(self, case: Case) -> str:
        return f"python tests/reliability/kill_storm.py --seed {case.seed} --case {case.index}"

    def count(self, word: str) -> int:
        problems = [problem for outcome in self.outcomes for problem in outcome.problems]
        return sum(word in problem for problem in problems)

    def summary(self) -> dict[str, Any]:
        delays = [ms for outcome in self.outcomes for ms in outcome.delays_ms]
        notice = [ms for outcome in self.outcomes for ms in outcome.notice_ms]
        named = [ms for outcome in self.outcomes for ms in outcome.named_ms]
        aimed = Counter(name for outcome in self.outcomes for name in outcome.aimed)
        num_kills = sum(outcome.num_kills for outcome in self.outcomes)
        points = {name for names in FAILPOINTS.values() for name in names}
        return {
            "seed": self.seed,
            "num_cases": len(self.outcomes),
            "num_kills": num_kills,
            "num_aimed": sum(aimed.values()),
            "num_failed": sum(bool(outcome.problems) for outcome in self.outcomes),
            "num_hangs": self.count("hang"),
            "num_wrong": self.count("had wrong results"),
            "num_leaks": self.count("leaks"),
            "p50_ms": round(percentile(delays, 0.5), 2),
            "p99_ms": round(percentile(delays, 0.99), 2),
            "notice_p99_ms": round(percentile(notice, 0.99), 2),
            "max_ms": round(max(delays, default=0.0), 2),
            "all_named_max_ms": round(max(named, default=0.0), 2),
            "seconds": round(self.seconds, 1),
            "ms_per_kill": round(1e3 * self.seconds / max(1, num_kills), 1),
            "cpu_ms_per_kill": round(1e3 * cpu_seconds() / max(1, num_kills), 1),
            "not_reached": sorted(points - aimed.keys()),
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=60, help="how many ranks to kill, about")
    parser.add_argument("--case", type=int, help="this one alone")
    parser.add_argument("--core", type=Path, default=failpoint_core.DEFAULT_PATH)
    parser.add_argument("--verbose", action="store_true")
    arguments = parser.parse_args()
    failpoint_core.install(arguments.core)
    import storm_ranks  # noqa: F401  (dcomm and NumPy too: what the ranks then have)

    faulthandler.register(signal.SIGUSR1, all_threads=True)
    prepare()
    storm = Storm(arguments.seed)
    if arguments.case is not None:
        storm.run(range(arguments.case, arguments.case + 1), verbose=True)
    else:
        next_index = 0
        while (num_kills := sum(outcome.num_kills for outcome in storm.outcomes)) < arguments.kills:
            more = max(1, (arguments.kills - num_kills) // 2)
            storm.run(range(next_index, next_index + more), arguments.verbose)
            next_index += more
    print(json.dumps(storm.summary()))
    return 1 if any(outcome.problems for outcome in storm.outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
