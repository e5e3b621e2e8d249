"""A torch rank that returns from main, without destroy_process_group, while the others wait for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from figures import record_figure
from rank_processes import run_processes

pytest.importorskip("torch")

SCRIPT = Path(__file__).with_name("leaving_ranks.py")


def leave(how: str, times: int, folder: Path) -> None:
    args = {"how": how, "times": times, "folder": str(folder)}
    (result,) = run_processes(1, SCRIPT, "leave_again_and_again", args, timeout=60 + 4 * times)
    assert result.returncode == 0, result
    seconds = []
    for values in result.value:
        assert not [value for value in values if "crash" in value], result  # nor a hang at exit
        assert values[1]["error"] is None
        for rank in (0, 2):
            assert values[rank].get("is_lost"), values
            assert "rank 1" in values[rank]["text"], values
            seconds.append(values[rank]["seconds"])
    record_figure(f"left_without_destroy: {how}", times=times, hangs=0, slowest_s=max(seconds))
    assert max(seconds) <= 2


@pytest.mark.long
def test_exit_without_destroy(tmp_path: Path) -> None:
    leave("backend", 3, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(170)
@pytest.mark.parametrize("part", range(3))
@pytest.mark.parametrize("how", ["backend", "hook"])
def test_exit_without_destroy_30_times(how: str, part: int, tmp_path: Path) -> None:
    leave(how, 10, tmp_path)
