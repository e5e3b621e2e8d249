"""The parent's side of the rank processes: starts them, gives orders, merges what they say.

The parent starts ``python -m dcomm.bench.worker --rank R ...`` for each rank and sends orders, one JSON object a
line, to its standard input; answers come back on its standard output. So the parent alone decides what is measured
next, and sees at once when one of the ranks dies.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import select
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any

from dcomm.bench.case import Case, Measured

Average = Callable[[tuple[float, ...]], float]


class RankError(Exception):
    """A rank process ended, failed or was silent when it should have answered."""


class Ranks:
    """The parent's side: starts the rank processes, gives orders, ends them by their ids whatever happens."""

    def __init__(self, world_size: int, timeout_s: float = 120.0) -> None:
        """Start `world_size` processes as a job of their own; their first answer says that they have met."""
        self.world_size = world_size
        self.timeout_s = timeout_s
        self.job_id = f"bench-{secrets.token_hex(8)}"
        defaults = {"DCOMM_TIMEOUT_S": "60", "OMP_NUM_THREADS": "1"}
        environment = {**defaults, **os.environ, "DCOMM_JOB_ID": self.job_id}
        self.processes: list[subprocess.Popen[bytes]] = []
        self._unread = [b""] * world_size
        numbers, pipe = ["--world-size", str(world_size), "--parent", str(os.getpid())], subprocess.PIPE
        try:
            for rank in range(world_size):  # in sessions of their own: Ctrl-C is for the parent, which ends them
                mine = [sys.executable, "-m", "dcomm.bench.worker", *numbers, "--rank", str(rank)]
                started = subprocess.Popen(mine, stdin=pipe, stdout=pipe, env=environment, start_new_session=True)
                self.processes.append(started)
        except BaseException:
            self.kill()
            raise

    def __enter__(self) -> Ranks:
        """The ranks themselves."""
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing that was started here outlives the block."""
        self.kill()

    def kill(self) -> None:
        """End what still runs, reap it, close the pipes."""
        for process in self.processes:
            process.kill()  # does nothing to one that has been reaped
        for process in self.processes:
            process.wait(timeout=30)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(BrokenPipeError):
                        pipe.close()

    def send(self, order: dict[str, Any], ranks: list[int] | None = None) -> None:
        """Give an order to `ranks` (default: all)."""
        line = json.dumps(order).encode() + b"\n"
        for rank in range(self.world_size) if ranks is None else ranks:
            try:
                self._pipe(rank).write(line)
                self._pipe(rank).flush()
            except BrokenPipeError:
                raise self._ended(rank) from None

    def receive(self, ranks: list[int] | None = None, timeout_s: float | None = None) -> list[dict[str, Any]]:
        """One answer from each of `ranks`, in that order; RankError when one ended, failed or is silent."""
        deadline = time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s)
        return [self._receive_one(rank, deadline) for rank in (range(self.world_size) if ranks is None else ranks)]

    def _pipe(self, rank: int) -> IO[bytes]:
        pipe = self.processes[rank].stdin
        assert pipe is not None
        return pipe

    def _ended(self, rank: int) -> RankError:
        return RankError(f"rank {rank} ended early (exit code {self.processes[rank].wait(30)})")

    def _receive_one(self, rank: int, deadline: float) -> dict[str, Any]:
        pipe = self.processes[rank].stdout
        assert pipe is not None
        while b"\n" not in self._unread[rank]:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([pipe], [], [], left)[0]:
                raise RankError(f"rank {rank} did not answer in time")
            chunk = os.read(pipe.fileno(), 1 << 16)
            if not chunk:
                raise self._ended(rank)
            self._unread[rank] += chunk
        line, self._unread[rank] = self._unread[rank].split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RankError(f"rank {rank}: {answer['error']}")
        return answer

    def measure(self, case: Case, average: Average = max) -> Measured:
        """Carry out `case` on all ranks; `average` makes one time of a batch's times by rank."""
        self.send({"do": "measure", **dataclasses.asdict(case)})
        answers = self.receive()
        us = [average(times) for times in zip(*(answer["us"] for answer in answers), strict=True)]
        return Measured(us, sum(answer["num_wrong"] for answer in answers))

    def leave(self, ranks: list[int] | None = None) -> list[int]:
        """Let `ranks` end by themselves; the exit codes of all, killed ones negative."""
        for rank in range(self.world_size) if ranks is None else ranks:
            self._pipe(rank).close()
        return [process.wait(timeout=30) for process in self.processes]
