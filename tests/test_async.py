"""Asynchronous operations: order, handles, dropped references, close, abort, and leaving with work pending."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_threads import dcomm_threads
from rank_processes import WORKERS, process_values, run_processes
from rank_threads import outcomes, run_threads, thread_outcomes, values

import dcomm

SCRIPT = WORKERS / "async_ranks.py"


def ones(count: int = 1000) -> Any:
    return np.ones(count, np.float32)


def test_results_and_handle() -> None:
    def body(comm: dcomm.Communicator) -> None:
        x, out = ones(), np.zeros(1000, np.float32)
        work = comm.all_reduce(x, out=out, async_op=True)
        assert isinstance(work, dcomm.Work)
        assert work.wait() is out
        assert work.wait() is out  # any number of times
        assert work.result() is out
        assert work.done()
        assert work.exception() is None
        assert (out == comm.world_size).all()
        assert (x == 1).all()
        y = np.full(5, comm.rank, np.int64)
        assert comm.broadcast(y, 1, async_op=True).wait() is y
        assert y.tolist() == [1] * 5
        assert comm.barrier(async_op=True).wait(timeout=30) is None

    run_threads(3, body)


def test_strictly_in_call_order() -> None:
    """Each step uses the result of the one before, without a wait in between; synchronous calls mixed in."""

    def body(comm: dcomm.Communicator) -> float:
        x = ones(3000)
        expected = 1.0
        works = []
        for step in range(60):
            works.append(
                comm.all_reduce(x, ("sum", "avg")[step % 2], algo=("ring", "two_shot")[step // 2 % 2], async_op=True)
            )
            expected *= (2.0, 1.0)[step % 2]
            if step % 7 == 6:
                comm.broadcast(x, step % 2)  # waits for all before it
                assert all(work.done() for work in works)
                assert (x == expected).all()
            if step % 20 == 19:
                comm.barrier()
                x[...] = expected = 1.0
        works[-1].wait()
        return float(x[0])

    run_threads(2, body)


def test_many_queued_and_waited_for_in_any_order() -> None:
    def body(comm: dcomm.Communicator) -> None:
        arrays = [np.full(257, float(i), np.float64) for i in range(1000)]
        works = [comm.all_reduce(x, async_op=True) for x in arrays]
        order = np.random.default_rng(3).permutation(1000)  # waiting needs no agreement
        for i in order[:50] if comm.rank else order:
            assert (works[i].wait() == i * comm.world_size).all()
        works[-1].wait()
        assert all(work.done() for work in works)
        assert all((x == i * comm.world_size).all() for i, x in enumerate(arrays))

    run_threads(2, body)


def test_wait_with_a_limit_leaves_the_operation_running() -> None:
    comms = dcomm.init_threads(2)
    x = [ones(), ones()]
    work = comms[0].all_reduce(x[0], async_op=True)
    for limit in (0.05, 0.2):
        start = time.monotonic()
        with pytest.raises(dcomm.CollectiveTimeoutError, match=f"still running after {limit} s; wait again, or abort"):
            work.wait(timeout=limit)
        assert limit * 0.9 <= time.monotonic() - start < limit + 1
    assert not work.done()
    assert work.exception() is None
    for bad in (0, -1.0):
        with pytest.raises(ValueError, match="expected a positive number of seconds"):
            work.wait(timeout=bad)
    comms[1].all_reduce(x[1])
    assert (work.wait() == 2).all()


def test_the_operations_own_timeout_and_error() -> None:
    comms = dcomm.init_threads(2)
    works = [comms[0].all_reduce(ones(), async_op=True, timeout=0.2) for _ in range(3)]
    with pytest.raises(dcomm.CollectiveTimeoutError, match="no answer from rank 1, which is alive"):
        works[0].wait(timeout=20)
    for work in works:  # those behind it fail as well, for the same reason
        with pytest.raises(dcomm.CollectiveTimeoutError, match="no answer from rank 1"):
            work.wait(timeout=20)
        assert work.done()
        assert isinstance(work.exception(), dcomm.CollectiveTimeoutError)
    with pytest.raises(dcomm.CollectiveTimeoutError, match="no answer from rank 1"):
        comms[0].barrier()


def test_dropped_handles_keep_their_arrays() -> None:
    comms = dcomm.init_threads(2)
    x = np.ones(1000, np.float32).view(np.ndarray)
    base = weakref.ref(x)
    comms[0].all_reduce(x, async_op=True)
    del x
    gc.collect()
    assert base() is not None  # the operation still writes to it
    y = ones()
    comms[1].all_reduce(y)
    for comm in comms:
        comm.close()
    gc.collect()
    assert base() is None
    assert (y == 2).all()


def test_dropped_handles_of_strided_arrays_are_copied_out() -> None:
    def body(comm: dcomm.Communicator) -> None:
        x = np.ones((6, 50), np.float32)
        y = np.full((4, 4), float(comm.rank))
        z = ones(20)
        comm.all_reduce(x[:, ::2], async_op=True)
        comm.broadcast(y.T, 1, async_op=True)
        comm.barrier()
        assert (x[:, ::2] == 2).all()
        assert (x[:, 1::2] == 1).all()
        assert (y == 1).all()
        work = comm.all_reduce(z[::2], async_op=True)
        while not work.done():
            time.sleep(0.001)
        assert (z[::2] == 2).all()
        comm.all_reduce(z[1::2], async_op=True)
        comm.close()
        assert (z == 2).all()

    run_threads(2, body)


def test_close_drains_the_queue() -> None:
    def body(comm: dcomm.Communicator) -> None:
        arrays = [ones(5000) for _ in range(100)]
        works = [comm.all_reduce(x, async_op=True) for x in arrays]
        comm.close()
        assert all(work.done() and work.exception() is None for work in works)
        assert all((x == 2).all() for x in arrays)

    run_threads(2, body)


def test_leaving_with_an_exception_does_not_wait() -> None:
    comms = dcomm.init_threads(2)
    start = time.monotonic()
    with pytest.raises(KeyError), comms[0]:
        work = comms[0].all_reduce(ones(), async_op=True)
        raise KeyError("on purpose")
    assert time.monotonic() - start < 2
    with pytest.raises(dcomm.AbortedError):
        work.wait(timeout=5)
    with pytest.raises(dcomm.DcommError):
        # Rank 0 may have sent its part before it left: then this operation is complete and right. The next is neither.
        assert comms[1].all_reduce(ones(), timeout=20)[0] == 2
        comms[1].all_reduce(ones(), timeout=20)


def test_abort_fails_pending_operations_on_all_ranks() -> None:
    comms = dcomm.init_threads(3)

    def body(comm: dcomm.Communicator) -> list[BaseException | None]:
        if comm.rank == 2:
            time.sleep(0.2)
            comm.abort()
            return []
        works = [comm.all_reduce(ones(), async_op=True) for _ in range(10)]
        start = time.monotonic()
        for work in works:
            with pytest.raises(dcomm.AbortedError, match=r"rank 2 aborted|was aborted"):
                work.wait(timeout=20)
        assert time.monotonic() - start < 2
        return [work.exception() for work in works]

    for errors in outcomes(comms, body, timeout=30)[:2]:
        assert isinstance(errors, list), errors
        assert all(isinstance(error, dcomm.AbortedError) for error in errors)


def test_abort_of_ones_own_pending_operations() -> None:
    comms = dcomm.init_threads(2)
    works = [comms[0].all_reduce(ones(), async_op=True) for _ in range(3)]
    threading.Timer(0.1, comms[0].abort).start()
    for work in works:
        with pytest.raises(dcomm.AbortedError):
            work.wait(timeout=20)


def test_done_and_wait_from_several_threads() -> None:
    comms = dcomm.init_threads(2)
    work = comms[0].all_reduce(ones(), async_op=True)
    seen: list[bool] = []
    watchers = [threading.Thread(target=lambda: (work.wait(timeout=20), seen.append(work.done()))) for _ in range(4)]
    for watcher in watchers:
        watcher.start()
    comms[1].all_reduce(ones())
    for watcher in watchers:
        watcher.join(20)
    assert seen == [True] * 4


def test_progress_threads_end_with_their_communicator() -> None:
    def names() -> list[str]:
        return list(dcomm_threads().values())

    gc.collect()
    before = len(names())
    comms = dcomm.init_threads(2)
    assert len(names()) == before  # none before the first asynchronous operation
    values(comms, lambda comm: comm.all_reduce(ones(), async_op=True).wait())
    assert names().count("dcomm-progress") >= 2
    for comm in comms:
        comm.close()
    assert len(names()) == before


def test_one_rank_fails_alone() -> None:
    """An argument error is raised by the call, not by wait(); the peer is not disturbed."""

    def body(comm: dcomm.Communicator) -> float:
        if comm.rank == 0:
            with pytest.raises(ValueError, match="op='mean'"):
                comm.all_reduce(ones(), "mean", async_op=True)
        return float(comm.all_reduce(ones(), async_op=True).wait(timeout=20)[0])

    assert thread_outcomes(2, body) == [2.0, 2.0]


def test_dropping_everything_in_processes() -> None:
    assert process_values(2, SCRIPT, "drop_everything") == [40_000.0, 40_000.0]


def test_the_call_returns_at_once_and_python_goes_on() -> None:
    for value in process_values(2, SCRIPT, "main_thread_is_free"):
        print(f"called in {1e3 * value['called_s']:.2f} ms, ended after {1e3 * value['ended_s']:.0f} ms")
        assert value["called_s"] < 0.1
        assert value["ended_s"] >= 0.29
        assert value["loops"] > 30


@pytest.mark.parametrize(
    "leave", ["globals", *(pytest.param(how, marks=pytest.mark.long) for how in ("return", "exception", "with"))]
)
def test_exit_with_pending_operations_does_not_hang(leave: str) -> None:
    for _ in range(5):
        results = run_processes(2, SCRIPT, "exit_with_pending_operations", {"leave": leave}, timeout=30)
        assert results[1].returncode == 0, results[1]
        assert results[0].returncode == (1 if leave in ("exception", "with") else 0), results[0]
        if leave in ("exception", "with"):
            assert "KeyError: 'on purpose'" in results[0].err
        for result in results:
            assert "terminate called" not in result.err
            assert "Fatal" not in result.err


def test_await_gives_the_result_and_leaves_the_loop_free() -> None:
    comms = dcomm.init_threads(2)
    x = ones()
    ticks = 0

    async def other_work(stop: asyncio.Event) -> None:
        nonlocal ticks
        while not stop.is_set():
            ticks += 1
            await asyncio.sleep(0.005)

    async def main() -> None:
        stop = asyncio.Event()
        other = asyncio.create_task(other_work(stop))
        work = comms[0].all_reduce(x, async_op=True)
        asyncio.get_running_loop().call_later(0.2, lambda: comms[1].all_reduce(ones(), async_op=True))
        first, second = await asyncio.gather(wait_for(work), wait_for(work))  # two tasks, one handle
        assert first is x
        assert second is x
        assert await work is x  # once more, when it is done
        stop.set()
        await other

    async def wait_for(work: dcomm.Work) -> Any:
        return await work

    asyncio.run(main())
    assert (x == 2).all()
    assert ticks > 10
    for comm in comms:
        comm.close()


def test_await_of_strided_arrays_and_errors() -> None:
    comms = dcomm.init_threads(2)
    x = np.zeros((4, 4))

    async def main() -> None:
        works = [comm.all_gather(np.full((2, 4), comm.rank), async_op=True) for comm in comms]
        assert [result.tolist() for result in await asyncio.gather(*works)] == [[[0] * 4] * 2 + [[1] * 4] * 2] * 2
        first = comms[0].broadcast(x[:, ::2], 1, async_op=True)
        second = comms[1].broadcast(np.ones((4, 2)), 1, async_op=True)
        await first
        await second
        with pytest.raises(dcomm.CollectiveTimeoutError, match="no answer from rank 1, which is alive"):
            await comms[0].barrier(async_op=True, timeout=0.1)

    asyncio.run(main())
    assert x.tolist() == [[1.0, 0.0, 1.0, 0.0]] * 4


def test_a_cancelled_await_leaves_the_operation_running() -> None:
    comms = dcomm.init_threads(2)
    x = ones()

    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    async def main() -> None:
        work = comms[0].all_reduce(x, async_op=True)
        before = descriptors()
        for _ in range(5):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(work, 0.02)
        task = asyncio.ensure_future(work)
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert descriptors() <= before + 1  # the event of the handle itself, no more for each await
        assert not work.done()
        comms[1].all_reduce(ones(), async_op=True)
        assert await work is x

    asyncio.run(main())
    assert (x == 2).all()
