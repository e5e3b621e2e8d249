"""comm.empty(device="cuda") between processes, each with an emulated GPU: bits, loans, failures, drops."""

from __future__ import annotations

import signal
import time
from typing import Any

import pytest
from emulated_gpu import EmulatedGpu
from rank_processes import WORKERS, Ranks, process_values

pytestmark = pytest.mark.long  # the test command is to stay short

SCRIPT = WORKERS / "cuda_window_ranks.py"
SMALL = {"DCOMM_CUDA_CHANNELS": "2", "DCOMM_CUDA_SLOT_BYTES": "4096"}


@pytest.fixture
def library(emulated_gpu: EmulatedGpu) -> dict[str, Any]:
    return {"library": str(emulated_gpu.path)}


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_bits(library: dict[str, Any], world_size: int) -> None:
    left = process_values(world_size, SCRIPT, "bits", library, env=SMALL, timeout=120)
    assert left == [0] * world_size


def test_legacy_handles(library: dict[str, Any]) -> None:
    """What others may have open stays allocated until the process ends: 1 + 2 for each dtype, the large one, and the
    communicator's own.
    """
    env = {**SMALL, "DCOMM_CUDA_WINDOWS": "ipc"}
    left = process_values(2, SCRIPT, "bits", library, env=env, timeout=120)
    assert all(8 <= count <= 9 for count in left), left


@pytest.mark.parametrize("world_size", [2, 3])
def test_loans(library: dict[str, Any], world_size: int) -> None:
    process_values(world_size, SCRIPT, "loans", {**library, "turns": 40}, env=SMALL, timeout=120)


@pytest.mark.parametrize(
    ("name", "usual", "odd"),
    [
        ("part", "x=shared array 1", "x=shared array 1 from byte 16 on"),
        ("array", "x=shared array 1", "x=shared array 2"),
        ("out", "out=shared array 2", "out=memory that the others do not reach"),
        ("algo", "algo=direct", "algo=two_shot"),
        ("collective", "algo=direct", "broadcast("),
    ],
)
def test_disagreement(library: dict[str, Any], name: str, usual: str, odd: str) -> None:
    values = process_values(3, SCRIPT, "disagree", {**library, "name": name}, env=SMALL)
    for value in values:
        assert value["error"] == "MismatchError", value
        assert usual in value["text"], value
        assert odd in value["text"], value
        assert value["seconds"] < 10, value


@pytest.mark.parametrize("kind", ["vmm", "ipc"])
def test_a_driver_that_fails_anywhere(library: dict[str, Any], kind: str) -> None:
    num_calls = 11 if kind == "vmm" else 4  # as of a communicator's windows: test_cuda_processes.py
    env = {**SMALL, "DCOMM_CUDA_WINDOWS": kind}
    values = process_values(
        2, SCRIPT, "making_fails", {**library, "num_calls": num_calls, "keeps": kind == "ipc"}, env=env, timeout=120
    )
    for call in range(num_calls):
        assert [values[rank][call]["error"] for rank in range(2)] == ["CudaError"] * 2, (call, values)
        assert "the fake refuses (999)" in values[1][call]["text"]
        assert "rank 1 could not make its part of the array" in values[0][call]["text"]


def test_ranks_let_go_at_their_own_times(library: dict[str, Any]) -> None:
    assert process_values(3, SCRIPT, "drops", library, env=SMALL) == [[0, 0, 0]] * 3


def test_a_killed_rank(library: dict[str, Any]) -> None:
    with Ranks(3, SCRIPT, "killed", library, env=SMALL) as ranks:
        for rank in range(3):
            ranks.wait_for_mark(rank, "ready")
        time.sleep(0.3)
        ranks.send(1, signal.SIGKILL)
        results = ranks.finish(timeout=40)
    for rank in (0, 2):
        assert results[rank].value["error"] == "PeerLostError", results[rank]


def test_forks(library: dict[str, Any]) -> None:
    assert process_values(2, SCRIPT, "forks", library, env=SMALL) == [0, 0]
