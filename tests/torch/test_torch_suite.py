"""The runner of PyTorch's own tests notices a backend that is wrong, hangs, dies or does nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("expecttest")

FOLDER = Path(__file__).parents[1] / "torch_suite"


def run(folder: Path, world_size: str, *args: str) -> tuple[int, dict[str, Any]]:
    """The exit status and the results with so many ranks."""
    results = folder / "results.json"
    command = [sys.executable, str(FOLDER / "run.py"), "--world-sizes", world_size, "--json", str(results), *args]
    status = subprocess.run(command, timeout=115, capture_output=True).returncode
    return status, json.loads(results.read_text())["backends"]["dcomm"][world_size]


@pytest.mark.long
@pytest.mark.parametrize(
    ("mutant", "error"),
    [
        ("wrong", "AssertionError"),
        ("hang", "terminated or timed out"),
        ("exit", "exit codes of the ranks: [0, 7]"),
        ("idle", "passed without one operation on dcomm"),
    ],
)
def test_a_broken_backend_is_noticed(tmp_path: Path, mutant: str, error: str) -> None:
    status, found = run(tmp_path, "2", "--only", "test_broadcast$", "--deadline", "10", "--mutant", mutant)
    assert status == 1
    assert found["counts"]["failed"] == 1
    assert error in found["failed"]["test_broadcast"]


@pytest.mark.long
def test_verdicts(tmp_path: Path) -> None:
    reference = tmp_path / "reference.json"
    passed = dict.fromkeys(("test_broadcast", "test_broadcast_cuda"))
    reference.write_text(json.dumps({"backends": {"gloo": {"2": {"passed": passed}}}}))
    only = "^test_(broadcast|broadcast_cuda|get_rank|monitored_barrier_gloo|all_to_all)$"
    status, found = run(tmp_path, "2", "--only", only, "--reference", str(reference))
    assert found["passed"]["test_broadcast"] > 0
    assert found["passed"]["test_all_to_all"] > 0
    assert found["passed"]["test_get_rank"] is None
    assert list(found["not applicable"]) == ["test_monitored_barrier_gloo"]
    # Made up above: gloo does not pass it here either.
    assert list(found["failed"]) == ["test_broadcast_cuda"]
    assert status == 1


@pytest.mark.long
def test_what_is_not_applicable_passes_with_dcomms_function(tmp_path: Path) -> None:
    only = "^test_monitored_barrier_(gloo|gloo_subgroup|failure_order|wait_all_ranks)$"
    status, found = run(tmp_path, "4", "--only", only, "--own-monitored-barrier")
    assert len(found["passed"]) == 4
    assert status == 0
