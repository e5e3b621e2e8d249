"""Two ranks on one GPU, as threads: all_reduce in memory that the driver gave, so neither torch nor CuPy is imported.

(Importing torch takes longer than all other checks together.) No GPU has run this file yet.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

from dcomm.doctor.cuda_driver import Driver, DriverError
from dcomm.doctor.finding import Finding, fail, ok

NAME = "two_gpu_ranks"
_COUNT = 4096
_CALLS = 20
_TIMEOUT_NS = 2_000_000_000
_FIX = "read the lines above: driver and cuda_part first; if they are ok, report it"
_FLOAT32, _SUM, _DEFAULT_STREAM = "float32", "sum", 0


def _all_reduce(comm: Any, address: int) -> None:
    from dcomm.arrays import DTYPE_CODES
    from dcomm.operation import ALL_REDUCE
    from dcomm.reduce_ops import ALGO_CODES, OP_NAMES

    dtype, algo = DTYPE_CODES[_FLOAT32], ALGO_CODES["auto"]
    call = (ALL_REDUCE, 0, address, address, _COUNT, dtype, dtype, OP_NAMES[_SUM], algo, 0, 0, _DEFAULT_STREAM)
    comm._core.collective_cuda(*call, _TIMEOUT_NS, False, False)
    comm._core.synchronize_cuda(_TIMEOUT_NS)


def _on_threads(bodies: list[Callable[[], None]]) -> None:
    """Run them side by side; raises the first error."""
    errors: list[Exception] = []

    def run(body: Callable[[], None]) -> None:
        try:
            body()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(body,), daemon=True) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()  # the collectives have deadlines, and so has this process
    if errors:
        raise errors[0]


def _time_us(comms: list[Any], addresses: list[int]) -> list[float]:
    times: list[float] = []

    def rank(index: int) -> None:
        for _ in range(_CALLS):
            start = time.perf_counter_ns()
            _all_reduce(comms[index], addresses[index])
            if index == 0:
                times.append((time.perf_counter_ns() - start) / 1e3)

    _on_threads([lambda index=index: rank(index) for index in range(len(comms))])  # type: ignore[misc]
    return times


def two_gpu_ranks(driver: Driver) -> Finding:
    """Every element of one sum checked, then some calls timed on the host, synchronization included."""
    import numpy

    import dcomm

    inputs = [numpy.arange(_COUNT, dtype=numpy.float32) * (rank + 1) for rank in range(2)]
    expected, nbytes = (inputs[0] + inputs[1]).tobytes(), 4 * _COUNT
    try:
        comms = dcomm.init_threads(2)
        with driver.context(0) as context, context.memory(nbytes) as one, context.memory(nbytes) as two:
            addresses = [one, two]
            for address, values in zip(addresses, inputs, strict=True):
                context.write(address, values.tobytes())
            _on_threads(
                [lambda pair=pair: _all_reduce(*pair) for pair in zip(comms, addresses, strict=True)]  # type: ignore[misc]
            )
            wrong = [rank for rank in range(2) if context.read(addresses[rank], nbytes) != expected]
            us = 0.0 if wrong else statistics.median(_time_us(comms, addresses))
            for comm in comms:
                comm.close()
    except (DriverError, dcomm.DcommError, ValueError) as error:
        return fail(NAME, f"all_reduce of 2 ranks on GPU 0: {error}", _FIX, world_size=2)
    if wrong:
        return fail(NAME, f"wrong data on rank {' and '.join(map(str, wrong))} of 2 on GPU 0", _FIX, world_size=2)
    found = f"all_reduce of 2 ranks on GPU 0: every element right; {nbytes >> 10} KiB in {us:.0f} us, synchronized"
    return ok(NAME, found, world_size=2, p50_us={str(nbytes): us})
