"""Once it is warm nothing of dcomm's CUDA part allocates, frees, loads a kernel or waits for the GPU.

A call that did could wait for a kernel that spins for another rank's launch (docs/gpu.md). Counted is every call of the
CUDA runtime and driver that the host side of the real CUDA part makes, here over a runtime that does nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from counted_gpu import Array, CountedGpu, check_harmless
from rank_processes import WORKERS, process_values
from rank_threads import values

import dcomm

CALLS = 100
WARM_UP = 20
COUNT = 5000

Comms = list[dcomm.Communicator]


@pytest.fixture(params=[1, 3])
def comms(counted_gpu: CountedGpu, request: pytest.FixtureRequest) -> Iterator[Comms]:
    made = dcomm.init_threads(request.param, device=0)
    yield made
    for comm in made:
        comm.close()


def count_calls(gpu: CountedGpu, comms: Comms, call: Callable[[dcomm.Communicator, int], Any]) -> dict[str, int]:
    """What `CALLS` rounds on each rank call, after some that warm up."""

    def rounds(first: int, number: int) -> None:
        values(comms, lambda comm: [call(comm, turn) for turn in range(first, first + number)] and None)

    rounds(0, WARM_UP)
    gpu.take()
    rounds(WARM_UP, CALLS)
    return gpu.take()


def arrays_of(comms: Comms, number: int = 1, **options: Any) -> list[list[Array]]:
    return [[Array(COUNT, **options) for _ in range(number)] for _ in comms]


def test_every_collective(counted_gpu: CountedGpu, comms: Comms) -> None:
    n = len(comms)
    x, y = arrays_of(comms), arrays_of(comms)
    wide = [Array(COUNT * n) for _ in comms]

    def call(comm: dcomm.Communicator, turn: int) -> None:
        mine, other, whole = x[comm.rank][0], y[comm.rank][0], wide[comm.rank]
        comm.all_reduce(mine, stream=turn % 2 * 16)
        comm.all_reduce(mine, "avg", out=other, wire_dtype="bfloat16")
        comm.broadcast(mine, src=turn % n)
        comm.all_gather(mine, out=whole)
        comm.reduce_scatter(whole, out=mine)
        comm.reduce(mine, dst=0)
        comm.barrier(stream=16)

    check_harmless(count_calls(counted_gpu, comms, call), 7 * CALLS)


def test_asynchronous_calls(counted_gpu: CountedGpu, comms: Comms) -> None:
    """Whether waited for or dropped, and with arrays that come and go."""

    def call(comm: dcomm.Communicator, turn: int) -> None:
        work = comm.all_reduce(Array(COUNT), async_op=True)
        if turn % 3 == 0:
            work.wait(stream=32)
        elif turn % 3 == 1:
            work.synchronize()

    check_harmless(count_calls(counted_gpu, comms, call), CALLS)


def test_arrays_of_another_stream(counted_gpu: CountedGpu, comms: Comms) -> None:
    """Whose producer's stream the call's own one waits for first."""
    x = arrays_of(comms, stream=64)

    def call(comm: dcomm.Communicator, turn: int) -> None:
        comm.all_reduce(x[comm.rank][0], stream=32)

    calls = count_calls(counted_gpu, comms, call)
    check_harmless(calls, CALLS)
    assert calls["cudaStreamWaitEvent"] >= 2 * CALLS * len(comms)


def test_arrays_that_all_ranks_reach(counted_gpu: CountedGpu, comms: Comms) -> None:
    x = values(comms, lambda comm: comm.empty(COUNT, device=0))

    def call(comm: dcomm.Communicator, turn: int) -> None:
        comm.all_reduce(x[comm.rank], algo="direct")

    check_harmless(count_calls(counted_gpu, comms, call), CALLS)


def test_groups(counted_gpu: CountedGpu, comms: Comms) -> None:
    x = arrays_of(comms)

    def rounds(number: int) -> None:
        for _ in range(number):
            with dcomm.group(comms):
                for comm in comms:
                    comm.all_reduce(x[comm.rank][0])

    rounds(WARM_UP)
    counted_gpu.take()
    rounds(CALLS)
    check_harmless(counted_gpu.take(), CALLS)


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes(counted_gpu: CountedGpu, world_size: int) -> None:
    args = {"library": str(counted_gpu.path), "warm_up": WARM_UP, "calls": CALLS, "count": COUNT}
    env = {"DCOMM_CUDA_CHANNELS": "2", "DCOMM_CUDA_SLOT_BYTES": "4096"}
    for calls in process_values(world_size, WORKERS / "cuda_count_ranks.py", "count", args, env=env):
        check_harmless(calls, 3 * CALLS)


# ---- That it would be seen ----


def test_allocations_are_seen(counted_gpu: CountedGpu, comms: Comms) -> None:
    """An array that is made and dropped in the loop."""

    def call(comm: dcomm.Communicator, turn: int) -> None:
        comm.all_reduce(comm.empty(8, device=0))

    calls = count_calls(counted_gpu, comms, call)
    assert calls["cudaDeviceSynchronize"] >= CALLS
    assert calls["driver"] >= CALLS
    with pytest.raises(AssertionError, match=r"cudaDeviceSynchronize.*driver"):
        check_harmless(calls, CALLS)


def test_events_are_seen(counted_gpu: CountedGpu) -> None:
    """More operations ahead than ever before: each takes one more event; there are enough the next time."""
    with dcomm.init_threads(1, device=0)[0] as comm:
        x = Array(COUNT)
        for expected in (CALLS - 16, 0):
            counted_gpu.take()
            with counted_gpu.holding():
                works = [comm.all_reduce(x, async_op=True) for _ in range(CALLS)]
            calls = counted_gpu.take()
            assert calls.get("cudaEventCreateWithFlags", 0) == expected, calls
            for work in works:
                work.synchronize()
            works.clear()
            del work


def test_what_making_and_closing_call_is_seen(counted_gpu: CountedGpu) -> None:
    counted_gpu.take()
    with dcomm.init_threads(2, device=0)[0]:
        made = counted_gpu.take()
    assert {"cudaMalloc", "cudaHostAlloc", "cudaEventCreateWithFlags", "cudaStreamSynchronize"} <= set(made)
    assert made["cudaFuncGetAttributes"] > 100  # every kernel is loaded by then
