"""CUDA arrays between processes, each with an emulated GPU: windows, mismatches, deadlines, deaths, leaving."""

from __future__ import annotations

import signal
import time
from typing import Any

import pytest
from emulated_gpu import EmulatedGpu
from rank_processes import WORKERS, Ranks, process_values, run_processes

SCRIPT = WORKERS / "cuda_process_ranks.py"
VMM, IPC = 1, 2
SMALL = {"DCOMM_CUDA_CHANNELS": "2", "DCOMM_CUDA_SLOT_BYTES": "4096"}


@pytest.fixture
def library(emulated_gpu: EmulatedGpu) -> dict[str, Any]:
    return {"library": str(emulated_gpu.path)}


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_collectives_between_processes(library: dict[str, Any], world_size: int) -> None:
    left = process_values(world_size, SCRIPT, "collectives", library, env=SMALL, timeout=120)
    assert left == [0] * world_size  # no window, mapping or address


@pytest.mark.parametrize("lacking", [0, 1])
def test_one_rank_without_descriptors_makes_all_use_ipc(library: dict[str, Any], lacking: int) -> None:
    args = [{**library, "kinds": IPC if rank == lacking else VMM | IPC} for rank in range(2)]
    process_values(2, SCRIPT, "collectives", args, env=SMALL, timeout=120)


def test_no_way_in_common(library: dict[str, Any]) -> None:
    values = process_values(3, SCRIPT, "cannot", {**library, "kinds": [VMM | IPC, VMM, IPC]}, env=SMALL)
    for value in values:
        assert value["error"] == "CudaError", value
        assert "rank 2 cannot pass a descriptor (the emulated driver was told so)" in value["text"]
        assert "rank 1 has no legacy IPC handle" in value["text"]
        assert "use CPU arrays" in value["text"]


@pytest.mark.parametrize("kind", ["vmm", "ipc"])
def test_a_driver_that_fails_anywhere(library: dict[str, Any], kind: str) -> None:
    # granularity, create, reserve, map, allow, zero, export, import, reserve, map, allow; allocate, zero, export, open
    num_calls = 11 if kind == "vmm" else 4
    env = {**SMALL, "DCOMM_CUDA_WINDOWS": kind}
    values = process_values(
        2, SCRIPT, "driver_fails", {**library, "num_calls": num_calls, "keeps": kind == "ipc"}, env=env, timeout=120
    )
    for call in range(num_calls):
        assert [values[rank][call]["error"] for rank in range(2)] == ["CudaError"] * 2, (call, values)
        assert "the fake refuses (999)" in values[1][call]["text"]
        assert "rank 1 could not make its part of the windows on the GPUs" in values[0][call]["text"]


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize(
    ("name", "usual", "odd"),
    [
        ("count", "count=120", "count=90"),
        ("op", "op=sum", "op=avg"),
        ("dtype", "dtype=int32", "dtype=int64"),
        ("wire", "wire_dtype=float32", "wire_dtype=float16"),
        ("algo", "algo=two_shot", "algo=ring"),
        ("src", "src=0", "src=1"),
        ("collective", "all_reduce(", "reduce_scatter("),
    ],
)
def test_mismatch(library: dict[str, Any], world_size: int, name: str, usual: str, odd: str) -> None:
    values = process_values(world_size, SCRIPT, "mismatch", {**library, "name": name}, env=SMALL)
    for value in values:
        assert value["error"] == "MismatchError", value
        assert usual in value["text"], value
        assert odd in value["text"], value
        assert "rank 1 called" in value["text"], value
        assert "#6 on the GPU" in value["text"], value
        assert value["seconds"] < 10, value


def test_a_missing_rank(library: dict[str, Any]) -> None:
    values = process_values(3, SCRIPT, "missing", library, env=SMALL)
    for rank in (0, 2):
        assert values[rank]["error"] == "CollectiveTimeoutError", values[rank]
        assert "waiting for rank 1" in values[rank]["text"]
        assert "#2 on this rank, " in values[rank]["text"]
        assert "#1 on rank 1" in values[rank]["text"]


@pytest.mark.parametrize(
    ("how", "error", "text"),
    [
        ("killed", "PeerLostError", "died"),
        ("abort", "AbortedError", "rank 1 aborted the communicator"),
        ("close", "PeerLostError", "closed its communicator"),
    ],
)
def test_a_peer_ends_while_others_wait(library: dict[str, Any], how: str, error: str, text: str) -> None:
    with Ranks(3, SCRIPT, "ends", {**library, "how": how}, env=SMALL) as ranks:
        for rank in range(3):
            ranks.wait_for_mark(rank, "ready")
        if how == "killed":
            time.sleep(0.2)
            killed_ns = ranks.send(1, signal.SIGKILL)
        results = ranks.finish(timeout=40)
    for rank in (0, 2):
        value = results[rank].value
        assert value["error"] == error, value
        assert text in value["text"], value
        if how == "killed":
            assert f"rank 1 (pid {ranks.processes[1].pid}) died" in value["text"]
            assert 0 < value["at_ns"] - killed_ns < 2e9
        assert value["seconds"] < 10, value


@pytest.mark.parametrize("world_size", [2, 3])
def test_leaving_after_ones_part_fails_nobody(library: dict[str, Any], world_size: int) -> None:
    turns = 12
    assert process_values(
        world_size, SCRIPT, "leaves_at_once", {**library, "turns": turns}, env=SMALL, timeout=120
    ) == [turns] * world_size  # fmt: skip


def test_forked_child(library: dict[str, Any]) -> None:
    assert process_values(2, SCRIPT, "forks", library, env=SMALL) == ["ForkedProcessError"] * 2


def test_processes_on_one_gpu_are_told_of_mps_once(library: dict[str, Any]) -> None:
    args = [{**library, "gpu": rank // 2} for rank in range(3)]
    results = run_processes(3, SCRIPT, "collectives", args, env=SMALL, timeout=120)
    assert [result.returncode for result in results] == [0] * 3, results
    warnings = [result.err.count("2 processes use one GPU") for result in results]
    assert warnings == [1, 0, 0], results
    assert "nvidia-cuda-mps-control -d" in results[0].err
