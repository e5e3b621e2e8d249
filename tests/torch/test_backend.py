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

        for turn in range(2):
            check_rarer_calls(rank, found[f"turn {turn}, rarer calls"])


def check_rarer_calls(rank: int, found: dict[str, Any]) -> None:
    assert found["any source"] == ([[], [10.0, 11.0], [20.0, 21.0], [30.0, 31.0]] if rank == 0 else [])
    gathered, scattered, reduced, outs = found["coalesced"]
    assert gathered == [[1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0], [0.0, 10.0, 20.0, 30.0]]
    assert scattered == [[6.0 + 4 * rank], [4.0, 4.0]]
    assert reduced == [[10.0, 10.0], [60.0]]
    assert outs == [[[peer + 1.0] * 2, [10.0 * peer]] for peer in range(4)]
    objects = [[{"rank": peer} for peer in range(4)] if rank == 1 else None, [f"for {rank}"]]
    assert found["objects"] == [*objects, [["a", 1]] if rank == 1 else [None]]
    assert found["handle"] == [[True] * 5] * 2
    assert "use torch.distributed.new_group" in found["split"]
    if rank == 0:
        text, seconds = found["own limit"]
        assert "rank 1" in text
        assert 0.25 < seconds < 10


@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.long)])
def test_messages(tmp_path: Path, world_size: int) -> None:
    for count, wrong in run(world_size, "messages", tmp_path):
        assert wrong == []
        assert count == 9 * 4
