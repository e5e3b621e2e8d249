"""async_op of CUDA arrays on an emulated GPU: streams, lifetimes, failures; ranks are threads, and processes.

Bodies that a real GPU runs too: tests/support/cuda_work_cases.py.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import cuda_cases
import cuda_work_cases
import numpy as np
import pytest
from cuda_cases import Make
from emulated_gpu import EmulatedGpu
from rank_processes import WORKERS, process_values
from rank_threads import values

import dcomm
from dcomm import cuda_work

SCRIPT = WORKERS / "cuda_process_ranks.py"
SMALL = {"DCOMM_CUDA_CHANNELS": "2", "DCOMM_CUDA_SLOT_BYTES": "4096"}


@pytest.fixture
def make(emulated_gpu: EmulatedGpu) -> Iterator[Make]:
    with cuda_cases.maker("cuda:0") as make_some:
        yield make_some


@pytest.mark.parametrize("n", [1, 3])
def test_streams_wait_and_the_host_does_not(emulated_gpu: EmulatedGpu, make: Make, n: int) -> None:
    cuda_work_cases.check_wait(emulated_gpu, make(n))


def test_the_streams_of_asynchronous_ranks_do_not_wait(emulated_gpu: EmulatedGpu, make: Make) -> None:
    cuda_work_cases.check_call_stream_does_not_wait(emulated_gpu, make(3))


def test_two_streams_on_one_communicator(emulated_gpu: EmulatedGpu, make: Make) -> None:
    cuda_work_cases.check_two_streams(emulated_gpu, make(2))


def test_dropped_at_once(emulated_gpu: EmulatedGpu, make: Make) -> None:
    cuda_work_cases.check_dropped_at_once(emulated_gpu, make(2))


@pytest.mark.parametrize("n", [1, 3])
def test_every_collective(emulated_gpu: EmulatedGpu, make: Make, n: int) -> None:
    cuda_work_cases.check_every_collective(emulated_gpu, make(n))


@pytest.mark.parametrize("n", [2, 3])
def test_no_rank_waits_for_another(emulated_gpu: EmulatedGpu, make: Make, n: int) -> None:
    cuda_work_cases.check_no_rank_waits_for_another(emulated_gpu, make(n))


def test_behind_the_stream_at_the_call(emulated_gpu: EmulatedGpu, make: Make) -> None:
    cuda_work_cases.check_behind_the_stream_at_the_call(emulated_gpu, make(3))


def test_asynchronous_and_synchronous_ranks(emulated_gpu: EmulatedGpu, make: Make) -> None:
    cuda_work_cases.check_asynchronous_and_synchronous_ranks(emulated_gpu, make(3))


def test_messages_cross(emulated_gpu: EmulatedGpu, make: Make) -> None:
    cuda_work_cases.check_messages_cross(emulated_gpu, make(2))


def test_in_a_group(emulated_gpu: EmulatedGpu, make: Make) -> None:
    cuda_work_cases.check_group_works(emulated_gpu, make(3))


def test_deadline_and_await(emulated_gpu: EmulatedGpu, make: Make) -> None:
    cuda_work_cases.check_deadline_and_await(emulated_gpu, make(1))


# ---- What is kept, and how long ----


class Kept:
    """An array of the GPU of which only a weak reference is left."""

    def __init__(self, gpu: EmulatedGpu) -> None:
        self.array = gpu.put(np.ones(100, np.float32))
        self.ref = weakref.ref(self.array)

    def drop(self) -> None:
        del self.array

    def is_alive(self) -> bool:
        gc.collect()
        return self.ref() is not None


def test_arrays_are_kept_until_the_event_is_over(emulated_gpu: EmulatedGpu, make: Make) -> None:
    (comm,) = make(1)
    stream = emulated_gpu.stream()
    kept = Kept(emulated_gpu)
    release = emulated_gpu.hold(stream)
    comm.all_reduce(kept.array, stream=stream, async_op=True)
    kept.drop()
    later = emulated_gpu.put(np.ones(4, np.float32))
    comm.all_reduce(later, stream=emulated_gpu.stream(), async_op=True)
    assert kept.is_alive()
    release()
    stream.synchronize()
    comm.all_reduce(later)  # behind the first one on dcomm's stream
    emulated_gpu.streams[0].synchronize()
    comm.all_reduce(later)
    assert not kept.is_alive()  # let go by the next call


def test_a_wait_on_the_call_s_stream_lets_go_at_once(emulated_gpu: EmulatedGpu, make: Make) -> None:
    """Then memory that is freed is in the order of that stream, as after a synchronous call; on another it is not."""
    (comm,) = make(1)
    stream, other = emulated_gpu.stream(), emulated_gpu.stream()
    kept = Kept(emulated_gpu)
    release = emulated_gpu.hold(stream)
    out = emulated_gpu.put(np.zeros(100, np.float32))
    work = comm.all_reduce(kept.array, out=out, stream=stream, async_op=True)
    kept.drop()
    work.wait(stream=other)
    assert kept.is_alive()
    work.wait(stream=stream)
    assert not kept.is_alive()
    release()
    work.synchronize()


@pytest.mark.parametrize("how", ["close", "drop", "error"])
def test_arrays_outlive_their_communicator(emulated_gpu: EmulatedGpu, monkeypatch: Any, how: str) -> None:
    monkeypatch.setattr(cuda_work, "_CLOSE_PATIENCE_NS", 50_000_000)
    comms = dcomm.init_threads(2, device=0)
    stream = emulated_gpu.stream()
    release = emulated_gpu.hold(stream)
    kept = [Kept(emulated_gpu) for _ in comms]
    with dcomm.group(comms):
        for comm in comms:
            comm.all_reduce(kept[comm.rank].array, stream=stream, async_op=True)
    for each in kept:
        each.drop()
    if how == "close":
        comms[0].close()
    elif how == "error":
        with pytest.raises(KeyError), comms[0]:
            raise KeyError
    else:
        del comm
        comms.pop(0)
        gc.collect()
    assert kept[0].is_alive()
    release()
    stream.synchronize()
    comms[-1].close()  # waits for the last kernel
    cuda_work._sweep_orphans()
    assert not kept[0].is_alive()
    for each in comms:
        each.close()


def test_close_waits_for_what_is_running(emulated_gpu: EmulatedGpu, make: Make) -> None:
    def body(comm: dcomm.Communicator) -> None:
        x = emulated_gpu.put(np.ones(5000, np.float32))
        work = comm.all_reduce(x, async_op=True)
        comm.close()
        assert work.done()
        assert (x.host == 2).all()

    values(make(2), body)


def test_events_come_from_a_pool(emulated_gpu: EmulatedGpu, make: Make) -> None:
    """None is made by a call while enough are free; all are given back."""
    num_events = emulated_gpu.library.emulated_num_events
    before = num_events()
    (comm,) = make(1)
    assert num_events() == before + 16
    x = emulated_gpu.put(np.ones(4, np.float32))
    for _ in range(100):
        comm.all_reduce(x, async_op=True).synchronize()
    assert num_events() == before + 16
    works = [comm.all_reduce(x, async_op=True) for _ in range(20)]
    assert num_events() == before + 20
    while works:
        works.pop().synchronize()
    works = [comm.all_reduce(x, async_op=True) for _ in range(20)]
    assert num_events() == before + 20
    comm.close()
    works.clear()
    del comm
    cuda_work._sweep_orphans()


# ---- Failures ----


def test_a_rank_missing_on_the_gpu_is_told_by_the_work(emulated_gpu: EmulatedGpu, make: Make) -> None:
    comms = make(3)
    emulated_gpu.absent(1)

    def body(comm: dcomm.Communicator) -> None:
        x = emulated_gpu.put(np.zeros(100, np.float32))
        work = comm.all_reduce(x, timeout=0.2, async_op=True)
        with pytest.raises(dcomm.CollectiveTimeoutError, match=r"gave up on the GPU, waiting for rank 1"):
            work.synchronize()
        assert work.done()
        assert isinstance(work.exception(), dcomm.CollectiveTimeoutError)
        with pytest.raises(dcomm.CollectiveTimeoutError):
            comm.all_reduce(x, async_op=True)

    values(comms, body)


def test_abort_ends_a_host_that_waits(emulated_gpu: EmulatedGpu, make: Make) -> None:
    comms = make(2)
    emulated_gpu.absent(1)
    have_called = threading.Barrier(2, timeout=30)

    def body(comm: dcomm.Communicator) -> None:
        work = comm.all_reduce(emulated_gpu.put(np.zeros(100, np.float32)), async_op=True)
        have_called.wait()  # who calls after the abort is told at once
        if comm.rank == 1:
            comm.abort()
        with pytest.raises(dcomm.AbortedError):
            work.synchronize(30)

    values(comms, body)


# ---- Ranks that have not called yet ----


def ones(gpu: EmulatedGpu, count: int = 100) -> Any:
    return gpu.put(np.ones(count, np.float32))


def test_a_rank_that_does_not_call_is_named(emulated_gpu: EmulatedGpu, make: Make) -> None:
    comms = make(3)
    works = [comms[rank].all_reduce(ones(emulated_gpu), timeout=0.2, async_op=True) for rank in (0, 2)]
    for wait in (works[0].wait, works[1].synchronize, lambda: comms[1].all_reduce(ones(emulated_gpu))):
        with pytest.raises(
            dcomm.CollectiveTimeoutError, match=r"rank 0 waited 0\.2 s in all_reduce.* for rank 1, which"
        ):
            wait()
    assert all(work.done() for work in works)
    assert all(isinstance(work.exception(), dcomm.CollectiveTimeoutError) for work in works)


def test_a_limit_of_one_wait_leaves_the_operation_to_come(emulated_gpu: EmulatedGpu, make: Make) -> None:
    comms = make(2)
    x = [ones(emulated_gpu), ones(emulated_gpu)]
    work = comms[0].all_reduce(x[0], async_op=True)
    for wait in (work.synchronize, work.wait):
        with pytest.raises(dcomm.CollectiveTimeoutError, match=r"waited 0\.05 s .* for rank 1.*it may still come"):
            wait(0.05)
    assert not work._wait_for(0.01)
    comms[1].all_reduce(x[1], async_op=True).synchronize()
    assert work.synchronize(30) is x[0]
    assert (x[0].host == 2).all()


def test_those_who_do_not_block_have_a_deadline_too(emulated_gpu: EmulatedGpu, make: Make) -> None:
    async def ask(work: Any) -> None:
        await work

    work = make(2)[0].all_reduce(ones(emulated_gpu), timeout=0.1, async_op=True)
    with pytest.raises(dcomm.CollectiveTimeoutError, match="for rank 1"):
        asyncio.run(ask(work))
    work = make(2)[0].all_reduce(ones(emulated_gpu), timeout=0.1, async_op=True)
    assert not work._wait_for(0.01)
    time.sleep(0.1)
    assert work._wait_for(0.01)
    assert isinstance(work.exception(), dcomm.CollectiveTimeoutError)


def test_calls_that_differ_break_the_group(emulated_gpu: EmulatedGpu, make: Make) -> None:
    """Whoever has dropped its Work hears of it at the next call."""
    comms = make(2)
    work = comms[0].all_reduce(ones(emulated_gpu, 100), async_op=True)
    later = comms[0].all_reduce(ones(emulated_gpu, 7), async_op=True)
    text = r"rank 0 called all_reduce\(100 x.*but rank 1 called all_reduce\(99 x"
    for wait in (
        lambda: comms[1].all_reduce(ones(emulated_gpu, 99), async_op=True),
        work.wait,
        later.synchronize,
        lambda: comms[0].all_reduce(ones(emulated_gpu)),
    ):
        with pytest.raises(dcomm.MismatchError, match=text):
            wait()


def test_another_gpu_is_a_mismatch(emulated_gpu: EmulatedGpu) -> None:
    comms = dcomm.init_threads(2)
    work = comms[0].all_reduce(ones(emulated_gpu), async_op=True)
    with pytest.raises(dcomm.MismatchError, match=r"cuda:0.*cuda:1"):
        comms[1].all_reduce(emulated_gpu.array(np.ones(100, np.float32), device=1), async_op=True)
    with pytest.raises(dcomm.MismatchError, match=r"cuda:0.*cuda:1"):
        work.wait()
    for comm in comms:
        comm.close()


def test_a_rank_that_leaves(emulated_gpu: EmulatedGpu, make: Make, monkeypatch: Any) -> None:
    """Before its call: the others are told. After it: the operation needs it no more."""
    monkeypatch.setattr(cuda_work, "_CLOSE_PATIENCE_NS", 50_000_000)
    comms = make(2)
    work = comms[0].all_reduce(ones(emulated_gpu), async_op=True)
    comms[1].close()
    with pytest.raises(dcomm.PeerLostError, match="rank 1 left before all_reduce"):
        work.wait()
    comms = make(2)
    x = ones(emulated_gpu)
    early = comms[1].all_reduce(ones(emulated_gpu), async_op=True)
    comms[1].close()
    assert not early.done()
    comms[0].all_reduce(x, async_op=True).synchronize(30)
    assert early.done()
    assert (x.host == 2).all()
    late = comms[0]
    with pytest.raises(dcomm.PeerLostError, match="rank 1 left before all_reduce"):
        late.all_reduce(x, async_op=True)


def test_abort_ends_what_was_not_launched(emulated_gpu: EmulatedGpu, make: Make) -> None:
    comms = make(2)
    work = comms[0].all_reduce(ones(emulated_gpu), async_op=True)
    threading.Timer(0.05, comms[1].abort).start()
    with pytest.raises(dcomm.AbortedError):
        work.wait()


def test_a_call_that_is_taken_back(emulated_gpu: EmulatedGpu, make: Make) -> None:
    comms = make(2)
    kept = Kept(emulated_gpu)
    work = comms[0].all_reduce(kept.array, out=ones(emulated_gpu), async_op=True)
    kept.drop()
    assert kept.is_alive()
    assert work._withdraw()
    assert not kept.is_alive()
    assert not work._withdraw()
    with pytest.raises(dcomm.AbortedError, match="was taken back by rank 0"):
        work.wait()
    x = [ones(emulated_gpu, 3), ones(emulated_gpu, 3)]
    works = [comms[rank].all_reduce(x[rank], async_op=True) for rank in (0, 1)]  # nothing is left of it
    assert not works[0]._withdraw()
    works[0].synchronize(30)
    assert (x[0].host == 2).all()


def test_dropped_before_the_last_rank_has_called(emulated_gpu: EmulatedGpu, make: Make) -> None:
    comms = make(2)
    kept, out = Kept(emulated_gpu), emulated_gpu.put(np.zeros(100, np.float32))
    comms[0].all_reduce(kept.array, out=out, async_op=True)
    kept.drop()
    assert kept.is_alive()
    comms[1].all_reduce(ones(emulated_gpu), async_op=True).synchronize(30)
    assert (out.host == 2).all()


def test_a_capture_of_one_rank_alone_is_refused(emulated_gpu: EmulatedGpu, make: Make) -> None:
    comms = make(2)
    stream = emulated_gpu.stream()
    x = [ones(emulated_gpu), ones(emulated_gpu)]
    with stream.capture(), pytest.raises(ValueError, match="graph is being captured"):
        comms[0].all_reduce(x[0], stream=stream, async_op=True)
    works = [comm.all_reduce(x[comm.rank], async_op=True) for comm in comms]  # the group is as before
    works[0].synchronize(30)
    work = comms[0].all_reduce(x[0], async_op=True)
    with stream.capture(), pytest.raises(ValueError, match="rank 0's asynchronous call is no part"):
        comms[1].all_reduce(x[1], stream=stream, async_op=True)
    with pytest.raises(ValueError, match="rank 0's asynchronous call is no part"):
        work.wait()
    assert work.done()
    assert isinstance(work.exception(), ValueError)


def test_events_of_calls_that_wait_for_a_rank_come_back(emulated_gpu: EmulatedGpu, make: Make) -> None:
    comms = make(2)
    num_events = emulated_gpu.library.emulated_num_events
    x = [[ones(emulated_gpu) for _ in range(6)] for _ in comms]
    before = num_events()
    for _ in range(20):
        works = [comm.all_reduce(each, async_op=True) for comm in comms for each in x[comm.rank]]
        for work in works:
            work.synchronize(30)
    assert num_events() == before


def test_arguments(emulated_gpu: EmulatedGpu, make: Make) -> None:
    (comm,) = make(1)
    x = emulated_gpu.put(np.ones(4, np.float32))
    work = comm.all_reduce(x, async_op=True)
    with pytest.raises(TypeError, match="expected an integer handle"):
        work.wait(stream="x")
    with pytest.raises(TypeError, match="timeout='x'"):
        work.synchronize("x")
    assert work.wait() is x  # the array's own stream
    host = np.ones(3)
    on_host = comm.all_reduce(host, async_op=True)  # the same names on the CPU
    assert on_host.synchronize() is host
    assert on_host.is_completed()


# ---- CUDA graphs: launches made again, with the arguments of the capture ----


@pytest.mark.long
def test_a_graph_replayed_1000_times(emulated_gpu: EmulatedGpu, make: Make) -> None:
    """Captured by one thread for all ranks, asynchronous operations too; other calls between the replays."""
    n, count = 3, 300
    comms = make(n)
    stream, fork = emulated_gpu.stream(), emulated_gpu.stream()
    hosts = [np.zeros(count, np.float32) for _ in range(2 * n)]
    x, y = ([emulated_gpu.array(host) for host in part] for part in (hosts[:n], hosts[n:]))
    before = emulated_gpu.put(np.ones(4, np.float32))
    with dcomm.group(comms):
        outside = [
            comm.all_reduce(before, out=emulated_gpu.put(np.ones(4, np.float32)), async_op=True) for comm in comms
        ]
    with stream.capture() as graph, dcomm.group(comms):
        works = [comm.all_reduce(x[comm.rank], out=y[comm.rank], stream=stream, async_op=True) for comm in comms]
        for work in works:
            work.wait(stream=fork)
        for comm in comms:
            comm.all_reduce(y[comm.rank], "avg", stream=fork)
        with pytest.raises(ValueError, match="launched outside of it; wait for it before the capture begins"):
            outside[0].wait(stream=stream)
        with pytest.raises(ValueError, match="of which rank 1's stream is no part"):
            for comm in comms:
                comm.all_reduce(x[comm.rank], stream=stream if comm.rank == 0 else emulated_gpu.streams[0])
    for ask in (works[0].synchronize, works[0].done, works[0].exception):
        with pytest.raises(ValueError, match="part of a CUDA graph"):
            ask()
    assert not hosts[n].any()  # nothing has run yet
    inputs = [[np.full(count, turn + rank, np.float32) for rank in range(n)] for turn in range(50)]
    for turn in range(1000):
        for rank in range(n):
            stream.copy(hosts[rank], inputs[turn % 50][rank])
        graph.replay(stream)
        if turn % 3 == 0:
            with dcomm.group(comms):
                between = [comm.all_reduce(y[comm.rank], "avg", stream=stream, async_op=True) for comm in comms]
            between[0].wait(stream=stream)
        if turn % 7 == 0 or turn == 999:
            stream.synchronize()
            for rank in range(n):
                assert (hosts[n + rank] == n * (turn % 50) + 3).all(), turn


# ---- Between processes ----


@pytest.mark.parametrize("world_size", [2, 3])
def test_between_processes(emulated_gpu: EmulatedGpu, world_size: int) -> None:
    args = {"library": str(emulated_gpu.path)}
    assert process_values(world_size, SCRIPT, "works", args, env=SMALL, timeout=120) == ["ok"] * world_size


def test_graphs_of_processes(emulated_gpu: EmulatedGpu) -> None:
    args = {"library": str(emulated_gpu.path), "turns": 200}
    assert process_values(2, SCRIPT, "graphs", args, env=SMALL, timeout=120) == [0] * 2


def test_failures_between_processes(emulated_gpu: EmulatedGpu) -> None:
    args = {"library": str(emulated_gpu.path)}
    values = process_values(3, SCRIPT, "work_fails", args, env=SMALL, timeout=120)
    for rank in (0, 2):
        assert values[rank]["error"] == "CollectiveTimeoutError", values[rank]
        assert "waiting for rank 1" in values[rank]["text"]
