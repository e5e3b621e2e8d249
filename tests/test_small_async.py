"""Small asynchronous operations: run by the caller where all ranks have entered them, else by the progress thread."""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np
import pytest
from rank_threads import run_threads

import dcomm
from dcomm.work import Work


def test_patience_ends_before_a_late_rank_comes() -> None:
    returned = threading.Event()

    def body(comm: dcomm.Communicator) -> tuple[bool, float]:
        comm._core.set_patience(5_000_000)  # nanoseconds
        x = np.full(4, comm.rank + 1.0, np.float32)
        if comm.rank == 1:
            assert returned.wait(10)
        work = comm.all_reduce(x, async_op=True)
        was_done = work.done()
        returned.set()
        work.wait()
        comm.all_reduce(x)  # in order behind it
        return was_done, float(x[0])

    (was_done, first), (_, second) = run_threads(2, body)
    assert not was_done
    assert first == second == 6.0  # 1 + 2, then 3 + 3


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="ranks that share a CPU do not wait")
def test_with_patience_the_caller_runs_what_all_have_entered() -> None:
    def body(comm: dcomm.Communicator) -> list[bool]:
        comm._core.set_patience(10_000_000_000)
        done = []
        for number in range(5):
            x = np.full(4, number + comm.rank, np.float32)
            work = comm.all_reduce(x, async_op=True)
            done.append(work.done())
            assert work.wait() is x
            assert x[0] == 2 * number + 1
        return done

    assert run_threads(2, body) == [[True] * 5] * 2


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="ranks that share a CPU do not wait")
def test_the_short_way_is_done_where_all_have_entered_and_queued_where_not() -> None:
    returned = threading.Event()

    def body(comm: dcomm.Communicator) -> tuple[Any, ...]:
        comm._core.set_patience(10_000_000_000)
        x = np.full(4, comm.rank + 1.0, np.float32)
        at_once = comm._start_plain(x, "sum")
        first = float(x[0])
        refused = comm._start_plain(x[::2], "sum"), comm._start_plain("text", "sum")
        comm._core.set_patience(1_000_000)
        if comm.rank == 1:
            assert returned.wait(10)
        queued = comm._start_plain(x, "sum")
        returned.set()
        if isinstance(queued, Work):
            assert queued.wait() is x
        return at_once, first, *refused, isinstance(queued, Work), float(x[0])

    late, early = run_threads(2, body)
    assert late == (True, 3.0, False, False, True, 6.0)
    assert early[:4] == (True, 3.0, False, False)  # the last one: as its peer's progress thread comes
    assert early[5] == 6.0


def test_the_short_way_tells_errors_through_its_handle() -> None:
    def body(comm: dcomm.Communicator) -> str:
        comm._core.set_patience(1_000_000_000)
        started = comm._start_plain(np.zeros(4 + comm.rank, np.float32), "sum")
        assert isinstance(started, Work)
        with pytest.raises(dcomm.MismatchError) as error:
            started.wait()
        return str(error.value)

    for text in run_threads(2, body):
        assert "count" in text
