"""Two ranks that all-reduce: as processes, then as threads. They are those of the benchmark, checks included."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence

from dcomm.doctor.finding import Finding, Part, fail, ok, skip
from dcomm.doctor.output import last_line

NAMES = ("two_processes", "two_threads")
_KINDS = dict(zip(NAMES, ("processes", "threads"), strict=True))
_PROGRAM = ("-m", "dcomm.bench.worker")
_COUNTS = {8: 2, 1 << 20: 1 << 18}  # nbytes: float32 elements
_FIXES = {
    "two_processes": "read the lines above: memfd, sockets and seccomp first; if they are ok, report it",
    "two_threads": "reinstall dcomm; if that does not help, report it",
}


def two_ranks(name: str, deadline: float, program: Sequence[str] = _PROGRAM) -> Finding:
    """Start two ranks, check every element of all_reduce, time 8 bytes; they are gone when this returns."""
    from dcomm.bench.case import Case
    from dcomm.bench.exact import exact_chain
    from dcomm.bench.ranks import RankError, Ranks

    def left_s() -> float:
        return max(0.0, deadline - time.monotonic())

    p50_us, num_wrong = {}, 0
    with tempfile.TemporaryFile() as errors:
        try:
            with Ranks(2, timeout_s=left_s(), threads=name == "two_threads", program=program, errors=errors) as ranks:
                isa = ranks.receive()[0]["isa"]
                for nbytes, count in _COUNTS.items():
                    ranks.timeout_s = left_s()
                    calls = exact_chain(2, 16, "float32")
                    measured = ranks.measure(Case(count, calls, 50 if nbytes == 8 else 5))
                    p50_us[nbytes] = statistics.median(measured.us)
                    num_wrong += measured.num_wrong
                codes = ranks.leave()
        except (RankError, OSError) as error:
            late = "give it more time with `dcomm doctor --seconds 30`; if that fails, too, " if left_s() == 0 else ""
            return fail(name, f"{error}{last_line(errors)}", late + _FIXES[name], world_size=2)
    details = {"world_size": 2, "num_wrong": num_wrong, "isa": isa, "p50_us": {str(k): v for k, v in p50_us.items()}}
    if num_wrong:
        return fail(name, f"{num_wrong} wrong elements in all_reduce of 2 {_KINDS[name]}", _FIXES[name], **details)
    if any(codes):
        return fail(name, f"all_reduce was right, but the ranks ended with exit codes {codes}", _FIXES[name], **details)
    times = f"8 B in {p50_us[8]:.2f} us, 1 MiB in {p50_us[1 << 20]:.0f} us"
    found = f"all_reduce of 2 {_KINDS[name]}: every element right; {times}"
    if len(os.sched_getaffinity(0)) < 2:
        found += " on one CPU, taking turns"
    return ok(name, found, **details)


def self_tests(deadline: float) -> Iterator[Finding]:
    """One after the other: side by side on two CPUs, they would time each other."""
    for name in NAMES:
        yield two_ranks(name, deadline)


def part(core_error: ImportError | None) -> Part:
    """Both self-tests; skipped where there is no core to test."""
    if core_error is None:
        return Part("ranks", NAMES, self_tests)
    return Part("ranks", NAMES, lambda _: (skip(name, "the core does not load", "as for core above") for name in NAMES))
