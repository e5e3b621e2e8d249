"""One rank of an exit storm: works, then leaves in one way or another, or sees how another one has left."""

from __future__ import annotations

import atexit
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from storm_cases import ALGOS, COLLECTIVES, Operation
from storm_operations import call, expected, given

import dcomm

# What the others are told of each, after "rank 1 (pid 71) ".
WAYS = {
    "close": "closed its communicator",
    "return": "exited with status 0 without close()",  # from main: what atexit does, then the end
    "exit 3": "exited with status 3 without close()",
    "os._exit": "died (it exited with status 0)",
    "SIGKILL": "died (it was killed by SIGKILL)",
    "SIGTERM": "died (it was killed by SIGTERM)",
    "SIGTERM handled": "exited with status 143 without close()",  # as many programs do
    "abort": "died (it was killed by SIGABRT)",
}
# On a busy machine its process may not have ended when they stop waiting for its status.
UNTOLD = ("died after completing", "exits without close() after completing")
STATUSES = {"exit 3": 3, "SIGKILL": -9, "SIGTERM": -15, "SIGTERM handled": 143, "abort": -6}


def _end_interpreter(status: int) -> None:
    atexit._run_exitfuncs()
    os._exit(status)


def leave(comm: dcomm.Communicator, way: str) -> None:
    if way == "close":
        comm.close()
    elif way in ("return", "exit 3"):
        _end_interpreter(STATUSES.get(way, 0))
    elif way == "SIGTERM handled":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        except SystemExit:
            _end_interpreter(143)
    elif way == "os._exit":
        os._exit(0)
    elif way == "abort":
        signal.signal(signal.SIGABRT, signal.SIG_DFL)  # without faulthandler's stacks
        os.abort()
    else:
        os.kill(os.getpid(), signal.Signals[way])
        time.sleep(10)


class ExitCase:
    """A pure function of (seed, index). amid: the others wait for the one that leaves."""

    def __init__(self, seed: int, index: int, amid: bool) -> None:
        rng = random.Random(f"{seed}/{index}")
        self.index = index
        self.amid = amid
        self.world_size = rng.choice((2, 4))
        self.leaver = rng.choice((0, rng.randrange(self.world_size)))
        self.way = list(WAYS)[index % len(WAYS)]
        self.operations = [self._operation(rng) for _ in range(rng.randint(1, 4))]

    def _operation(self, rng: random.Random) -> Operation:
        return Operation(
            rng.choice((*COLLECTIVES, "all_reduce", "all_reduce")),
            rng.choice([algo for algo in ALGOS if algo != "tree" or self.world_size > 2]),
            "sum",
            "float32",
            int(2 ** rng.uniform(0, 17)),
            rng.randrange(self.world_size),
            is_async=False,
        )

    def __str__(self) -> str:
        kinds = [operation.kind for operation in self.operations]
        return f"run {self.index}: rank {self.leaver} of {self.world_size}, {self.way}, after {kinds}"


def run_rank(case: ExitCase, rank: int, say: Callable[[str], None]) -> None:
    comm = dcomm.init(rank=rank, world_size=case.world_size, timeout=15)
    seen: dict[str, Any] = {"error": "", "right": True}
    try:
        for operation in case.operations:
            result = call(comm, operation, given(operation, rank, case.world_size))
            wanted = expected(operation, rank, case.world_size)
            seen["right"] &= wanted is None or bool(np.array_equal(result, wanted))
        if case.amid:
            comm.barrier()
        if rank == case.leaver:
            return leave(comm, case.way)
        if case.amid:
            comm.barrier()  # the leaver's part never comes
    except dcomm.DcommError as error:
        seen["error"] = f"{type(error).__name__}: {error}"
    seen["at_ns"] = time.monotonic_ns()
    say(json.dumps(seen))
    comm.close()
