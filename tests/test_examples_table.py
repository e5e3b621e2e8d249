"""benchmarks/examples.py: which examples it starts, what it does with one that fails, the table of their results."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("torch")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The benchmark, with made-up examples."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    module = importlib.import_module("examples")
    script = (
        "import json, sys\n"
        "path = sys.argv[sys.argv.index('--json') + 1]\n"
        "json.dump({'arguments': sys.argv[1:3]}, open(path, 'w'))\n"
        "sys.exit(int(sys.argv[1]))\n"
    )
    (tmp_path / "one.py").write_text(script)
    monkeypatch.setattr(module, "EXAMPLES", tmp_path)
    return module


def test_what_the_examples_write_is_kept(examples: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "RUNS", ((1, ("one.py", "0", "a")), (1, ("one.py", "3", "b"))))
    stored = tmp_path / "kept.json"
    assert examples.main(["--only", " a", "--json", str(stored)]) == 0
    report = json.loads(stored.read_text())
    assert [each["arguments"] for each in report["examples"]] == [["0", "a"]]
    assert report["command"].startswith("python benchmarks/examples.py --only")
    stored.unlink()
    assert examples.main(["--only", " b", "--json", str(stored)]) == 1  # exit status 3
    assert examples.main(["--only", "nothing", "--json", str(stored)]) == 1
    assert not stored.exists()


def test_every_example_that_trains_is_run(examples: ModuleType) -> None:
    started = {arguments[0] for _, arguments in examples.RUNS}
    assert started == {path.name for path in (ROOT / "examples").glob("train_*.py")} - {
        "train_report.py",
        "train_results.py",
    }
    assert all("--compare" in arguments for _, arguments in examples.RUNS)


def test_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    table = importlib.import_module("make_tables").examples_table
    one: dict[str, Any] = {
        "command": "torchrun --nproc-per-node 2 examples/x.py --compare",
        "ranks": 2,
        "measure": "AUC",
    }
    one |= {"values": {"gloo": 0.75, "dcomm": 0.7512}, "beside": {"mean": 0.5}, "largest_loss_difference": 0.00123}
    machine = {"cpu": "C", "cores": 2, "kernel": "6", "isa": ""}
    report = {"machine": machine, "versions": {}, "date": "D", "commit": "c" * 40, "command": "x", "examples": [one]}
    assert "| `x.py --compare` | 2 | AUC | 0.7500 | 0.7512 | mean 0.5000 | 0.001 |" in list(table(report))
