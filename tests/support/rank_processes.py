"""Ranks that are processes: each runs one function of a script in tests/workers or beside a test.

The function is called as function(rank, world_size, **args); what it returns comes back as JSON. A worker
announces how far it is with mark(name), which the test can wait for, to kill it at a known place.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from served_rank import ServedRank, rank_environment, server_for

MAIN = Path(__file__).with_name("rank_main.py")
WORKERS = Path(__file__).resolve().parents[1] / "workers"


@dataclass(frozen=True)
class RankResult:
    rank: int
    returncode: int | None  # None: was still running at the deadline, and was killed
    value: Any
    out: str
    err: str

    def __str__(self) -> str:
        return f"--- rank {self.rank}: exit {self.returncode}, value {self.value!r}\n{self.out}{self.err}"


def threads_of(pid: int) -> list[str]:
    """A line for each thread: its name, R (runs) or S (sleeps), its CPU seconds, and where in the kernel it waits."""
    found = []
    for folder in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):  # it has ended
            name, _, rest = (folder / "stat").read_text().partition("(")[2].rpartition(")")
            fields = rest.split()
            seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            found.append(f"{folder.name} {name} {fields[0]} {seconds:.2f} s {(folder / 'wchan').read_text()}")
    return found


class Ranks:
    """Started rank processes; leaving the `with` block kills what is left of them, and nothing else."""

    def __init__(
        self,
        world_size: int,
        script: Path,
        function: str,
        args: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        env: Mapping[str, str] | Sequence[Mapping[str, str]] | None = None,
    ) -> None:
        """args, env: for all ranks, or one mapping for each."""
        self._folder = tempfile.TemporaryDirectory(prefix="dcomm-test-")
        self.folder = Path(self._folder.name)
        base = {**rank_environment(), "DCOMM_JOB_ID": secrets.token_hex(8)}
        self.processes: list[subprocess.Popen[bytes] | ServedRank] = []
        for rank in range(world_size):
            own_args = args[rank] if isinstance(args, Sequence) else args or {}
            own_env = env[rank] if isinstance(env, Sequence) else env or {}
            task = {
                "script": str(script),
                "function": function,
                "rank": rank,
                "world_size": world_size,
                "args": dict(own_args),
                "folder": str(self.folder),
            }
            self.processes.append(self._start(task, {**base, **own_env}))

    def _start(self, task: dict[str, Any], env: dict[str, str]) -> subprocess.Popen[bytes] | ServedRank:
        out, err = (self._path(task["rank"], what) for what in ("out", "err"))
        with out.open("wb") as out_file, err.open("wb") as err_file:
            server = server_for(Path(task["script"]), env)
            if server is not None:
                return ServedRank(server, task, env, out, err)
            command = [sys.executable, str(MAIN), json.dumps(task)]
            return subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=out_file, stderr=err_file)

    def __enter__(self) -> Ranks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
        for process in self.processes:
            process.wait()
        self._folder.cleanup()

    def _path(self, rank: int, what: str) -> Path:
        return self.folder / f"{rank}.{what}"

    def wait_for_mark(self, rank: int, name: str, timeout: float = 40) -> None:
        """Returns when the worker of `rank` has called mark(name)."""
        path = self._path(rank, f"mark-{name}")
        deadline = time.monotonic() + timeout
        while not path.exists():
            ended = self.processes[rank].poll() is not None and not path.exists()
            if ended or time.monotonic() > deadline:
                why = "ended" if ended else f"not there after {timeout} s"
                raise AssertionError(f"rank {rank}, mark {name!r}: {why}\n{self.result(rank)}")
            time.sleep(0.002)

    def send(self, rank: int, number: signal.Signals) -> int:
        """Sends a signal; returns time.monotonic_ns(), which all processes share, just before."""
        now = time.monotonic_ns()
        self.processes[rank].send_signal(number)
        return now

    def result(self, rank: int) -> RankResult:
        value_path = self._path(rank, "value")
        return RankResult(
            rank=rank,
            returncode=self.processes[rank].poll(),
            value=json.loads(value_path.read_text()) if value_path.exists() else None,
            out=self._path(rank, "out").read_text(errors="replace"),
            err=self._path(rank, "err").read_text(errors="replace"),
        )

    def finish(self, timeout: float = 60) -> list[RankResult]:
        """All results; a rank that is still running after `timeout` fails the test."""
        deadline = time.monotonic() + timeout
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        results = [self.result(rank) for rank in range(len(self.processes))]
        stuck = [result.rank for result in results if result.returncode is None]
        if stuck:
            threads = [f"rank {rank}: {line}" for rank in stuck for line in threads_of(self.processes[rank].pid)]
            for rank in stuck:  # Python writes where its threads are (PYTHONFAULTHANDLER)
                self.processes[rank].send_signal(signal.SIGABRT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.processes[rank].wait(10)
            text = "\n".join([*threads, *(str(self.result(rank)) for rank in range(len(results)))])
            raise AssertionError(f"ranks {stuck} are still running after {timeout} s\n{text}")
        return results


def run_processes(
    world_size: int,
    script: Path,
    function: str,
    args: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    *,
    env: Mapping[str, str] | Sequence[Mapping[str, str]] | None = None,
    timeout: float = 60,
) -> list[RankResult]:
    """Runs all ranks to their ends, whatever their exit codes."""
    with Ranks(world_size, script, function, args, env) as ranks:
        return ranks.finish(timeout)


def process_values(
    world_size: int,
    script: Path,
    function: str,
    args: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    *,
    env: Mapping[str, str] | Sequence[Mapping[str, str]] | None = None,
    timeout: float = 60,
) -> list[Any]:
    """What the function returned on each rank; a rank that did not exit with 0 fails the test."""
    results = run_processes(world_size, script, function, args, env=env, timeout=timeout)
    if any(result.returncode != 0 for result in results):
        raise AssertionError("\n".join(map(str, results)))
    return [result.value for result in results]
