"""Ranks that are processes: how they meet, what they leave behind, and what they refuse."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
from rank_processes import WORKERS, process_values, run_processes

SCRIPT = WORKERS / "process_ranks.py"


def torchrun_variables(world_size: int) -> list[dict[str, str]]:
    shared = {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1"}
    return [
        {**shared, "MASTER_PORT": "29599", "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world_size)
    ]


def identities(world_size: int) -> list[dict[str, int]]:
    return [{"rank": rank, "world_size": world_size, "local_rank": rank} for rank in range(world_size)]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_meeting_by_arguments(world_size: int) -> None:
    assert process_values(world_size, SCRIPT, "by_arguments") == identities(world_size)


@pytest.mark.parametrize("world_size", [2, 4])
def test_meeting_by_torchruns_variables(world_size: int) -> None:
    env = torchrun_variables(world_size)
    assert process_values(world_size, SCRIPT, "by_environment", env=env) == identities(world_size)


@pytest.mark.parametrize(
    ("names", "extra"),
    [
        (("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"), {"SLURM_JOB_ID": "7", "SLURM_NNODES": "1"}),
        (("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"), {}),
        (("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"), {}),
    ],
    ids=["slurm", "openmpi", "pmi"],
)
def test_meeting_by_other_launchers(names: tuple[str, str, str], extra: dict[str, str]) -> None:
    env = [{names[0]: str(rank), names[1]: "2", names[2]: str(rank), **extra} for rank in range(2)]
    assert process_values(2, SCRIPT, "by_environment", env=env) == identities(2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(("kind", "world_size"), [("own", 2), ("own", 4), ("file", 2), ("tcp", 2)])
def test_meeting_by_a_store(kind: str, world_size: int, tmp_path: Path) -> None:
    if kind != "own":
        pytest.importorskip("torch")
    args = {"kind": kind, "folder": str(tmp_path), "port": free_port() if kind == "tcp" else 0}
    assert process_values(world_size, SCRIPT, "by_store", args, timeout=90) == identities(world_size)


def test_leaving_right_after_the_last_operation_disturbs_nobody() -> None:
    """150 communicators in a row: a peer that is done and gone is no lost peer."""
    for value in process_values(2, SCRIPT, "many_short_lives", {"rounds": 150}, timeout=100):
        assert value == {"rounds": 150}


@pytest.mark.parametrize("hard", [False, True])
def test_exit_without_close(hard: bool) -> None:
    for _ in range(2):
        for result in run_processes(4, SCRIPT, "exit_after_last_operation", {"hard": hard}):
            assert result.returncode == 0, result
            assert result.err == ""


@pytest.mark.parametrize("env", [{}, {"DCOMM_FORCE_SHM": "1"}], ids=["memfd", "shm"])
def test_nothing_is_left_behind(env: dict[str, str]) -> None:
    before = set(os.listdir("/dev/shm"))
    for value in process_values(2, SCRIPT, "descriptors_over_cycles", {"cycles": 50}, env=env, timeout=100):
        assert value["first"] == value["last"]  # descriptors, threads, mappings
    left = [name for name in set(os.listdir("/dev/shm")) - before if "dcomm" in name]
    assert left == []


def test_a_forked_child_is_refused_and_the_parent_goes_on() -> None:
    for value in process_values(2, SCRIPT, "fork_and_use"):
        closed, *texts = value["texts"]
        assert int(closed) > 0  # the child holds none of dcomm's descriptors
        assert len(texts) == 4
        for text in texts:
            assert "belongs to the parent process; a forked child must not use it" in text
        assert value["status"] == 7
        assert value["value"] == 2.0


@pytest.mark.long
def test_two_jobs_with_one_key() -> None:
    """Two pairs, told apart by nothing: one job runs, the other learns why it cannot."""
    for _ in range(2):
        # Both ranks 0 are there before a rank 1 comes, so that the jobs do not run one after the other.
        args = [{"my_rank": rank, "my_world_size": 2, "timeout": 3, "delay": 0.8 * rank} for rank in (0, 0, 1, 1)]
        results = process_values(4, SCRIPT, "init_and_report", args)
        met = [value for value in results if value["error"] is None]
        assert sorted(value["rank"] for value in met) == [0, 1], results
        assert sum(value["error"] is None for value in results[:2]) == 1
        for value in results[:2]:  # the other rank 0
            if value["error"] is not None:
                assert value["error"] == "ValueError", value
                assert "another job holds this meeting point; set DCOMM_JOB_ID" in value["text"]
        for value in results[2:]:  # the other rank 1; too late it finds nobody
            if value["error"] is not None:
                assert value["error"] in ("ValueError", "CollectiveTimeoutError"), value
                assert "set DCOMM_JOB_ID" in value["text"] or "rank 0 did not arrive" in value["text"]


def test_different_world_sizes() -> None:
    args = [{"my_world_size": 2 if rank == 0 else 3, "timeout": 3.0} for rank in range(3)]
    values = process_values(3, SCRIPT, "init_and_report", args)
    for value in values[:2]:
        assert value["error"] == "ValueError", value
        assert "world_size differs: rank 0 has 2, rank 1 has 3" in value["text"]
    # Two ranks are all that rank 0 waits for, so the third may find that it has raised and gone.
    assert values[2]["error"] in ("ValueError", "CollectiveTimeoutError"), values[2]


def test_a_rank_that_never_comes_is_named() -> None:
    args = [{"my_world_size": 3, "timeout": 1.0}] * 2
    for value in process_values(2, SCRIPT, "init_and_report", args):
        assert value["error"] == "CollectiveTimeoutError", value
        assert "rank 2 did not arrive" in value["text"] or "ranks 2 did not arrive" in value["text"], value
        assert value["ranks"] == [2], value
        assert value["seconds"] < 6


def check_mismatch(values: list[dict[str, Any]], usual: str, odd: str) -> None:
    for value in values:
        assert value["error"] == "MismatchError", value
        assert usual in value["text"]
        assert odd in value["text"]
        assert value["seconds"] < 1.0, value


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize(
    ("what", "usual", "odd"),
    [
        ("count", "count=1000,", "count=1001,"),
        ("dtype", "dtype=float32", "dtype=int32"),
        ("collective", "all_reduce(", "barrier()"),
    ],
)
def test_mismatch_between_processes(what: str, usual: str, odd: str, world_size: int) -> None:
    check_mismatch(process_values(world_size, SCRIPT, "mismatch", {"what": what}), usual, odd)
