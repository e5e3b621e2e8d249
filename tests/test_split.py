"""Communicator.split: members, order, independence, lifetimes; threads and processes."""

from __future__ import annotations

import os
import signal
from typing import Any

import numpy as np
import pytest
from rank_processes import WORKERS, Ranks, process_values
from rank_threads import outcomes, run_threads

import dcomm

SCRIPT = WORKERS / "split_ranks.py"


def total(comm: dcomm.Communicator, value: float) -> float:
    return float(comm.all_reduce(np.full(3000, value), timeout=30)[-1])


def dcomm_files() -> list[str]:
    return [name for name in os.listdir("/dev/shm") if "dcomm" in name]


def test_threads_by_parity_with_reversed_keys() -> None:
    def body(comm: dcomm.Communicator) -> None:
        n, rank = comm.world_size, comm.rank
        child = comm.split(rank % 2, key=-rank)
        assert isinstance(child, dcomm.Communicator)
        members = [peer for peer in reversed(range(n)) if peer % 2 == rank % 2]
        assert (members[child.rank], child.world_size) == (rank, len(members))
        for step in range(30):
            assert total(child, rank + step) == sum(members) + step * len(members)
            assert total(comm, 1) == n
        nothing = comm.split(None if rank == 0 else -5, 0)
        assert (nothing is None) == (rank == 0)
        if nothing is not None:
            assert (nothing.rank, nothing.world_size) == (rank - 1, n - 1)
            assert total(nothing, 1) == n - 1
        assert comm.split(None) is None
        comm.close()
        assert total(child, 2) == 2 * len(members)
        pair = child.split(0)
        assert pair is not None
        assert total(pair, 1) == len(members)

    run_threads(5, body)


def test_equal_keys_keep_the_parents_order() -> None:
    def body(comm: dcomm.Communicator) -> int:
        child = comm.split(np.int64(2**62), np.int32(3))
        assert child is not None
        with child:
            return child.rank

    assert run_threads(4, body) == [0, 1, 2, 3]


def test_repeated_splits_of_threads_do_not_mix() -> None:
    def body(comm: dcomm.Communicator) -> None:
        children = [comm.split(comm.rank % 2) for _ in range(20)]
        works = [child.all_reduce(np.full(100, float(i)), async_op=True) for i, child in enumerate(children) if child]
        assert len(works) == 20
        assert all(work.wait(timeout=30)[0] == 2.0 * i for i, work in enumerate(works))

    run_threads(4, body)


def test_abort_of_one_does_not_abort_the_other() -> None:
    def body(comm: dcomm.Communicator) -> None:
        child, other = comm.split(0), comm.split(0)
        assert child is not None
        assert other is not None
        if comm.rank == 0:
            child.abort()
        with pytest.raises(dcomm.AbortedError):
            child.barrier(timeout=20)
        assert total(comm, 1) == 3
        comm.barrier()
        if comm.rank == 1:
            comm.abort()
        with pytest.raises(dcomm.AbortedError):
            comm.barrier(timeout=20)
        assert total(other, 1) == 3

    run_threads(3, body)


def test_one_rank() -> None:
    (comm,) = dcomm.init_threads(1)
    child = comm.split(4)
    assert child is not None
    assert (child.rank, child.world_size, total(child, 3)) == (0, 1, 3)
    assert comm.split(None) is None
    comm.close()
    with pytest.raises(dcomm.AbortedError, match="closed"):
        comm.split(0)


@pytest.mark.parametrize("bad", ["red", 1.0, True, [1], (0, 1)])
def test_wrong_types(bad: Any) -> None:
    (comm,) = dcomm.init_threads(1)
    with pytest.raises(TypeError, match=r"color=.*: expected an integer or None"):
        comm.split(bad)
    with pytest.raises(TypeError, match=r"key=.*: expected an integer"):
        comm.split(0, bad)
    with pytest.raises(TypeError, match="key=None: expected an integer"):
        comm.split(0, None)  # type: ignore[arg-type]
    assert comm.split(0) is not None  # nothing is broken


def test_wrong_values() -> None:
    (comm,) = dcomm.init_threads(1)
    for number in (2**63, -(2**63) - 1):
        with pytest.raises(ValueError, match="of 64 bits"):
            comm.split(number)
        with pytest.raises(ValueError, match="of 64 bits"):
            comm.split(0, number)
    with pytest.raises(ValueError, match="timeout=0"):
        comm.split(0, timeout=0)


def test_who_does_not_come_is_named() -> None:
    comms = dcomm.init_threads(3)

    def body(comm: dcomm.Communicator) -> None:
        if comm.rank != 2:
            comm.split(0, timeout=0.3)

    errors = outcomes(comms, body)
    assert errors[2] is None
    for error in errors[:2]:
        assert isinstance(error, dcomm.CollectiveTimeoutError)
        assert "rank 2" in str(error)


def test_bad_environment_is_raised_by_all_and_breaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def body(comm: dcomm.Communicator) -> None:
        comm.barrier()
        if comm.rank == 0:
            monkeypatch.setenv("DCOMM_WINDOW_BYTES", "many")
        comm.barrier()
        with pytest.raises(ValueError, match=r"DCOMM_WINDOW_BYTES='many'"):
            comm.split(0)
        comm.barrier()
        if comm.rank == 0:
            monkeypatch.delenv("DCOMM_WINDOW_BYTES")
        comm.barrier()
        child = comm.split(0)
        assert child is not None
        assert total(child, 1) == 3

    run_threads(3, body)


def test_processes_by_parity() -> None:
    before = dcomm_files()
    values = process_values(4, SCRIPT, "parity")
    assert [value["members"] for value in values] == [[2, 0], [3, 1], [2, 0], [3, 1]]
    assert dcomm_files() == before


def test_fifty_splits_leave_nothing_behind() -> None:
    before = dcomm_files()
    for value in process_values(4, SCRIPT, "repeated", {"times": 50}):
        (fds, maps, kib), (last_fds, last_maps, last_kib) = value["first"], value["last"]
        assert (last_fds, last_maps) == (fds, maps)
        assert last_kib - kib < 4096, "memory grows"
    assert dcomm_files() == before


def test_nested_splits() -> None:
    assert process_values(4, SCRIPT, "nested") == [
        [6, 1, 1, 0, 1, 1],
        [6, 1, 1, 1, 1, 1],
        [6, 5, 5, 2, 5, 5],
        [6, 5, 5, 3, 5, 5],
    ]


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.long), 3])
def test_a_killed_rank_is_lost_in_its_child_only(victim: int) -> None:
    with Ranks(4, SCRIPT, "one_dies", {"victim": victim}) as ranks:
        for rank in range(4):
            ranks.wait_for_mark(rank, "split")
        killed_ns = ranks.send(victim, signal.SIGKILL)
        pid = ranks.processes[victim].pid
        results = ranks.finish(timeout=30)
    for result in results:
        if result.rank == victim:
            continue
        assert result.returncode == 0, result
        value = result.value
        assert value["error"] == "PeerLostError", value
        if result.rank % 2 == victim % 2:
            assert f"rank {victim // 2} (pid {pid}) died" in value["text"]
            assert (value["at_ns"] - killed_ns) / 1e9 < 1.0
        else:
            assert "barrier() #" in value["text"]
            assert f"rank {victim} (pid {pid}) died" in value["text"]
            assert value["steps"] > 50
            assert (value["at_ns"] - killed_ns) / 1e9 > 1.0


def test_a_rank_that_dies_during_split() -> None:
    with Ranks(3, SCRIPT, "dies_during_split") as ranks:
        for rank in range(3):
            ranks.wait_for_mark(rank, "ready")
        ranks.send(1, signal.SIGKILL)
        results = ranks.finish(timeout=30)
    for rank in (0, 2):
        assert results[rank].value["error"] == "PeerLostError", results[rank]
        assert "rank 1" in results[rank].value["text"]


def test_abort_of_a_child_of_processes() -> None:
    values = process_values(4, SCRIPT, "abort_of_a_child")
    assert [value["error"] for value in values] == [None, None, "AbortedError", None]
    assert "rank 0" in values[2]["text"]


def test_close_of_a_child_of_processes() -> None:
    values = process_values(3, SCRIPT, "close_of_a_child")
    assert [value["error"] for value in values] == ["PeerLostError", None, "PeerLostError"]
    for rank in (0, 2):
        assert "rank 1" in values[rank]["text"]
        assert "closed its communicator" in values[rank]["text"]


def test_a_forked_child_cannot_use_it() -> None:
    assert process_values(2, SCRIPT, "split_in_a_forked_child") == [{"exit": 0, "sum": 2.0}] * 2


def test_without_memfd() -> None:
    before = dcomm_files()
    assert process_values(3, SCRIPT, "without_memfd", env={"DCOMM_FORCE_SHM": "1"}) == [3.0] * 3
    assert dcomm_files() == before


def test_a_rank_without_memory_fails_all_and_breaks_nothing() -> None:
    values = process_values(4, SCRIPT, "too_little_memory")
    assert [value["error"] for value in values] == ["SharedMemoryError"] * 4
    assert "memfd_create for a window" in values[1]["text"]
    for rank in (0, 2, 3):
        assert "split: rank 1 could not make its part" in values[rank]["text"]
