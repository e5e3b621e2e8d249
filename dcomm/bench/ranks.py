"""The parent's side of the ranks: starts them, gives orders, merges what they say.

The parent starts ``python -m dcomm.bench.worker --ranks R ...`` for each rank, or once for all where they are threads
of one process, and sends orders, one JSON object a line, through a pipe of each rank; answers come back through
another. So the parent alone decides what is measured next, and sees at once when one of the ranks dies.
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
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import IO, Any

from dcomm.bench.case import Case, Measured

Average = Callable[[tuple[float, ...]], float]


class RankError(Exception):
    """A rank process ended, failed or was silent when it should have answered."""


class Ranks:
    """The parent's side: starts the rank processes, gives orders, ends them by their ids whatever happens."""

    def __init__(
        self,
        world_size: int,
        timeout_s: float = 120.0,
        *,
        threads: bool = False,
        program: Sequence[str] = ("-m", "dcomm.bench.worker"),
        errors: IO[bytes] | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """Start `world_size` ranks as a job of their own; their first answer says that they have met.

        Args:
            world_size: How many.
            timeout_s: Seconds to wait for an answer.
            threads: The ranks are threads of one process.
            program: What Python runs in a rank process: :func:`dcomm.bench.worker.main`, with any worker.
            errors: A file that takes what the ranks write to stderr; None: this process's own stderr.
            settings: What stands in the ranks' environment, whatever this process's says.
        """
        self._program = program
        self._errors = errors
        self.world_size = world_size
        self.timeout_s = timeout_s
        self.job_id = f"bench-{secrets.token_hex(8)}"
        defaults = {"DCOMM_TIMEOUT_S": "60", "OMP_NUM_THREADS": "1"}
        environment = {**defaults, **os.environ, **(settings or {}), "DCOMM_JOB_ID": self.job_id}
        self.processes: list[subprocess.Popen[bytes]] = []
        self._orders: list[IO[bytes]] = []
        self._answers: list[IO[bytes]] = []
        self._unread = [b""] * world_size
        numbers = ["--world-size", str(world_size), "--parent", str(os.getpid())]
        everyone = list(range(world_size))
        try:
            for ranks in [everyone] if threads else [[rank] for rank in everyone]:
                self._start([*numbers, "--ranks", ",".join(map(str, ranks))], len(ranks), environment)
        except BaseException:
            self.kill()
            raise

    def _start(self, arguments: list[str], num_ranks: int, environment: dict[str, str]) -> None:
        """One process, with a pipe to and a pipe from each of its ranks."""
        theirs: list[int] = []
        for _ in range(num_ranks):
            orders, answers = os.pipe(), os.pipe()
            theirs += [orders[0], answers[1]]
            self._orders.append(os.fdopen(orders[1], "wb"))
            self._answers.append(os.fdopen(answers[0], "rb", buffering=0))
        command = [sys.executable, *self._program, *arguments, "--pipes", ",".join(map(str, theirs))]
        # In a session of its own: Ctrl-C is for the parent, which ends it.
        nothing = subprocess.DEVNULL
        try:
            self.processes.append(
                subprocess.Popen(
                    command,
                    stdin=nothing,
                    stderr=self._errors,
                    env=environment,
                    start_new_session=True,
                    pass_fds=theirs,
                )
            )
        finally:
            for descriptor in theirs:
                os.close(descriptor)

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
        for pipe in (*self._orders, *self._answers):
            with suppress(BrokenPipeError):
                pipe.close()

    def send(self, order: dict[str, Any], ranks: list[int] | None = None) -> None:
        """Give an order to `ranks` (default: all)."""
        line = json.dumps(order).encode() + b"\n"
        for rank in range(self.world_size) if ranks is None else ranks:
            try:
                self._orders[rank].write(line)
                self._orders[rank].flush()
            except BrokenPipeError:
                raise self._ended(rank) from None

    def receive(self, ranks: list[int] | None = None, timeout_s: float | None = None) -> list[dict[str, Any]]:
        """One answer from each of `ranks`, in that order; RankError when one ended, failed or is silent."""
        deadline = time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s)
        return [self._receive_one(rank, deadline) for rank in (range(self.world_size) if ranks is None else ranks)]

    def _ended(self, rank: int) -> RankError:
        process = self.processes[min(rank, len(self.processes) - 1)]
        return RankError(f"rank {rank} ended early (exit code {process.wait(30)})")

    def _receive_one(self, rank: int, deadline: float) -> dict[str, Any]:
        pipe = self._answers[rank]
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
            self._orders[rank].close()
        return [process.wait(timeout=30) for process in self.processes]
