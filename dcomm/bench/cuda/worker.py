"""A child process of the bench on a GPU: carries out the orders of :mod:`dcomm.bench.cuda.groups`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import dcomm
from dcomm.bench import worker
from dcomm.bench.buffers import Data
from dcomm.bench.cuda.case import CudaCase
from dcomm.bench.cuda.engine import Device, Engine, num_inputs
from dcomm.bench.cuda.rivals import SIDES, is_one_process
from dcomm.bench.cuda.sides import Side
from dcomm.bench.cuda.torch_engine import TorchDevice
from dcomm.bench.dtypes import storage_dtype
from dcomm.bench.worker import NUM_SALTS


class CudaWorker:
    """What one child remembers between orders."""

    def __init__(self, make_device: Callable[[str], Device], comm: dcomm.Communicator) -> None:
        """`make_device`: by the name of the side that is opened."""
        self._make_device, self._comm = make_device, comm
        self._side: Side
        self._engine: Engine
        self._hold = False
        self._salt = 0
        # For tests of the checks, as in dcomm.bench.worker: which case's last result gets a wrong bit, from 1.
        self._corrupt = int(os.environ.get("DCOMM_BENCH_CORRUPT", "0")) * (comm.rank == comm.world_size - 1)

    def carry_out(self, do: str, say: Any, **order: Any) -> dict[str, Any]:
        """The answer to one order: open, bandwidth, measure, close."""
        if do == "open":
            return self._open(**order)
        if do == "bandwidth":
            found = self._engine.device.copy_bandwidth(order["nbytes"])
            self._engine.device.release()
            return {"bytes_per_second": found}
        if do == "close":
            self._side.close()
            return {}
        return self.measure(CudaCase(**order))

    def _open(self, side: str, world_size: int, store: str) -> dict[str, Any]:
        self._engine = Engine(self._make_device(side))
        self._side = SIDES[side](self._comm, self._engine, world_size, store)
        # Where the ranks are processes, one that is held back keeps the GPU from the others.
        self._hold = is_one_process(side)
        device = self._engine.device
        return {"facts": device.facts(), "versions": {**device.versions(), **self._side.versions}}

    def measure(self, case: CudaCase) -> dict[str, Any]:
        """Time batches of calls, and compare every element that the last one has left."""
        answer = self._measure(case)
        self._engine.device.release()
        return answer

    def _measure(self, case: CudaCase) -> dict[str, Any]:
        """In place every batch starts from the inputs; out of place the results are cleared before the first one."""
        side, device = self._side, self._engine.device
        self._salt = (self._salt + 1) % NUM_SALTS  # what is left of an earlier case is wrong now
        data = [Data(case, rank, side.world_size) for rank in side.ranks]
        pairs = side.pairs(case)
        counts = [num_inputs(case, rank, side.world_size) for rank in side.ranks]
        inputs = [device.empty(n, case.dtype) if case.in_place else x for n, (x, _) in zip(counts, pairs, strict=True)]
        for one, x, count in zip(data, inputs, counts, strict=True):
            host = np.empty(count, storage_dtype(case.dtype))
            one.fill(host, self._salt)
            device.write(x, host)

        def refill() -> None:
            for (x, _), source in zip(pairs, inputs, strict=True):
                if x is not source:
                    device.copy(x, source)

        def before_each() -> None:
            refill()
            device.synchronize()
            side.meet()

        enqueue = side.call(case, pairs)
        refill()
        for _ in range(max(1, case.warm)):  # the first one may allocate, compile and meet
            enqueue()
        device.synchronize()
        hold_seconds = 0.0
        if case.timing == "graph":
            batch = device.capture(enqueue, case.calls)
        else:
            batch = partial(_repeat, enqueue, case.calls)
            if self._hold:
                hold_seconds = 2 * device.host_seconds(enqueue) * case.calls + 0.001
        if not case.in_place:
            for _, out in pairs:
                device.clear(out)
        us = device.times_us(batch, case.batches, before_each, hold_seconds)
        num_wrong = sum(self._num_wrong(case, one, out) for one, (_, out) in zip(data, pairs, strict=True))
        return {"us": [value / case.calls for value in us], "num_wrong": num_wrong}

    def _num_wrong(self, case: CudaCase, data: Data, out: Any) -> int:
        if not case.check:
            return 0
        found = self._engine.device.read(out)
        if self._corrupts() and found.size:
            found = found.copy()
            found[found.size // 2 :].view(np.uint8)[0] ^= 1
        return data.num_wrong(case, found, self._salt)

    def _corrupts(self) -> bool:
        self._corrupt -= 1
        return self._corrupt == 0


def _repeat(enqueue: Callable[[], Any], calls: int) -> None:
    for _ in range(calls):
        enqueue()


def main(make_device: Callable[[str], Device] = lambda side: TorchDevice()) -> int:
    """Be one child; :class:`dcomm.bench.cuda.groups.Groups` starts it."""
    return worker.main(partial(CudaWorker, make_device))


if __name__ == "__main__":
    sys.exit(main())
