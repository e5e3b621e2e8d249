"""One test of PyTorch's, in one process per rank, ended by a deadline whatever happens.

A supervisor process is forked for each test and plays the part that the main process has upstream: it forks the ranks,
waits for them and tells what became of them. The ranks meet through a FileStore of their own. The supervisor leads
a process group, which is killed at the end, so that no rank outlives its test.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import unittest
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path
from types import ModuleType
from typing import Any

import upstream

FORK: Any = multiprocessing.get_context("fork")
_GRACE_S = 20.0  # for the supervisor, to end ranks past the deadline and to collect where they were
_BARRIER_S = 60.0  # upstream's 10 s of its barrier by files are short on a busy machine
_LINES = 30  # of what ranks print
_FROM_A_TEST = "and exception:"  # in upstream's text of a failure that has a rank's traceback


@dataclass
class Outcome:
    """What became of one test."""

    test: str
    world_size: int
    verdict: str  # passed, failed, skipped
    reason: str = ""
    seconds: float = 0.0
    operations: list[int] = field(default_factory=list)  # of each rank, where the backend tells them


@dataclass
class Loaded:
    """The tests for one backend and world size."""

    backend: str
    world_size: int
    module: ModuleType
    suite: Any


def load(backend: str, world_size: int, prepare: Callable[[], Callable[[], int] | None]) -> Loaded:
    """The tests for one backend and world size; `prepare` as in :func:`suite_of`."""
    module = upstream.load(backend, world_size)
    return Loaded(backend, world_size, module, suite_of(module, prepare))


def suite_of(module: ModuleType, prepare: Callable[[], Callable[[], int] | None]) -> Any:
    """The test case of `module` that forks its ranks.

    Args:
        module: From :func:`upstream.load`.
        prepare: Called in each rank before its group is made; returns what counts its operations, if anything does.
    """
    found: Any = module

    class Suite(found.TestDistBackend, found.DistributedTest._DistTestBase):  # type: ignore[misc]
        """Upstream's two classes put together, as upstream does in a file that the wheel does not have."""

        def setUp(self) -> None:
            super().setUp()
            found.INIT_METHOD = os.environ["INIT_METHOD"]
            self._start_processes(FORK.Process)

        def _barrier(self, wait_for: int | None = None, timeout: float = _BARRIER_S) -> None:
            found.Barrier.sync(wait_for, max(timeout, _BARRIER_S))

        @classmethod
        def _run(cls, rank: int, test_name: str, file_name: str, pipe: Any, **kwargs: Any) -> None:
            count = prepare()
            try:
                super()._run(rank, test_name, file_name, pipe, **kwargs)
            finally:
                if count is not None:
                    Path(f"{file_name}.{rank}").write_text(str(count()))

        def _check_return_codes(self, test: Any, elapsed_s: float) -> None:
            super()._check_return_codes(test, elapsed_s)
            codes = [process.exitcode for process in self.processes]
            if any(codes):  # upstream looks at rank 0 alone
                raise RuntimeError(f"exit codes of the ranks: {codes}")

        def operations(self) -> list[int]:
            """Of each rank; empty: nobody counts."""
            files = [Path(f"{self.file_name}.{rank}") for rank in range(int(self.world_size))]
            return [int(file.read_text()) for file in files if file.exists()]

    return Suite


class Running:
    """A test that has been started."""

    def __init__(self, loaded: Loaded, test: str, deadline_s: float, folder: Path) -> None:
        """Fork the supervisor; what the test prints and its temporary files go to `folder`."""
        self.test = test
        self.loaded = loaded
        self._started = time.monotonic()
        self._limit_s = deadline_s + _GRACE_S
        self._answer, theirs = FORK.Pipe(duplex=False)
        self._process = FORK.Process(target=_supervise, args=(loaded, test, deadline_s, folder, theirs))
        self._process.start()
        with contextlib.suppress(OSError):  # both sides do it: neither may come too late
            os.setpgid(self._process.pid, 0)
        theirs.close()

    @property
    def signs(self) -> list[Any]:
        """What multiprocessing.connection.wait takes: one of them is ready when the test has ended."""
        return [self._process.sentinel, self._answer]

    def ended(self) -> bool:
        """Whether it has."""
        return bool(connection.wait(self.signs, 0))

    def seconds_left(self) -> float:
        """Until even the supervisor is given up."""
        return self._started + self._limit_s - time.monotonic()

    def end(self) -> Outcome:
        """The outcome, of a test that has ended or whose time is up; nothing of it runs any more."""
        ended = self.ended()
        told = None
        if self._answer.poll():
            with contextlib.suppress(EOFError):
                told = self._answer.recv()
        with contextlib.suppress(ProcessLookupError):  # before the supervisor's number may be another's
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.join()
        if told is not None:
            outcome = Outcome(self.test, self.loaded.world_size, **json.loads(told))
        else:
            how = f"ended with {self._process.exitcode}" if ended else f"did not end in {self._limit_s:.0f} s"
            outcome = Outcome(self.test, self.loaded.world_size, "failed", f"the supervisor {how}")
        outcome.seconds = round(time.monotonic() - self._started, 2)
        return outcome


def _supervise(loaded: Loaded, test: str, deadline_s: float, folder: Path, answer: Any) -> None:
    os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with (folder / "output").open("w") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    tempfile.tempdir = str(folder)
    upstream.enter(loaded.module, loaded.world_size, deadline_s)
    suite = loaded.suite
    suite.setUpClass()
    case = suite(test)
    result = unittest.TestResult()
    case.run(result)
    told: dict[str, Any] = {"verdict": "passed", "operations": case.operations()}
    if result.skipped:
        told.update(verdict="skipped", reason=result.skipped[0][1])
    sys.stdout.flush()
    for _, text in result.errors + result.failures:
        if _FROM_A_TEST not in text:  # a rank that failed before its test tells it only in what it prints
            text = f"{_end_of(folder / 'output')}\n{text}"
        told.update(verdict="failed", reason=text)
    answer.send(json.dumps(told))


def _end_of(file: Path) -> str:
    return "\n".join(file.read_text(errors="replace").splitlines()[-_LINES:])
