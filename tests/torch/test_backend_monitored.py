"""The monitored barrier of a "dcomm" group: it names who does not come, and breaks nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from rank_processes import process_values

SCRIPT = Path(__file__).with_name("monitored_ranks.py")


@pytest.mark.parametrize(
    ("late", "wait_all_ranks", "named"),
    [
        pytest.param([2], False, "2", marks=pytest.mark.long),
        pytest.param([1, 2], False, "1", marks=pytest.mark.long),
        ([1, 2], True, "1, 2"),
    ],
)
def test_the_late_are_named(tmp_path: Path, late: list[int], wait_all_ranks: bool, named: str) -> None:
    args = {"folder": str(tmp_path), "late": late, "wait_all_ranks": wait_all_ranks}
    for rank, told in enumerate(process_values(4, SCRIPT, "barriers", args, timeout=110)):
        assert told[0] is None
        if rank == 0:
            assert (
                f"{'Ranks' if ',' in named else 'Rank'} {named} failed to pass monitoredBarrier in 3000 ms" in told[1]
            )
        else:
            assert f"Rank {rank} successfully reached monitoredBarrier" in told[1]
            assert f"given up on rank {named}" in told[1]
        assert told[2:5] == [None, None, "4.0"]
        if rank == 0:  # a barrier that all have passed leaves nothing in the store once they have come to the next
            assert told[5:] == ["False", "True"]
