"""Errors of init, of the environment and of a communicator's life; test_bad_arguments.py has those of its methods."""

from __future__ import annotations

import copy
import pickle
import re
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from rank_threads import outcomes, thread_outcomes

import dcomm


def zeros(*shape: int) -> Any:
    return np.zeros(shape or 8, np.float32)


Comm = dcomm.Communicator


@pytest.mark.parametrize(
    ("kwargs", "kind", "text"),
    [
        ({"rank": 0}, ValueError, "rank and world_size go together"),
        ({"world_size": 2}, ValueError, "rank and world_size go together"),
        ({"rank": 2, "world_size": 2}, ValueError, "rank=2, world_size=2: expected 0 <= rank < world_size"),
        ({"rank": -1, "world_size": 2}, ValueError, "rank=-1, world_size=2: expected 0 <= rank < world_size"),
        ({"rank": 0, "world_size": 0}, ValueError, "rank=0, world_size=0: expected 0 <= rank < world_size"),
        ({"rank": "0", "world_size": 2}, TypeError, "rank='0', world_size=2: expected whole numbers"),
        ({"deterministic": 1}, TypeError, "deterministic=1: expected True, False, or None for DCOMM_DETERMINISTIC"),
        ({"rank": 0, "world_size": 1, "timeout": 0}, ValueError, "timeout=0: expected a positive number of seconds"),
    ],
)
def test_bad_init(kwargs: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        dcomm.init(**kwargs)


@pytest.mark.parametrize("world_size", [0, -1, "2", 1.0])
def test_bad_init_threads(world_size: Any) -> None:
    with pytest.raises(
        ValueError, match=re.escape(f"world_size={world_size!r}: expected a whole number of at least 1")
    ):
        dcomm.init_threads(world_size)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        (
            "DCOMM_ALGO",
            "star",
            "DCOMM_ALGO='star': expected 'auto', 'ring', 'two_shot', 'one_shot', 'tree' or 'direct'",
        ),
        ("DCOMM_DETERMINISTIC", "yes", "DCOMM_DETERMINISTIC='yes': expected '0' or '1'; unset it for the default"),
        ("DCOMM_TIMEOUT_S", "0", "DCOMM_TIMEOUT_S='0': expected a number from"),
        ("DCOMM_TIMEOUT_S", "nan", "DCOMM_TIMEOUT_S='nan': expected a number from"),
        ("DCOMM_TIMEOUT_S", "5 s", "DCOMM_TIMEOUT_S='5 s': expected a number from"),
        ("DCOMM_WINDOW_BYTES", "12", "DCOMM_WINDOW_BYTES='12': expected a number from 65536"),
        ("DCOMM_WINDOW_BYTES", "8M", "DCOMM_WINDOW_BYTES='8M': expected a number from"),
        ("DCOMM_ISA", "sse9", "DCOMM_ISA: instruction set 'sse9' is unknown: expected one of scalar, avx2, avx512"),
    ],
)
def test_bad_variable(name: str, value: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=re.escape(text)):
        dcomm.init_threads(2)


def test_the_variables_are_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCOMM_TIMEOUT_S", "0.2")
    monkeypatch.setenv("DCOMM_ALGO", "ring")
    comms = dcomm.init_threads(2)
    start = time.monotonic()
    with pytest.raises(dcomm.CollectiveTimeoutError, match="algo=ring"):
        comms[0].all_reduce(zeros())
    assert time.monotonic() - start < 1.2


def test_closed_communicator() -> None:
    comm = dcomm.init_threads(1)[0]
    comm.close()
    comm.close()
    assert comm.closed
    assert "closed" in repr(comm)
    calls: list[Callable[[], Any]] = [
        lambda: comm.all_reduce(zeros()),
        lambda: comm.all_reduce(zeros(), async_op=True),
        lambda: comm.reduce_scatter(zeros()),
        lambda: comm.all_gather(zeros()),
        lambda: comm.all_to_all(zeros()),
        lambda: comm.broadcast(zeros(), async_op=True),
        lambda: comm.reduce(zeros()),
        lambda: comm.gather(zeros()),
        lambda: comm.scatter(zeros()),
        comm.barrier,
    ]
    for call in calls:
        with pytest.raises(dcomm.AbortedError) as caught:
            call()
        text = "this communicator is closed; make a new one with dcomm.init()"
        assert str(caught.value) == f"{text} (see docs/errors.md#abortederror)"


def test_two_threads_in_one_communicator() -> None:
    comms = dcomm.init_threads(2)
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            comms[0].barrier(timeout=20)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    deadline = time.monotonic() + 10
    while comms[0].stats()["num_operations"] == 0 and time.monotonic() < deadline:
        time.sleep(0.001)
    for call in (comms[0].barrier, lambda: comms[0].all_reduce(zeros()), lambda: comms[0].barrier(async_op=True)):
        with pytest.raises(dcomm.ConcurrentUseError, match="another thread is using this communicator; give each"):
            call()
    comms[1].barrier()  # the first thread's call goes on unharmed
    thread.join(20)
    assert not thread.is_alive()
    assert errors == []


def test_every_later_call_raises_the_first_reason() -> None:
    def body(comm: Comm) -> list[str]:
        texts = []
        for call in (lambda: comm.all_reduce(zeros(3 + comm.rank)), comm.barrier, lambda: comm.all_reduce(zeros())):
            with pytest.raises(dcomm.MismatchError) as caught:
                call()
            texts.append(str(caught.value))
        with pytest.raises(dcomm.MismatchError):
            comm.all_reduce(zeros(), async_op=True)
        return texts

    for texts in thread_outcomes(2, body):
        assert isinstance(texts, list)
        assert "count=3" in texts[0]
        assert texts == [texts[0]] * 3


def test_abort_reaches_every_rank() -> None:
    comms = dcomm.init_threads(4)

    def body(comm: Comm) -> None:
        if comm.rank == 3:
            time.sleep(0.05)
            comm.abort()
        comm.barrier()

    results = outcomes(comms, body, timeout=10)
    assert [type(result) for result in results] == [dcomm.AbortedError] * 4
    assert all("rank 3" in str(result) for result in results)


NAMING = [dcomm.PeerLostError, dcomm.CollectiveTimeoutError]
Naming = dcomm.PeerLostError | dcomm.CollectiveTimeoutError


def attributes(error: Any) -> tuple[Any, ...]:
    assert isinstance(error, Naming)
    assert error.rank == (error.ranks[0] if error.ranks else None)
    assert error.pid == (error.pids[0] if error.pids else None)
    return error.ranks, error.pids, error.last_seq


@pytest.mark.parametrize("kind", NAMING)
def test_ranks_of_an_error_outlive_pickling(kind: Any) -> None:
    whole = kind("rank 1 (pid 71) died after completing #41", ranks=[1, 3], pids=[71, None], last_seq=41)
    assert attributes(whole) == ((1, 3), (71, None), 41)
    assert attributes(kind("text")) == ((), (), None)
    assert attributes(kind()) == ((), (), None)
    assert attributes(kind("text", ranks=[2, 0])) == ((2, 0), (None, None), None)
    for again in (pickle.loads(pickle.dumps(whole)), copy.copy(whole), copy.deepcopy(whole)):
        assert type(again) is kind
        assert str(again) == str(whole)
        assert attributes(again) == attributes(whole)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_timeout_has_the_rank_that_did_not_answer(is_async: bool) -> None:
    comms = dcomm.init_threads(3)

    def body(comm: Comm) -> list[Any]:
        comm.barrier()
        comm.barrier()
        if comm.rank == 2:
            return []
        errors = []
        for _ in range(2):  # the second time it is the first reason again
            with pytest.raises(dcomm.CollectiveTimeoutError) as caught:
                work = comm.all_reduce(zeros(), timeout=0.3, async_op=is_async)
                if is_async:
                    work.wait()
            errors.append(attributes(caught.value))
        return errors

    assert outcomes(comms, body, timeout=10) == [[((2,), (None,), 2)] * 2] * 2 + [[]]
    with pytest.raises(dcomm.CollectiveTimeoutError, match="waited for this rank until its timeout") as caught:
        comms[2].barrier()
    assert attributes(caught.value) == ((2,), (None,), 2)


def test_whoever_could_have_sent_is_not_blamed() -> None:
    comms = dcomm.init_threads(2)
    with pytest.raises(dcomm.CollectiveTimeoutError, match="no rank sent") as caught:
        comms[0].recv_any(zeros(), timeout=0.2)
    assert attributes(caught.value) == ((), (), None)


def test_a_lost_rank_is_in_the_error_of_each_kind_of_call() -> None:
    comms = dcomm.init_threads(2)
    for result in outcomes(comms, lambda comm: comm.barrier()):
        assert result is None
    comms[1].close()
    calls: list[Callable[[], Any]] = [
        lambda: comms[0].recv(zeros(), 1),
        lambda: comms[0].barrier(async_op=True).wait(),
        lambda: comms[0].all_reduce(zeros()),
        lambda: comms[0].split(0),
    ]
    for call in calls:
        with pytest.raises(dcomm.PeerLostError, match="rank 1 closed its communicator after completing #1;") as caught:
            call()
        assert attributes(caught.value) == ((1,), (None,), 1)
