"""tools/gpu_check, as far as a machine without a GPU can tell: arguments, reports, figures of made-up measurements, and
which parts the shell script runs, with a stub in place of python."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dcomm import _core
from dcomm.bench.cuda.floor import floor_us

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT / "tools"
MIB = 1 << 20


def _modules() -> dict[str, ModuleType]:
    sys.path.insert(0, str(TOOLS))
    try:
        names = ("gpu_check", "gpu.figures", "gpu.report", "gpu.hook_trace")
        return {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(TOOLS))


MODULES = _modules()
gpu_check, figures, report, hook_trace = MODULES.values()


def outcomes(part: str, found: dict[str, Any] | None) -> dict[str, str]:
    return {figure["figure"]: figure["outcome"] for figure in figures.check_figures(part, found)}


def only(part: str, found: dict[str, Any], *words: str) -> dict[str, str]:
    """The one figure whose text has all words."""
    chosen = [f for f in figures.check_figures(part, found) if all(word in f["figure"] for word in words)]
    assert len(chosen) == 1, (words, chosen)
    return dict(chosen[0])


# ---- Arguments ----


def test_arguments() -> None:
    options = gpu_check.parse(["timing", "--max-seconds", "7", "--json", "x.json"])
    assert (options.part, options.max_seconds, options.json) == ("timing", 7.0, Path("x.json"))
    assert gpu_check.parse(["figures", "a", "b"]).folders == [Path("a"), Path("b")]
    for bad in (["nothing"], ["figures"], ["timing", "folder"], []):
        with pytest.raises(SystemExit) as error:
            gpu_check.parse(bad)
        assert error.value.code == 2, bad


def test_every_part_has_a_module_and_figures() -> None:
    assert set(figures.PARTS) == {
        *("correct", "timing", "graphs", "crossovers", "processes", "hooks", "lists", "registered"),
    }
    for part in figures.PARTS:
        assert "def run(" in (TOOLS / "gpu" / f"{part}.py").read_text(), part
        assert set(outcomes(part, None).values()) == {"not measured"}, part
        assert set(outcomes(part, {"rows": []}).values()) == {"not measured"}, part


def test_the_modules_import_without_a_gpu(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); "
        "import gpu.correct, gpu.timing, gpu.graphs, gpu.crossovers, gpu.processes, gpu.hooks, gpu.lists; "
        "import gpu.registered"
    )
    subprocess.run([sys.executable, "-c", code, str(TOOLS)], check=True, timeout=100, cwd=tmp_path)


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    command = [sys.executable, str(TOOLS / "gpu_check.py"), "graphs"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "needs a GPU" in done.stderr


# ---- The floor of a launch and a flag, here between host threads ----


def test_launch_floor(emulated_gpu: Any) -> None:
    for device in (0, 1):
        empty_launch_us, round_trip_us = _core.cuda_launch_floor(device)
        assert 0 < empty_launch_us < 1e7
        assert 0 < round_trip_us < 1e7
    with pytest.raises(ValueError, match="device 2 of 2"):
        _core.cuda_launch_floor(2)


# ---- Reports ----


def test_a_budget_names_what_it_leaves_out() -> None:
    assert report.Budget(60).allows("this")
    budget = report.Budget(0)
    assert not budget.allows("that")
    assert budget.skipped == ["that"]


def test_a_report_is_there_before_the_end(tmp_path: Path) -> None:
    budget = report.Budget(0)
    found = report.Report(tmp_path / "gpu_timing.json", {"date": "today"}, budget)
    found.add({"what": "dcomm", "median_us": 1.5})
    budget.allows("the rest")
    found.save()
    stored = json.loads((tmp_path / "gpu_timing.json").read_text())
    assert stored == {"date": "today", "rows": [{"what": "dcomm", "median_us": 1.5}], "skipped": ["the rest"]}
    assert [path.name for path in tmp_path.iterdir()] == ["gpu_timing.json"]


def test_an_error_becomes_a_row_and_the_part_goes_on() -> None:
    found = report.Report(None, {}, report.Budget(60))
    with found.attempt({"world_size": 2}):
        raise ValueError("first line\nsecond line")
    assert found.values["rows"] == [{"world_size": 2, "failure": "ValueError: first line"}]
    with pytest.raises(report.NotHere), found.attempt({"world_size": 500}):
        raise report.NotHere("too many")
    assert len(found.values["rows"]) == 1


@pytest.mark.parametrize(
    ("row", "failed"),
    [
        ({"what": "dcomm", "num_wrong": 0}, False),
        ({"what": "dcomm", "num_wrong": 1}, True),
        ({"what": "torch", "num_wrong": 1}, False),
        ({"what": "torch", "error": "no compiler"}, False),
        ({"world_size": 2, "failure": "CudaError: no"}, True),
    ],
)
def test_exit_status(row: dict[str, Any], failed: bool) -> None:
    assert gpu_check.has_failed({"rows": [row]}) == failed
    assert gpu_check.has_failed({"rows": [], "num_differing": 1})
    assert gpu_check.has_failed({"rows": [], "failure": "CudaError: no"})


def test_head_is_that_of_the_other_benchmarks() -> None:
    head = report.head("command", "abc", {"gpu": "H200", "driver": "580.1"}, {"torch": "2.11"}, "avx2")
    assert set(head) == {"machine", "versions", "date", "command", "commit"}
    assert head["machine"]["gpu"] == "H200"
    assert head["machine"]["driver"] == "580.1"
    assert "cpu" in head["machine"]
    assert {"dcomm", "python", "numpy", "torch"} <= set(head["versions"])
    assert (head["command"], head["commit"]) == ("command", "abc")
    assert report.head("command", "", {}, {}, "avx2")["commit"] != ""


def test_summary_and_floor() -> None:
    assert floor_us(8, 64 * MIB, 4e12) == pytest.approx(268.435456)
    found = report.summary([3.0, 1.0, 2.0, 9.0, 4.0], 1.5)
    assert found == {"median_us": 3.0, "p90_us": 4.0, "floor_us": 1.5, "percent_of_floor": 50.0}
    assert "floor_us" not in report.summary([1.0])


# ---- The parts, on CPU tensors in place of a GPU's ----


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


def test_graphs_part(parts: Any) -> None:
    found = parts("graphs", SIZES=[8, 65536], NUM_MIXED=7)
    assert not gpu_check.has_failed(found), found
    assert found["floor"] == {"empty_launch_us": 3.0, "round_trip_us": 1.0}
    assert "not measured" not in outcomes("graphs", found).values()
    assert only("graphs", found, "replays between")["outcome"] == "reached"


def test_a_graph_that_reduces_nothing_is_wrong(parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: None)
    found = parts("graphs", SIZES=[8], NUM_MIXED=7)
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


def test_figures_of_registered_arrays() -> None:
    def rows(direct: float, wrong: int, over: float, digests: list[str]) -> dict[str, Any]:
        sums = [
            {"what": "sum", "world_size": n, "nbytes": 64 * MIB, "algo": algo, "median_us": us, "num_wrong": wrong}
            for n in (2, 4, 8)
            for algo, us in (("direct", direct), ("two_shot", 120.0))
        ]
        weights = [
            {"what": "weights", "world_size": n, "sha256": [digest]}
            for n, digest in zip((1, 2, 4, 8), digests, strict=True)
        ]
        return {"rows": [*sums, {"what": "step", "over_alone": over, "alone_us": 9.0}, *weights]}

    assert set(outcomes("registered", rows(100.0, 0, 1.1, ["a"] * 4)).values()) == {"reached"}
    assert set(outcomes("registered", rows(101.0, 0, 1.11, ["a", "a", "b", "a"])).values()) == {"not reached"}
    assert only("registered", rows(50.0, 1, 1.0, ["a"] * 4), "64 MiB, 2 ranks")["outcome"] == "not reached"


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


# ---- Figures ----


def timing_row(n: int, nbytes: int, median_us: float, **more: Any) -> dict[str, Any]:
    row = {"what": "dcomm", "world_size": n, "nbytes": nbytes, "algo": "auto", "wire": "float32", "num_wrong": 0}
    return {**row, "median_us": median_us, "percent_of_floor": 80.0, **more}


def test_floor_figure() -> None:
    rows = [timing_row(8, 64 * MIB, 100.0), timing_row(8, 64 * MIB, 90.0, algo="ring", percent_of_floor=85.0)]
    found = only("timing", {"rows": rows}, "64 MiB float32", "8 ranks", "70%")
    assert found["outcome"] == "reached"
    assert "80.0%" in found["measured"]
    assert "85.0% (ring)" in found["measured"]
    rows[0]["percent_of_floor"] = 69.9  # another algorithm does not stand in for "auto"
    assert only("timing", {"rows": rows}, "64 MiB float32", "8 ranks", "70%")["outcome"] == "not reached"
    rows[0] |= {"percent_of_floor": 80.0, "num_wrong": 1}
    assert only("timing", {"rows": rows}, "64 MiB float32", "8 ranks", "70%")["outcome"] == "not reached"
    assert only("timing", {"rows": rows}, "64 MiB float32", "4 ranks", "70%")["outcome"] == "not measured"


def test_torch_figure_takes_the_best_rival_at_every_size() -> None:
    def rival(nbytes: int, name: str, median_us: float, **more: Any) -> dict[str, Any]:
        row = {"what": "torch", "world_size": 4, "nbytes": nbytes, "rival": name, "num_wrong": 0}
        return {**row, "median_us": median_us, **more}

    rows = [
        timing_row(4, MIB, 10.0),
        timing_row(4, 64 * MIB, 100.0),
        rival(MIB, "torch.compile", 11.0),
        rival(MIB, "torch stack+sum", 30.0),
        rival(64 * MIB, "torch stack+sum", 300.0),
        {"what": "torch", "world_size": 4, "nbytes": 64 * MIB, "rival": "torch.compile", "error": "no compiler"},
    ]
    found = only("timing", {"rows": rows}, "4 ranks", "torch composite")
    assert (found["outcome"], found["measured"]) == (
        "reached",
        "1 MiB 1.10x torch.compile; 64 MiB 3.00x torch stack+sum",
    )
    slower = [*rows[:2], rival(MIB, "torch.compile", 9.0), *rows[3:]]
    assert only("timing", {"rows": slower}, "4 ranks", "torch composite")["outcome"] == "not reached"
    wrong = [timing_row(4, MIB, 10.0, num_wrong=3), *rows[1:]]
    assert only("timing", {"rows": wrong}, "4 ranks", "torch composite")["outcome"] == "not reached"
    cheat = [*rows[:2], rival(MIB, "torch.compile", 1.0, num_wrong=5), *rows[3:]]  # a wrong rival is none
    assert only("timing", {"rows": cheat}, "4 ranks", "torch composite")["outcome"] == "reached"


def test_wire_figures() -> None:
    rows = [
        timing_row(2, 16 * MIB, 100.0),
        timing_row(2, 16 * MIB, 100.0, wire="float16"),
        {"what": "cast", "world_size": 2, "nbytes": 16 * MIB, "median_us": 150.0, "num_wrong": 0},
    ]
    slower, fused = ("2 ranks", "not slower"), ("2 ranks", "fused")
    assert only("timing", {"rows": rows}, *slower)["outcome"] == "reached"
    assert only("timing", {"rows": rows}, *fused)["outcome"] == "reached"
    rows[1]["median_us"] = 101.0
    assert only("timing", {"rows": rows}, *slower)["outcome"] == "not reached"
    assert only("timing", {"rows": rows}, *fused)["outcome"] == "not reached"
    rows[1] |= {"median_us": 10.0, "num_wrong": 1}
    assert only("timing", {"rows": rows}, *fused)["outcome"] == "not reached"
    rows[1]["num_wrong"], rows[2]["num_wrong"] = 0, 1  # what it is compared with must be right as well
    assert only("timing", {"rows": rows}, *fused)["outcome"] == "not measured"


@pytest.mark.parametrize(("median_us", "outcome"), [(6.0, "reached"), (6.01, "not reached")])
def test_latency_figure(median_us: float, outcome: str) -> None:
    row = {"what": "dcomm", "world_size": 2, "nbytes": 8, "algo": "auto", "median_us": median_us, "num_wrong": 0}
    found = {"rows": [row], "floor": {"empty_launch_us": 3.0, "round_trip_us": 1.0}}
    assert only("graphs", found, "8 B, 2 ranks")["outcome"] == outcome
    assert only("graphs", {"rows": [row]}, "8 B, 2 ranks")["outcome"] == "not measured"  # no floor


@pytest.mark.parametrize(("median_us", "outcome"), [(8.0, "reached"), (8.1, "not reached")])
def test_64_kib_figure(median_us: float, outcome: str) -> None:
    row = {"what": "dcomm", "world_size": 8, "nbytes": 65536, "algo": "auto", "median_us": median_us, "num_wrong": 0}
    assert only("graphs", {"rows": [row]}, "64 KiB")["outcome"] == outcome


def test_replay_figure() -> None:
    rows = [{"what": "replays", "world_size": n, "num_wrong": 0} for n in (2, 4)]
    assert only("graphs", {"rows": rows}, "replays between")["outcome"] == "reached"
    for bad in ({"num_wrong": 1}, {"failure": "CudaError: no"}):
        found = {"rows": [rows[0], {**rows[1], **bad}]}
        assert only("graphs", found, "replays between")["outcome"] == "not reached", bad


def test_list_figures() -> None:
    row = {"what": "pack", "dtype": "float32", "whole": "float32", "percent_of_copy": 85.0, "over_foreach": 1.0}
    found = outcomes("lists", {"rows": [row, {**row, "what": "unpack", "over_foreach": 0.99, "percent_of_copy": 84.9}]})
    assert [found[text] for text in sorted(found)] == ["reached", "reached", "not reached", "not reached"]


def test_process_figures() -> None:
    good = {"what": "handoffs", "world_size": 2, "windows": "vmm", "mps": False, "algo": "one_shot", "num_wrong": 0}
    good["ms_per_handoff"] = 3.5
    death = {"what": "death", "windows": "ipc", "error": "PeerLostError", "seconds": 4.9, "next_call_works": True}
    handoffs, killed = ("2 processes", "vmm"), ("kill -9", "ipc")
    found = {"rows": [good, death]}
    assert only("processes", found, *handoffs) | {"figure": ""} == {
        "figure": "",
        "measured": "one_shot 3.5 ms per handoff",
        "outcome": "reached",
    }
    assert only("processes", found, *killed)["outcome"] == "reached"
    assert only("processes", found, "kill -9", "vmm")["outcome"] == "not measured"
    for bad in ({"num_wrong": 1}, {"failure": "CudaError: ..."}):
        assert only("processes", {"rows": [{**good, **bad}]}, *handoffs)["outcome"] == "not reached", bad
    message = {"what": "messages", "count": 1000, "num_wrong": 0, "ms_per_message": 0.25}
    assert only("processes", {"rows": [message]}, "messages")["measured"] == "1000: 0.25 ms"
    assert only("processes", {"rows": [message]}, "messages")["outcome"] == "reached"
    for bad in ({"num_wrong": 1}, {"failure": "CudaError: no"}):
        assert only("processes", {"rows": [{**message, **bad}]}, "messages")["outcome"] == "not reached", bad
    under_mps = {"rows": [{**good, "mps": True}]}
    assert only("processes", under_mps, *handoffs)["outcome"] == "not measured"
    for bad in ({"seconds": 5.1}, {"error": "CollectiveTimeoutError"}, {"next_call_works": False}):
        assert only("processes", {"rows": [{**death, **bad}]}, *killed)["outcome"] == "not reached", bad
    stuck = {"what": "death", "windows": "ipc", "failure": "AssertionError: still running"}
    assert only("processes", {"rows": [stuck]}, *killed)["outcome"] == "not reached"


def test_hook_figures() -> None:
    good = {"what": "gradients", "hook": "fp16", "worst": 1e-4, "served": True, "num_wrong": 0}
    beside = {"what": "overlap", "hook": "fp16_hook", "served": True, "percent_beside": 50.0}
    gradients, overlap = ("fp16_hook", "DDP's own"), ("fp16_hook", "beside backward")
    assert only("hooks", {"rows": [good, beside]}, *gradients)["outcome"] == "reached"
    assert only("hooks", {"rows": [good, beside]}, *overlap)["outcome"] == "reached"
    assert only("hooks", {"rows": [good]}, *overlap)["outcome"] == "not measured"
    assert only("hooks", {"rows": [{**beside, "percent_beside": None}]}, *overlap)["outcome"] == "not measured"
    assert only("hooks", {"rows": [{**beside, "percent_beside": 49.9}]}, *overlap)["outcome"] == "not reached"
    assert only("hooks", {"rows": [{**good, "num_wrong": 1}]}, *gradients)["outcome"] == "not reached"
    for what, words in (("gradients", gradients), ("overlap", overlap)):
        failed = {"what": what, "hook": "fp16" if what == "gradients" else "fp16_hook", "failure": "CudaError: no"}
        assert only("hooks", {"rows": [failed]}, *words)["outcome"] == "not reached"


def test_share_of_kernels_beside_others() -> None:
    def kernel(name: str, begin: float, end: float, cat: str = "kernel") -> dict[str, Any]:
        return {"name": name, "cat": cat, "ts": begin, "dur": end - begin}

    ours = [kernel("void dcomm::k<F32>()", 10, 20), kernel("void dcomm::k<F32>()", 40, 50)]
    assert hook_trace.share_beside([kernel("gemm", 0, 100)]) is None
    assert hook_trace.share_beside(ours) == 0
    others = [kernel("gemm", 0, 15), kernel("gemm", 12, 15), kernel("add", 45, 90), kernel("cpu", 0, 90, "cpu_op")]
    assert hook_trace.share_beside([*ours, *others]) == 50


def test_correct_figure() -> None:
    rows = [{"check": "failures", "passed": True}, {"check": "split invariance", "passed": True}]
    found = {"rows": rows, "num_compared": 10, "num_differing": 0, "skipped": ["13 ranks"]}
    (figure,) = figures.check_figures("correct", found)
    assert figure["outcome"] == "reached"
    assert "1 cases left out" in figure["measured"]
    assert set(outcomes("correct", {**found, "num_differing": 1}).values()) == {"not reached"}
    assert set(outcomes("correct", {**found, "failure": "CudaError: no"}).values()) == {"not reached"}
    assert set(outcomes("correct", {"rows": [], "failure": "CudaError: no"}).values()) == {"not reached"}
    assert set(outcomes("correct", {**found, "rows": rows[:1]}).values()) == {"not reached"}
    assert set(outcomes("correct", {**found, "num_compared": 0}).values()) == {"not measured"}


def test_figures_of_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    row = {"what": "dcomm", "world_size": 8, "nbytes": 65536, "algo": "auto", "num_wrong": 0}
    for folder, median_us in ((old, 20.0), (new, 7.0)):
        folder.mkdir()
        found = {"date": folder.name, "rows": [{**row, "median_us": median_us}]}
        (folder / "gpu_graphs.json").write_text(json.dumps(found))
    stored = tmp_path / "gpu_figures.json"
    assert gpu_check.main(["figures", str(old), str(new), "--json", str(stored)]) == 0
    printed = capsys.readouterr().out
    assert "     reached  64 KiB, 8 ranks, graph replay: at most 8 us: 7.0 us" in printed
    found = json.loads(stored.read_text())
    assert found["parts"] == {"graphs": {"date": "new"}}
    assert len(found["figures"]) == len(printed.splitlines())


# ---- The shell script ----

STUB = """#!/bin/sh
echo "$*" >> "$STUB_LOG"
case "$*" in
  -c*) echo 90 ;;
  *"gpu_check.py $STUB_FAILS "*) exit 1 ;;
  *"--device cuda"*) [ "$STUB_FAILS" != bench ] || exit 1 ;;
esac
"""


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a run in which python, and compute-sanitizer, only write their arguments down."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("python", "compute-sanitizer"):
        (folder / name).write_text(STUB)
        (folder / name).chmod(0o755)
    yield {
        **os.environ,
        "PATH": f"{folder}:{os.environ['PATH']}",
        "PYTHON": str(folder / "python"),
        "OUT": str(tmp_path / "out"),
        "STUB_LOG": str(tmp_path / "log"),
        "STUB_FAILS": "none",
    }


def run_script(env: dict[str, str]) -> tuple[int, list[str], str]:
    """Exit status, what was called, what was printed."""
    if shutil.which("timeout") is None:
        pytest.skip("no timeout program")
    command = ["bash", str(TOOLS / "gpu_check.sh")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)
    log = Path(env["STUB_LOG"])
    return done.returncode, log.read_text().splitlines() if log.exists() else [], done.stdout + done.stderr


def test_script_runs_the_chosen_parts_only(stub: dict[str, str]) -> None:
    status, calls, printed = run_script({**stub, "PARTS": "graphs lists"})
    assert status == 0, printed
    out = stub["OUT"]
    script = TOOLS / "gpu_check.py"
    assert calls == [
        f"{script} graphs --max-seconds 400 --json {out}/gpu_graphs.json",
        f"{script} lists --max-seconds 400 --json {out}/gpu_lists.json",
        f"{script} figures {out} --json {out}/gpu_figures.json",
    ]


def test_script_runs_all_parts(stub: dict[str, str]) -> None:
    env = {name: value for name, value in stub.items() if name != "PARTS"}
    status, calls, printed = run_script(env)
    assert status == 0, printed
    told = [line.split()[1].rstrip(":") for line in printed.splitlines() if line.startswith("===") and ": exit" in line]
    parts = ["build", "doctor", "correct", "sanitize", "tests", "timing", "graphs", "processes", "hooks"]
    assert told == [*parts, "registered", "lists", "crossovers", "bench"]
    (bench,) = (line for line in calls if "all_reduce.py" in line)
    assert "--device cuda" in bench
    assert "--compare all" in bench
    assert bench.endswith(f"--json {stub['OUT']}/gpu_bench.json --plot {stub['OUT']}/gpu_bench.png")
    tools = [line.split()[1] for line in calls if line.startswith("--tool")]
    assert tools == ["memcheck", "synccheck", "initcheck"]
    assert any(line.startswith("-m pip install") for line in calls)
    assert any(line.startswith("-m pytest") and line.endswith("tests/gpu") for line in calls)


def test_a_failed_part_does_not_stop_the_later_ones(stub: dict[str, str]) -> None:
    status, calls, printed = run_script({**stub, "PARTS": "timing graphs", "STUB_FAILS": "timing"})
    assert status == 1
    assert "=== timing: exit 1" in printed
    assert "=== graphs: exit 0" in printed
    assert len(calls) == 3


def test_a_failed_bench_fails_the_script(stub: dict[str, str]) -> None:
    status, calls, printed = run_script({**stub, "PARTS": "bench", "STUB_FAILS": "bench"})
    assert status == 1
    assert "=== bench: exit 1" in printed
    assert calls[0] == "-c import matplotlib"
    assert len(calls) == 3  # and the figures


def test_the_flags_of_the_bench_are_those_that_it_knows(stub: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    _, calls, _ = run_script({**stub, "PARTS": "bench"})
    (bench,) = (line for line in calls if "all_reduce.py" in line)
    args = importlib.import_module("all_reduce").parse_args(bench.split()[1:])
    assert (args.device, args.compare, args.ranks, args.timeout) == ("cuda", "all", 4, 60.0)
    assert args.max_seconds < 460 - 2 * args.timeout


def test_an_unknown_part_is_refused(stub: dict[str, str]) -> None:
    status, calls, printed = run_script({**stub, "PARTS": "graphs graph"})
    assert (status, calls) == (2, [])
    assert "no part 'graph'" in printed


def test_every_part_ends_within_eight_minutes() -> None:
    """Hard ends of the script, by part, in seconds."""
    text = (TOOLS / "gpu_check.sh").read_text()
    ends = {
        "build": 60 + 410,
        "measure": 460,
        "doctor": 90,
        "sanitize": 3 * 150,
        "tests": 450,
        "bench": 460,
    }
    for written in ("timeout -k 10 60", "timeout -k 10 410", "check 460", "check 90", "check 150", "timeout -k 10 450"):
        assert written in text, written
    assert max(ends.values()) + 10 <= 480
