"""What goes wrong for process groups in Python: a test for each trap, which fails with the cure removed.

Numbers are those of docs/torch_backend.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from rank_processes import process_values, run_processes  # noqa: E402

SCRIPT = Path(__file__).with_name("backend_trap_ranks.py")
EXPECTED: dict[str, Any] = {
    "construct": 2,
    "names": list(range(8)),
    "gather_out": [0.0] * 3 + [1.0] * 3,
    "compiled": True,
    "callbacks": 6.0,
}


def run(function: str, folder: Path, env: dict[str, str] | None = None, **args: Any) -> list[Any]:
    return process_values(2, SCRIPT, function, {"folder": str(folder), **args}, env=env, timeout=60)


def fails(function: str, folder: Path) -> str:
    """What the ranks say when the cure is removed."""
    results = run_processes(2, SCRIPT, function, {"folder": str(folder), "without": True}, timeout=60)
    assert all(result.returncode != 0 for result in results), results
    return results[0].err


@pytest.mark.parametrize("function", EXPECTED)
def test_with_the_cure(tmp_path: Path, function: str) -> None:
    assert run(function, tmp_path, without=False) == [EXPECTED[function]] * 2


@pytest.mark.long
@pytest.mark.parametrize(
    ("function", "text"),
    [
        ("construct", "alias instance"),
        ("names", "name"),
        ("gather_out", "No backend type"),
        ("compiled", "nregistered"),
        ("callbacks", "imed out"),
    ],
)
def test_without_the_cure(tmp_path: Path, function: str, text: str) -> None:
    assert text in fails(function, tmp_path)


@pytest.mark.long
def test_callbacks_of_several_buckets_in_order(tmp_path: Path) -> None:
    one, other = run("power_sgd", tmp_path, without=False)
    assert one == other
    assert len(one) == 16


@pytest.mark.long
def test_exit_without_destroy(tmp_path: Path) -> None:
    for result in run_processes(2, SCRIPT, "leave_late", {"folder": str(tmp_path), "without": False}, timeout=60):
        assert result.returncode == 0, result
        assert "terminate" not in result.err
        assert "dcomm-completer" in result.value


def test_a_destroyed_group_is_freed_and_raises(tmp_path: Path) -> None:
    for freed, errors, threads, _ in run("references", tmp_path, without=False):
        assert freed == [True, True]
        assert len(errors) == 2
        assert all("closed" in text for text in errors)
        assert threads == []


@pytest.mark.long
def test_a_reference_keeps_a_destroyed_group(tmp_path: Path) -> None:
    for freed, _, _, _ in run("references", tmp_path, without=True):
        assert freed == [False, True]


@pytest.mark.parametrize(
    "backend", [pytest.param("cpu:dcomm,cuda:dcomm", marks=pytest.mark.long), "cpu:gloo,cuda:dcomm"]
)
def test_mixed_backends(tmp_path: Path, backend: str) -> None:
    for x, name, kind in run("mixed", tmp_path, env={"GLOO_SOCKET_IFNAME": "lo"}, backend=backend):
        assert x == [2.0] * 3
        assert name == backend
        assert kind == "ProcessGroup"


@pytest.mark.long
def test_detail_debugging(tmp_path: Path) -> None:
    assert run("debug", tmp_path, env={"TORCH_DISTRIBUTED_DEBUG": "DETAIL"}) == [["DETAIL", "ProcessGroup"]] * 2


@pytest.mark.long
def test_the_groups_timeout_holds_where_a_call_names_none(tmp_path: Path) -> None:
    error, seconds = run("timeouts", tmp_path, without=False)[0]
    assert "rank 1" in error
    assert 1.4 < seconds < 3.5


@pytest.mark.long
def test_a_longer_timeout_waits(tmp_path: Path) -> None:
    assert run("timeouts", tmp_path, without=True)[0][0] is None


@pytest.mark.long
def test_forked_workers_beside_a_group(tmp_path: Path) -> None:
    assert run("workers", tmp_path) == [[1, 2.0 * 2 * sum(range(64))]] * 2
