"""tools/gpu_check, as far as a machine without a GPU can tell: arguments, budgets, reports, exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gpu_checks import MIB, TOOLS, figures, gpu_check, outcomes, report

from dcomm import _core
from dcomm.bench.cuda.floor import floor_us

pytestmark = pytest.mark.long


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
        *("correct", "timing", "graphs", "crossovers", "processes", "hooks", "overlap", "lists", "registered"),
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
        "import gpu.registered, gpu.overlap"
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
