"""The "dcomm" backend of torch.distributed: every value of every collective, groups, messages, latency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from rank_processes import process_values  # noqa: E402

SCRIPT = Path(__file__).with_name("backend_ranks.py")


def run(world_size: int, function: str, folder: Path, **args: Any) -> list[Any]:
    return process_values(world_size, SCRIPT, function, {"folder": str(folder), **args}, timeout=170)


@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.long)])
@pytest.mark.parametrize(("function", "at_least"), [("reductions", 1000), ("moves", 800), ("premul", 6)])
def test_every_value(tmp_path: Path, world_size: int, function: str, at_least: int) -> None:
    for count, wrong in run(world_size, function, tmp_path):
        assert wrong == []
        assert count >= at_least


def test_groups_meshes_and_objects(tmp_path: Path) -> None:
    for turn in range(2):
        (tmp_path / str(turn)).mkdir()
    for rank, found in enumerate(run(4, "groups", tmp_path)):
        for turn in range(2):
            x, y, parts, ranks, backend, _ = found[f"turn {turn}"]
            assert x == ([2.0] * 3 if rank in (0, 3) else [1.0] * 3)
            assert y == ([1.0] if rank < 2 else [5.0])
            assert parts == [6.0 + 4 * i for i in range(3)]
            assert ranks == [0, 1, 2, 3]
            assert backend == "dcomm"


@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.long)])
def test_messages(tmp_path: Path, world_size: int) -> None:
    for count, wrong in run(world_size, "messages", tmp_path):
        assert wrong == []
        assert count == 9 * 4
