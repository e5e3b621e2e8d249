"""benchmarks/torch_backend.py as it is run, and what it makes of what it measured."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch")

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TOOLS = BENCHMARKS.parent / "tools"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("torch_backend")


def found(benchmark: ModuleType, functional: float, overlapped: float, blocking: float) -> dict[str, Any]:
    latency = {"all_reduce": [5.0, 9.0, 5.0], "async": [6.0] * 3, "functional": [functional] * 3}
    latency[benchmark.OPERATORS] = [11.0] * 3
    slow, longer = {name: [10 * us for us in times] for name, times in latency.items()}, benchmark.LONGER
    steps = {benchmark.OVERLAPPED: 104.0, benchmark.BLOCKING: 110.0}
    steps |= {longer[benchmark.OVERLAPPED]: overlapped, longer[benchmark.BLOCKING]: blocking}
    return {
        "latency": {"dcomm": latency, "gloo": slow, "no-op": latency},
        "steps": {name: [ms] * 3 for name, ms in steps.items()},
    }


@pytest.mark.parametrize(
    ("functional", "overlapped", "blocking", "reached"),
    [
        (11.0, 112.0, 160.0, [True, True, True, True, True]),
        (13.0, 112.0, 160.0, [True, False, True, True, True]),
        (11.0, 118.0, 160.0, [True, True, True, False, True]),
        (11.0, 104.0, 110.0, [True, True, True, False, True]),  # nobody waited in the calling thread either
    ],
)
def test_figures(
    benchmark: ModuleType, functional: float, overlapped: float, blocking: float, reached: list[bool]
) -> None:
    summary = benchmark.summarise(found(benchmark, functional, overlapped, blocking))
    figures = benchmark.check_figures(summary, 5)
    assert [figure["reached"] for figure in figures] == reached
    assert figures[0]["measured"].startswith("5.0 us (gloo 50, its best round 50;")


def test_the_slowest_rank_counts(benchmark: ModuleType) -> None:
    assert benchmark.slowest([{"a": [1.0, 4.0]}, {"a": [2.0, 3.0]}]) == {"a": [2.0, 4.0]}


@pytest.mark.long
def test_it_runs_and_its_table_has_a_column_for_each_group(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "found.json"
    assert benchmark.main(["--rounds", "1", "--steps", "1", "--json", str(path)]) == 0
    report = json.loads(path.read_text(encoding="utf-8"))
    assert list(report["latency_us"]) == ["dcomm", "gloo", "no-op"]
    assert len(report["step_ms"]) == 6
    assert all(ms > 0 for ms in report["step_ms"].values())
    monkeypatch.syspath_prepend(TOOLS)
    lines = list(importlib.import_module("make_tables").backend_table(report))
    assert lines[0] == "|  | dcomm | gloo | no-op |"
    assert sum(line.startswith("| ") for line in lines) == 1 + 8 + 6


def test_a_group_that_sums_wrongly_is_noticed(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = importlib.import_module("torch_backend_ranks")
    dist = torch.distributed
    dist.init_process_group("dcomm", store=dist.HashStore(), rank=0, world_size=1)
    try:
        ranks.check(dist.group.WORLD)
        monkeypatch.setattr(dist, "all_reduce", lambda x, **how: x.mul_(2))
        with pytest.raises(RuntimeError, match="wrong results"):
            ranks.check(dist.group.WORLD)
    finally:
        dist.destroy_process_group()
