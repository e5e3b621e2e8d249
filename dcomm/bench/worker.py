"""One rank, or all ranks as threads: carries out the orders of :class:`dcomm.bench.ranks.Ranks`.

An order is a JSON object on a line of a rank's first pipe, the answer one on its second.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import dcomm
from dcomm import _core
from dcomm.arrays import DTYPE_CODES
from dcomm.bench import gloo
from dcomm.bench.buffers import Array, Data, Pool, aligned_array
from dcomm.bench.calls import as_caller_holds, dcomm_call, memory_pass
from dcomm.bench.case import Case
from dcomm.bench.codes import ALGO_CODES, OP_CODES
from dcomm.bench.parent import die_with_parent
from dcomm.bench.ranks import RankError

NUM_SALTS = 8
_Say = Callable[[dict[str, Any]], None]


class Worker:
    """What one rank remembers between orders."""

    def __init__(self, comm: dcomm.Communicator) -> None:
        self._comm = comm
        self._data: dict[tuple[Any, ...], Data] = {}
        self._saved: dict[tuple[Any, ...], tuple[Array, Array]] = {}
        self._pool = Pool(comm.empty)
        self._gloo: dict[int, Any] = {}
        self._salt = 0
        # For tests of the checks: which batch of the last rank gets a wrong bit, from 1.
        self._corrupt = int(os.environ.get("DCOMM_BENCH_CORRUPT", "0")) * (comm.rank == comm.world_size - 1)

    def carry_out(self, do: str, say: _Say, **order: Any) -> dict[str, Any]:
        """The answer to one order."""
        if do == "gloo":
            self._gloo, version = gloo.open_groups(rank=self._comm.rank, world_size=self._comm.world_size, **order)
            return {"torch": version}
        return self.storm(**order, say=say) if do == "storm" else self.measure(Case(**order))

    def measure(self, case: Case) -> dict[str, Any]:
        """Time batches of calls; every batch gets fresh data, every element of its results is checked."""
        return self._measure_core(case) if case.level == "c" else self._measure_python(case)

    def _measure_python(self, case: Case) -> dict[str, Any]:
        data = self._crafted(case)
        pairs = self._pool.pairs(case, self._comm.rank, self._comm.world_size)
        calls = [self._call(case, *pair) for pair in pairs] * (case.calls // case.buffers)
        us: list[float] = []
        num_wrong = 0
        for batch in range(case.warm + case.batches):
            self._salt = (self._salt + 1) % NUM_SALTS  # what is left of an earlier batch is wrong now
            for x, _ in pairs:
                data.fill(x, self._salt)
            self._comm.barrier()
            start = time.perf_counter_ns()
            for call in calls:
                call()
            elapsed = time.perf_counter_ns() - start
            if batch >= case.warm:
                us.append(elapsed / case.calls / 1e3)
            if self._corrupts() and pairs[0][1].size:
                pairs[0][1][pairs[0][1].size // 2 :].view(np.uint8)[0] ^= 1
            if case.check:
                num_wrong += sum(data.num_wrong(case, out, self._salt) for _, out in pairs)
        return {"us": us, "num_wrong": num_wrong}

    def _measure_core(self, case: Case) -> dict[str, Any]:
        """The same without Python between the calls, and without leaving the core between the batches."""
        inputs, expected = self._saved_whole(case)
        pairs = self._pool.pairs(case, self._comm.rank, self._comm.world_size)
        codes = (DTYPE_CODES[case.dtype], DTYPE_CODES[case.carrier], OP_CODES[case.redop], ALGO_CODES[case.algo])
        flip = int(self._corrupts())  # in the right values, for the results are out of reach
        expected[case.count // 2 : case.count // 2 + 1].view(np.uint8)[0] ^= flip
        us, num_wrong = _core.time_all_reduce(
            self._comm._core,
            [(x.ctypes.data, out.ctypes.data) for x, out in pairs],
            inputs.ctypes.data,
            expected.ctypes.data if case.check else 0,
            NUM_SALTS,
            case.count,
            *codes,
            case.calls,
            case.batches,
            case.warm,
        )
        expected[case.count // 2 : case.count // 2 + 1].view(np.uint8)[0] ^= flip
        return {"us": us, "num_wrong": num_wrong}

    def _crafted(self, case: Case) -> Data:
        key = Data.key(case)
        if key not in self._data:
            self._data[key] = Data(case, self._comm.rank, self._comm.world_size)
        return self._data[key]

    def _saved_whole(self, case: Case) -> tuple[Array, Array]:
        """Input and result in one piece, as the core wants them; the largest so far is kept."""
        key, count = Data.key(case), case.count + NUM_SALTS - 1
        saved = self._saved.get(key)
        if saved is None or saved[0].size < count:
            self._saved.clear()
            inputs = aligned_array(count, case.dtype)
            self._crafted(case).fill(inputs, 0)
            saved = self._saved[key] = inputs, self._crafted(case).expected(case, count)
        return saved

    def _call(self, case: Case, x: Array, out: Array) -> Callable[[], Any]:
        mine = as_caller_holds(x, case)
        result = mine if case.in_place else as_caller_holds(out, case)
        if case.lib == "gloo":
            return gloo.gloo_call(self._gloo[case.threads], case, mine, result)
        if case.lib == "pass":
            return memory_pass(x, x if case.in_place else out)
        return dcomm_call(self._comm, case, mine, result)

    def _corrupts(self) -> bool:
        self._corrupt -= 1
        return self._corrupt == 0

    def storm(self, count: int, say: _Say) -> dict[str, Any]:
        """All-reduce without a pause until an error ends it; says so on the way in."""
        x = np.zeros(count, np.float32)
        end = time.monotonic() + 60
        for number in range(10**9):
            try:
                self._comm.all_reduce(x)
            except dcomm.DcommError as error:
                return {"ns": time.monotonic_ns(), "kind": type(error).__name__, "message": str(error)}
            if number == 20:
                say({"storming": True})
            if number % 100 == 0 and time.monotonic() > end:
                break
        raise RankError("the storm ended without an error")


def _serve(
    make_worker: Callable[[dcomm.Communicator], Any], comm: dcomm.Communicator, orders: int, answers: int
) -> None:
    with comm, os.fdopen(orders, encoding="ascii") as lines, os.fdopen(answers, "w", encoding="ascii") as out:

        def say(answer: dict[str, Any]) -> None:
            print(json.dumps(answer), file=out, flush=True)

        say({"isa": comm._core.isa, "slot_bytes": comm._core.slot_bytes})
        worker = make_worker(comm)
        for line in lines:
            try:
                answer = worker.carry_out(say=say, **json.loads(line))
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            say(answer)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def main(make_worker: Callable[[dcomm.Communicator], Any] = Worker) -> int:
    """Be one rank, or all of them as threads; :class:`dcomm.bench.ranks.Ranks` starts it.

    `make_worker(comm)` has ``carry_out(do, say, **order)``, which gives the answer to an order.
    """
    parser = argparse.ArgumentParser(prog="python -m dcomm.bench.worker", description="One rank of a benchmark.")
    for name in ("--world-size", "--parent"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--ranks", type=_numbers, required=True, help="those of this process, by commas")
    parser.add_argument("--pipes", type=_numbers, required=True, help="for each of them: orders, answers")
    args = parser.parse_args()
    die_with_parent(args.parent)
    os.dup2(2, 1)  # the parent's standard output holds its report, whatever a library prints
    if len(args.ranks) == 1:
        comms = [dcomm.init(rank=args.ranks[0], world_size=args.world_size, timeout=60)]
    else:
        comms = dcomm.init_threads(args.world_size)
    ends = zip(comms, args.pipes[::2], args.pipes[1::2], strict=True)
    threads = [threading.Thread(target=_serve, args=(make_worker, *end)) for end in list(ends)[1:]]
    for thread in threads:
        thread.start()
    _serve(make_worker, comms[0], args.pipes[0], args.pipes[1])
    for thread in threads:
        thread.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
