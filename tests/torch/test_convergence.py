"""benchmarks/convergence.py: what it makes of runs, that it goes on where it was, and one run of a tiny model."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("torch")

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--steps", "12", "--eval-every", "6", "--eval-windows", "8", "--layers", "1", "--width", "64", "--heads", "2"]


@pytest.fixture(scope="module")
def convergence() -> ModuleType:
    sys.path.append(str(ROOT / "benchmarks"))
    return importlib.import_module("convergence")


def runs(**losses: list[float]) -> list[dict[str, Any]]:
    return [
        {"wire": wire, "seed": seed, "val_losses": [[5, 9.0], [10, loss]], "train_losses": [2.0, loss], "seconds": 60.0}
        for wire, values in losses.items()
        for seed, loss in enumerate(values)
    ]


def reached(convergence: ModuleType, **losses: list[float]) -> list[bool]:
    return [figure["reached"] for figure in convergence.check_figures(convergence.summarise(runs(**losses)))]


def test_within_the_noise_of_the_seeds(convergence: ModuleType) -> None:
    none = [1.00, 1.02, 1.04]  # deviates by 0.02
    assert reached(convergence, none=none, float16=[1.01, 1.03, 1.05], bfloat16=[1.03, 1.05, 1.07]) == [True, False]
    assert reached(convergence, none=none, float16=[0.97, 0.99, 1.01], bfloat16=[1.0, 1.02, 1.04]) == [False, True]
    assert reached(convergence, none=none, float16=[1.0, 1.02]) == [False, False]  # a seed is missing, and a wire
    assert reached(convergence, none=[1.0], float16=[1.0], bfloat16=[1.0]) == [False, False]  # no noise is known
    row = convergence.summarise(runs(none=none, float16=[1.01, 1.03, 1.05]))[1]
    assert (row["difference"], row["deviation"]) == (pytest.approx(0.01), pytest.approx(0.02))


def test_runs_of_other_settings_are_refused(convergence: ModuleType, tmp_path: Path) -> None:
    args = convergence.parse_args(TINY)
    path = tmp_path / "found.json"
    assert convergence.read_runs(path, convergence.settings_of(args)) == []
    convergence.write(path, {"settings": convergence.settings_of(args), "runs": runs(none=[1.0])})
    assert len(convergence.read_runs(path, convergence.settings_of(args))) == 1
    other = convergence.parse_args([*TINY, "--lr", "0.1"])
    with pytest.raises(ValueError, match=r"has runs with lr=0\.002, these would have 0\.1: give the settings"):
        convergence.read_runs(path, convergence.settings_of(other))


def test_a_table(convergence: ModuleType, tmp_path: Path) -> None:
    sys.path.append(str(ROOT / "tools"))
    make_tables = importlib.import_module("make_tables")
    rows = convergence.summarise(runs(none=[1.0, 1.02], float16=[1.01, 1.03]))
    machine = {"cpu": "a CPU", "cores": 2, "kernel": "6", "isa": ""}
    report = {
        "rows": rows,
        "bigram": 2.0,
        "parameters": 1234,
        "settings": {"steps": 10},
        "ranks": 2,
        "machine": machine,
    }
    report |= {"versions": {"torch": "2"}, "date": "today", "commit": "c" * 40, "command": "a command"}
    lines = list(make_tables.convergence_table(report))
    assert lines[3] == "| float16 | 2 | 1.0200 | 0.0141 | +0.0100 | 60 s |"
    assert lines[-1].startswith("GPT, 1,234 parameters, 10 steps; 2 ranks, 1 thread each; a CPU, 2 cores")


@pytest.mark.long
@pytest.mark.timeout(300)
def test_it_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    (tmp_path / "text").write_text("to be or not to be, " * 1000)
    command = [sys.executable, str(ROOT / "benchmarks" / "convergence.py"), *TINY, "--data", str(tmp_path / "text")]
    command += ["--json", str(path), "--seeds", "3", "--wires", "none;bfloat16"]

    def run(*more: str) -> list[dict[str, Any]]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, *more], env=environment, capture_output=True, text=True, timeout=140, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        found: list[dict[str, Any]] = json.loads(path.read_text())["runs"]
        return found

    (first,) = run("--max-runs", "1")
    second = run()
    assert second[0] == first  # not made again
    assert [one["wire"] for one in second] == ["none", "bfloat16"]
    assert [len(one["train_losses"]) for one in second] == [2, 2]
    assert second[0]["train_losses"] == pytest.approx(second[1]["train_losses"], abs=1e-2)
    assert second[0] | {"wire": "", "seconds": 0} != second[1] | {"wire": "", "seconds": 0}  # the wire was used
