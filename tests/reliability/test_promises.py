"""docs/promises.md names tests that exist, and its check can fail."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    spec = importlib.util.spec_from_file_location("make_promises", ROOT / "tools" / "make_promises.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("promises", None)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """What the tool reads and writes."""
    for path in ("tests", "docs", "benchmarks/results"):
        shutil.copytree(ROOT / path, tmp_path / path, ignore=shutil.ignore_patterns("__pycache__", "*.png", "*.svg"))
    return tmp_path


def test_the_page_is_up_to_date(tool: ModuleType) -> None:
    assert tool.main(["--check"]) == 0


def test_a_test_that_is_gone_is_named(tool: ModuleType, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copy / "tests" / "test_import.py"
    path.write_text(path.read_text().replace("def test_needs_numpy_only", "def test_needs_numpy_alone"))
    assert tool.main(["--check", "--root", str(copy)]) == 1
    assert "tests/test_import.py::test_needs_numpy_only does not exist" in capsys.readouterr().err


def test_another_figure_makes_the_page_stale(tool: ModuleType, copy: Path) -> None:
    results = copy / "benchmarks" / "results" / "reliability.json"
    known = json.loads(results.read_text())
    known["many_bits_on_every_rank"]["figures"]["reductions"] = 12345
    results.write_text(json.dumps(known))
    assert tool.main(["--check", "--root", str(copy)]) == 1
    assert tool.main(["--root", str(copy)]) == 0
    assert tool.main(["--check", "--root", str(copy)]) == 0
    assert "12345 random reductions" in (copy / "docs" / "promises.md").read_text()


def test_a_figure_without_its_name_is_refused(tool: ModuleType) -> None:
    results = {"soak": {"figures": {"minutes": 3}, "date": "2026-01-01", "cpus": 2}}
    assert tool.figure_cells("soak: {minutes} minutes", results) == ("3 minutes", "2026-01-01, 2 CPUs")
    with pytest.raises(tool.PromiseError, match="figure soak has no 'hours': expected one of minutes"):
        tool.figure_cells("soak: {hours} hours", results)
