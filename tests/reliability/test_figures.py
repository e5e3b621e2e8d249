"""What the other tests here measure is kept where it is asked for, whoever writes at the same time."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest
from figures import record_figure


def test_figures_are_printed_and_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results" / "figures.json"
    record_figure("storm", kills=1)  # nobody asks for it: printed alone
    assert not path.exists()
    monkeypatch.setenv("DCOMM_RELIABILITY_JSON", str(path))
    record_figure("storm", kills=2, p99_ms=41.23456)
    record_figure("soak", hours=0.5)
    record_figure("storm", kills=3, p99_ms=40.0)
    known = json.loads(path.read_text())
    assert {key: entry["figures"] for key, entry in known.items()} == {
        "storm": {"kills": 3, "p99_ms": 40.0},
        "soak": {"hours": 0.5},
    }
    assert known["storm"]["test"].endswith("test_figures.py::test_figures_are_printed_and_merged")
    assert known["storm"]["date"].count("-") == 2
    assert "figure storm: kills=2, p99_ms=41.23" in capsys.readouterr().out


def write_many(path: str, first: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DCOMM_RELIABILITY_JSON", path)
        for number in range(first, first + 20):
            record_figure(f"key {number}", number=number)


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=write_many, args=(str(path), 100 * index)) for index in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(20)
        assert process.exitcode == 0
    assert len(json.loads(path.read_text())) == 80
