"""Runs PyTorch's own tests of torch.distributed on dcomm's backend, and on others beside it.

    python tests/torch_suite/run.py                              # dcomm, 2 and 4 ranks
    python tests/torch_suite/run.py --backends gloo dcomm --json results.json

Exits with 1 if a test fails that the lists (lists.py) do not name, or one that gloo passes is not passed.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing import connection
from pathlib import Path

import mutants
import report
import single
import torch
import upstream
from judge import judge

import dcomm.torch


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", nargs="+", default=["dcomm"])
    parser.add_argument("--world-sizes", nargs="+", type=int, default=[2, 4])
    parser.add_argument("--only", default="", metavar="REGEX", help="tests whose names contain it")
    parser.add_argument("--jobs", type=int, default=2, help="tests at the same time")
    parser.add_argument("--deadline", type=float, default=120.0, metavar="SECONDS", help="of each test")
    parser.add_argument("--json", type=Path, help="where the results go")
    parser.add_argument("--reference", type=Path, help="results whose gloo part says what must pass")
    parser.add_argument(
        "--own-monitored-barrier",
        action="store_true",
        help="dcomm.torch.monitored_barrier in place of torch's; nothing is not applicable then",
    )
    parser.add_argument("--mutant", choices=sorted(mutants.MUTANTS), help="break the backend, to see it noticed")
    args = parser.parse_args()

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # tests that run are ended then, too
    started = time.monotonic()
    torch.set_num_threads(1)  # ranks are forked: no pool of threads may exist before
    folder = Path(tempfile.mkdtemp(prefix="torch_suite_"))
    try:
        outcomes = run_all(args, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    results = report.results(outcomes, time.monotonic() - started)
    if args.reference:
        report.compare(results, json.loads(args.reference.read_text()))
    if args.json:
        report.write(results, args.json)
    return report.tell(results)


def run_all(args: argparse.Namespace, folder: Path) -> dict[str, list[single.Outcome]]:
    """Every chosen test on every backend and world size; by backend."""
    outcomes: dict[str, list[single.Outcome]] = {}
    for backend in args.backends:
        loads = [single.load(backend, each, preparation(backend, args)) for each in args.world_sizes]
        found = outcomes[backend] = []
        for outcome in in_parallel(to_run(loads, args.only, found), args.jobs, args.deadline, folder):
            found.append(judge(backend, outcome, args.own_monitored_barrier))
            report.line(backend, outcome)
    return outcomes


def preparation(backend: str, args: argparse.Namespace) -> Callable[[], Callable[[], int] | None]:
    """What each rank does before its group is made."""

    def prepare() -> Callable[[], int] | None:
        torch.set_num_threads(1)
        if backend != "dcomm":
            return None
        from calls import Calls

        calls = Calls()
        if args.own_monitored_barrier:
            torch.distributed.monitored_barrier = dcomm.torch.monitored_barrier
        if args.mutant:
            mutants.MUTANTS[args.mutant]()
        return calls.count

    return prepare


def to_run(loads: list[single.Loaded], only: str, skipped: list[single.Outcome]) -> Iterator[tuple[single.Loaded, str]]:
    """What must be started; what a decorator skips is added to `skipped`."""
    for loaded in loads:
        for name in upstream.names(loaded.module):
            if not re.search(only, name):
                continue
            reason = upstream.skipped_at_once(loaded.module, name)
            if reason is None:
                yield loaded, name
            else:
                skipped.append(single.Outcome(name, loaded.world_size, "skipped", reason))


def in_parallel(
    tests: Iterator[tuple[single.Loaded, str]], jobs: int, deadline_s: float, folder: Path
) -> Iterator[single.Outcome]:
    """Run `jobs` tests at a time."""
    running: list[single.Running] = []
    try:
        while True:
            while len(running) < jobs and (following := next(tests, None)):
                loaded, name = following
                place = folder / f"{loaded.backend}_{loaded.world_size}_{name}"
                place.mkdir()
                running.append(single.Running(loaded, name, deadline_s, place))
            if not running:
                return
            signs = [sign for each in running for sign in each.signs]
            connection.wait(signs, max(0.0, min(each.seconds_left() for each in running)))
            for each in [one for one in running if one.ended() or one.seconds_left() <= 0]:
                running.remove(each)
                yield each.end()
    finally:
        for each in running:
            each.end()


if __name__ == "__main__":
    sys.exit(main())
