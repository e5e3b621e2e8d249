"""One rank of a kill storm: works until it is killed or told that a peer is lost, then says what it saw."""

from __future__ import annotations

import atexit
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from typing import Any

import numpy as np
from storm_cases import Case, Operation, operations
from storm_operations import Array, call, expected, given

import dcomm

CLOSE_AFTER = 12  # operations, where the closing itself is what is stormed
INIT_TIMEOUT_S = 2.0  # where ranks are killed before anybody knows them, this ends the wait for them
NAMED_WITHIN_S = 2.0
_STARTED_AFTER = 3
_MOST_SHARED = 1 << 18  # elements


def named(error: BaseException) -> dict[str, Any]:
    """What an error's attributes say."""
    if not isinstance(error, (dcomm.PeerLostError, dcomm.CollectiveTimeoutError)):
        return {}
    return {"ranks": error.ranks, "pids": error.pids, "last_seq": error.last_seq}


class Rank:
    def __init__(self, case: Case, rank: int, say: Callable[[str], None]) -> None:
        self.case = case
        self.rank = rank
        self.say = say
        self.seen: dict[str, Any] = {"num_operations": 0, "wrong": [], "error": None}
        self.entered_ns = 0
        self.comm: dcomm.Communicator | None = None

    def enter(self) -> None:
        self.entered_ns = time.monotonic_ns()

    def check(self, what: object, result: Array | None, wanted: Array | None) -> None:
        self.seen["num_operations"] += 1
        if wanted is not None and (
            result is None or result.dtype != wanted.dtype or not np.array_equal(result, wanted)
        ):
            self.seen["wrong"].append(str(what))
        if self.seen["num_operations"] == _STARTED_AFTER:
            self.say("started")

    # ---- Scenarios ----

    def run_operation(self, comm: dcomm.Communicator, operation: Operation) -> tuple[Any, Callable[[Any], None]]:
        """Starts it; what came back, and what to do with the result."""
        x = given(operation, self.rank, comm.world_size)
        wanted = expected(operation, self.rank, comm.world_size)
        self.enter()
        back = call(comm, operation, x)
        return back, lambda result: self.check(operation, result, wanted)

    def collectives(self, comm: dcomm.Communicator, most: int | None = None) -> None:
        in_flight: list[tuple[dcomm.Work, Callable[[Any], None]]] = []
        for operation in islice(operations(self.case), most):
            back, then = self.run_operation(comm, operation)
            if isinstance(back, dcomm.Work):
                in_flight.append((back, then))
                if len(in_flight) < 4:
                    continue
            else:
                then(back)
            for work, after in in_flight:
                self.enter()
                after(work.wait())
            in_flight.clear()
        for work, after in in_flight:
            after(work.wait())

    def messages(self, comm: dcomm.Communicator) -> None:
        """Round the ring with both neighbours; now and then everybody sends to one rank, which takes what comes."""
        n = comm.world_size
        for number, operation in enumerate(operations(self.case)):
            x = given(operation, self.rank, n)[: operation.count]
            out = np.empty_like(x)
            self.enter()
            if operation.kind == "all_reduce" or n == 2:
                work = comm.send(x, (self.rank + 1) % n, async_op=True)
                previous = (self.rank - 1) % n
                comm.recv(out, previous)
                self.enter()
                work.wait()
                self.check(operation, out, given(operation, previous, n)[: operation.count])
            elif self.rank != operation.root:
                comm.send(x, operation.root, tag=number + 1)
                self.check(operation, None, None)
            else:
                for _ in range(n - 1):
                    self.enter()
                    source = comm.recv_any(out, tag=number + 1)
                    self.check(operation, out, given(operation, source, n)[: operation.count])

    def split(self, comm: dcomm.Communicator) -> None:
        for number, operation in enumerate(operations(self.case)):
            self.enter()
            pairs = number % 2 == 1 and comm.world_size == 4
            child = comm.split(self.rank // 2 if pairs else 0, self.rank)
            assert child is not None
            x = np.full(min(operation.count, _MOST_SHARED), self.rank, np.int64)
            self.enter()
            child.all_reduce(x)
            first = self.rank // 2 * 2 if pairs else 0
            total = sum(range(first, first + child.world_size))
            self.check("in a part", x[:1], np.full(1, total))
            child.close()
            self.enter()
            comm.barrier()
            self.check("barrier", None, None)

    def arrays(self, comm: dcomm.Communicator) -> None:
        for operation in operations(self.case):
            self.enter()
            array = comm.empty((min(operation.count, _MOST_SHARED),), dtype="float32")
            for step in range(4):
                array[:] = step + self.rank
                self.enter()
                comm.all_reduce(array, algo="direct")
                n = comm.world_size
                self.check("direct", array[:1], np.full(1, step * n + n * (n - 1) // 2, np.float32))

    # ---- From the first call to the last ----

    def work(self) -> None:
        case = self.case
        self.enter()
        timeout = INIT_TIMEOUT_S if case.scenario == "init" else 30.0
        self.comm = dcomm.init(rank=self.rank, world_size=case.world_size, timeout=timeout)
        self.comm._core.set_timeout(30_000_000_000)
        self.seen["has_met"] = True
        if case.scenario == "init":
            self.comm.barrier()
            self.collectives(self.comm)
        elif case.scenario == "close":
            self.collectives(self.comm, CLOSE_AFTER)
        else:
            getattr(self, case.scenario)(self.comm)

    def note(self, error: BaseException) -> None:
        at_ns = time.monotonic_ns()
        self.seen |= {"error": type(error).__name__, "text": str(error), "at_ns": at_ns, "entered_ns": self.entered_ns}
        self.seen["named"] = named(error)

    def note_later_calls(self) -> None:
        """The next call raises at once; in the end it names all that have died."""
        comm = self.comm
        assert comm is not None
        texts: list[str] = []
        last_named: dict[str, Any] = {}
        num_dead = len(self.case.victims)
        end = time.monotonic() + NAMED_WITHIN_S
        num_named = 0
        while not texts or (num_named < num_dead and time.monotonic() < end):
            if texts:
                time.sleep(0.002)
            num_named = sum(how == "died" for how in comm.lost_ranks().values())
            try:
                comm.barrier()
                texts.append("no error")
            except dcomm.DcommError as error:
                texts.append(f"{type(error).__name__}: {error}")
                last_named = named(error)
        self.seen |= {"second": texts[0], "last": texts[-1], "last_named": last_named}
        self.seen["all_named_ns"] = time.monotonic_ns()

    def leave(self, error: BaseException | None) -> None:
        comm, self.comm = self.comm, None
        if comm is None:
            return
        if self.case.leave == "with":
            try:
                with comm:
                    if error is not None:
                        raise KeyError("on its way out")
            except KeyError:
                pass
        elif self.case.leave == "atexit":
            atexit._run_exitfuncs()
        elif self.case.leave == "close" or error is None:
            comm.close()


def _descriptors() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # listdir's own
            found.append(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
    return sorted(found)


def _resources() -> dict[str, Any]:
    with open("/proc/self/maps") as file:
        windows = sum("memfd:dcomm" in line or "/dev/shm/dcomm" in line for line in file)
    return {
        "descriptors": _descriptors(),
        "threads": len(os.listdir("/proc/self/task")),
        "windows": windows,
    }


def run_rank(case: Case, rank: int, say: Callable[[str], None]) -> None:
    before = _resources()
    if case.forks_workers:
        reader, writer = os.pipe()
        if os.fork() == 0:  # lives until the rank is gone, and a little longer
            os.close(writer)
            os.read(reader, 1)
            time.sleep(0.2)
            os._exit(0)
        before = _resources()
    own = Rank(case, rank, say)
    caught: BaseException | None = None
    try:
        own.work()
    except dcomm.DcommError as error:
        own.note(error)
        caught = error
    seen = own.seen
    if any(victim.rank == rank for victim in case.victims):
        if caught is not None:
            say(json.dumps({"outlived": seen}))
        # Its own place to die was not reached, or is in what follows.
        if case.scenario == "close":
            own.leave(caught)
        time.sleep(60)
    if caught is not None and own.comm is not None:
        own.note_later_calls()
    caught = None
    own.leave(RuntimeError() if seen["error"] else None)
    seen["closed_ns"] = time.monotonic_ns()
    gc.collect()  # a Work of the last operations knows its communicator
    after = _resources()
    if case.leave != "nothing" or not seen["error"]:
        seen["leaks"] = {name: [before[name], after[name]] for name in before if before[name] != after[name]}
    say(json.dumps({"seen": seen}))
    sys.stderr.flush()
