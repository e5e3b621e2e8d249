"""The parts of tools/gpu_check, run on CPU tensors in place of a GPU's."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gpu_checks import MIB, TOOLS, gpu_check, only, outcomes, report

from dcomm import _core

pytestmark = pytest.mark.long


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Runs a part with few and small sizes; what it reported."""
    pytest.importorskip("torch")
    from pretend_cuda import pretend_cuda

    monkeypatch.syspath_prepend(str(TOOLS))

    def run(part: str, budget: Any = None, **constants: Any) -> dict[str, Any]:
        module = importlib.import_module(f"gpu.{part}")
        for name, value in constants.items():
            assert hasattr(module, name)
            monkeypatch.setattr(module, name, value)
        budget = budget or report.Budget(60)
        found = report.Report(None, {}, budget)
        module.run(found, budget)
        return dict(found.values)

    with pretend_cuda(monkeypatch):
        yield run


def test_timing_part(parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    timing = importlib.import_module("gpu.timing")
    monkeypatch.setattr(timing, "NAMES", ("torch._foreach_add_", "torch stack+sum"))  # a compiler takes its time
    sizes = [MIB >> 2, MIB >> 6]
    found = parts("timing", SIZES=sizes, MIB=MIB >> 6, COPY_BYTES=MIB, REPEATS=3)
    assert not gpu_check.has_failed(found), found
    assert all(row["num_wrong"] == 0 for row in found["rows"] if "error" not in row)
    kinds = {(row["what"], row["world_size"], row["nbytes"]) for row in found["rows"]}
    for n in (2, 4, 8):
        assert {("dcomm", n, sizes[0]), ("torch", n, sizes[0]), ("cast", n, sizes[0])} <= kinds
    assert {row["how"] for row in found["rows"] if row["what"] == "dcomm"} == {"graph"}
    assert {row["channels"] for row in found["rows"] if row["what"] == "sweep"} == {4, 8, 16, 32, 64}


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_graphs_part(parts: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OUT", str(tmp_path))
    found = parts("graphs", SIZES=[8, 65536], NUM_MIXED=7, DENSE=(4, 4096))
    assert not gpu_check.has_failed(found), found
    assert found["floor"] == {"empty_launch_us": 3.0, "round_trip_us": 1.0}
    (beside,) = (row for row in found["rows"] if row["what"] == "beside kernels")
    assert (beside["num_wrong"], beside["num_kernels"]) == (0, 0)  # no kernel is on a CPU's profile
    assert (tmp_path / beside["trace"]).is_file()
    assert [text for text, outcome in outcomes("graphs", found).items() if outcome == "not measured"] == [
        "1 MiB, 4 ranks, replay of a graph of 20: at most 1.05 x the time of its kernels"
    ]
    assert only("graphs", found, "replays between")["outcome"] == "reached"


def test_a_graph_that_reduces_nothing_is_wrong(parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: None)
    found = parts("graphs", SIZES=[8], NUM_MIXED=7, DENSE=(4, 4096))
    assert gpu_check.has_failed(found)
    assert "reached" not in outcomes("graphs", found).values()


def test_crossovers_part(parts: Any) -> None:
    found = parts("crossovers", SIZES=[1024, 4096], REPEATS=2)
    assert not gpu_check.has_failed(found), found
    assert [(cell["world_size"], cell["nbytes"]) for cell in found["fastest"]] == [
        (n, nbytes) for n in (2, 4, 8, 16) for nbytes in (1024, 4096)
    ]
    assert all(len(cell["median_us"]) == 4 and cell["lead"] >= 1 for cell in found["fastest"])
    assert [row["world_size"] for row in found["rows"] if "error" in row] == [32]  # more than there is room for


def test_lists_part(parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class CopiesNothing:
        def __init__(self, *arguments: Any) -> None:
            pass

        def pack(self, *arguments: Any) -> None:
            pass

        unpack = pack

    monkeypatch.setattr(_core, "CudaArrayList", CopiesNothing)
    found = parts("lists", resnet50_like=lambda: [(300, 100), (77,)])
    assert [(row["what"], row["dtype"], row["whole"]) for row in found["rows"]][:2] == [
        ("pack", "float32", "float32"),
        ("unpack", "float32", "float32"),
    ]
    assert "not measured" not in outcomes("lists", found).values()


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_overlap_part(parts: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Steps that only take their time, and a profile in which there is no kernel."""
    overlap = importlib.import_module("gpu.overlap")

    class Steps:
        def __init__(self, comm: Any, *, syncs: bool, overlap: bool | None) -> None:
            self.seconds = 0.002 if not syncs else 0.003 if overlap else 0.02

        def step(self) -> None:
            time.sleep(self.seconds)

    monkeypatch.setattr(overlap, "Training", Steps)
    monkeypatch.setenv("OUT", str(tmp_path))
    found = parts("overlap", STEPS=3)
    assert not gpu_check.has_failed(found), found
    step, profile = found["rows"]
    assert 1 < step["over_alone"] < 10
    assert step["after_us"] > step["median_us"] > step["alone_us"] > 2000
    assert profile["percent_beside"] is None
    assert profile["num_kernels"] == 0
    assert (tmp_path / profile["trace"]).is_file()


def test_graphs_beside_their_kernels(parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a graph's kernels are in the profile, or there is no number."""
    graphs = importlib.import_module("gpu.graphs")
    for num_missing in (0, 1):
        times = [0.5] * (graphs.CALLS * graphs.TRACED_REPLAYS - num_missing)
        monkeypatch.setattr(graphs, "kernel_times_us", lambda arrays, comms, path, times=times: times)
        found = parts("graphs", SIZES=[], NUM_MIXED=1, DENSE=(4, 4096))
        (row,) = (row for row in found["rows"] if row["what"] == "beside kernels")
        assert ("over_kernels" in row) == (num_missing == 0)
        if num_missing == 0:
            assert row["over_kernels"] == pytest.approx(row["median_us"] / 0.5, rel=0.01)


@pytest.mark.parametrize("flipped", [False, True])
def test_correct_part(monkeypatch: pytest.MonkeyPatch, flipped: bool) -> None:
    """The GPU's results are the host's, or differ in a bit."""
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(str(TOOLS))
    correct = importlib.import_module("gpu.correct")

    def device_results(device: Any, inputs: list[Any], layout: str, **arguments: Any) -> list[Any]:
        results = [correct.host_result(device, inputs, **arguments).clone() for _ in inputs]
        if flipped and inputs[0].numel() == 7 and len(inputs) == 3:
            correct.bits(results[2])[3] ^= 1
        return results

    def fails() -> None:
        assert not flipped, "no"

    for name, value in {
        "device_results": device_results,
        "check_failures": fails,
        "check_split_invariance": lambda: None,
        "PAIRS": correct.PAIRS[:2],
        "SMALL_COUNTS": [0, 7, 1000],
    }.items():
        monkeypatch.setattr(correct, name, value)
    found = report.Report(None, {}, report.Budget(60))
    correct.run(found, report.Budget(60), small=True)
    num_cases = 2 * len(correct.ALGOS) * 2  # pairs, algorithms, operations
    num_cases += len(correct.INTEGERS) * len(correct.INTEGER_ALGOS)
    assert found.values["num_compared"] == num_cases * 3 * (2 + 3 + 4)
    assert found.values["num_differing"] == (num_cases if flipped else 0)
    assert gpu_check.has_failed(found.values) == flipped
    assert list(outcomes("correct", found.values).values()) == ["not reached" if flipped else "reached"]
    if flipped:
        assert "1 differ, first [3]" in found.values["differing"][0]
        assert {"check": "failures", "passed": False, "failure": "AssertionError: no"} in found.values["rows"]


PROCESS_RANKS = """
import os, time
from rank_main import mark

def handoffs(rank, world_size, num_operations):
    if os.environ["DCOMM_CUDA_WINDOWS"] == "ipc" and world_size == 4 and rank == 3:
        raise RuntimeError("no window")
    pipe = os.environ.get("CUDA_MPS_PIPE_DIRECTORY")
    assert pipe is None or os.path.isdir(pipe)
    return {"one_shot": {"num_wrong": 0, "first_ms": 9.0, "ms_per_operation": 2.0, "ms_per_handoff": 1.0 + rank}}

def messages(rank, world_size, num_operations):
    return [{"count": count, "num_wrong": 0, "ms_per_message": 0.5} for count in (0, 1000)]

def killed(rank, world_size):
    mark("ready")
    time.sleep(1.5 if rank == 0 else 60)
    return {"error": "PeerLostError", "text": "died", "at_ns": time.monotonic_ns(), "next_call_works": True}
"""


def test_processes_part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ranks that only say what they should; one fails. An MPS daemon that only writes down how it is called."""
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(str(TOOLS))
    processes = importlib.import_module("gpu.processes")
    script = tmp_path / "ranks.py"
    script.write_text(PROCESS_RANKS)
    daemon = tmp_path / "nvidia-cuda-mps-control"
    daemon.write_text(
        f'#!/bin/sh\necho "$* $CUDA_MPS_PIPE_DIRECTORY" >> {tmp_path}/daemon\n[ "$1" ] || cat >> {tmp_path}/daemon\n'
    )
    daemon.chmod(0o755)
    monkeypatch.setattr(processes, "SCRIPT", script)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = report.Report(None, {}, report.Budget(60))
    processes.run(found, report.Budget(60))
    outcome = outcomes("processes", found.values)
    assert [text for text, value in outcome.items() if value != "reached"] == [
        "4 processes on the GPU, ipc windows: 20 operations with the host's bits"
    ]
    assert outcome["4 processes on the GPU, ipc windows: 20 operations with the host's bits"] == "not reached"
    assert gpu_check.has_failed(found.values)
    slowest = [row["ms_per_handoff"] for row in found.values["rows"] if row.get("world_size") == 4 and "algo" in row]
    assert slowest == [4.0, 4.0]  # of all ranks; without MPS and with it
    assert [row["world_size"] for row in found.values["rows"] if row.get("mps")] == [2, 4]
    assert all(0 < row["seconds"] < 5 for row in found.values["rows"] if row["what"] == "death")
    started, stopped, said = (tmp_path / "daemon").read_text().splitlines()
    assert started.split()[0] == "-d"
    assert started.split()[1] == stopped.strip()  # the same daemon
    assert said == "quit"
    assert not Path(stopped.strip()).exists()


def test_no_time_leaves_out_and_says_so(parts: Any) -> None:
    for part, constants in (("timing", {"COPY_BYTES": MIB, "SIZES": [MIB]}), ("graphs", {}), ("crossovers", {})):
        budget = report.Budget(0)
        found = parts(part, budget, **constants)
        assert len(budget.skipped) > 5, part
        assert not any("median_us" in row for row in found["rows"]), part
        assert "reached" not in outcomes(part, found).values(), part
