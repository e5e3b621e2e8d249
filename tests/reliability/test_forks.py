"""Data-loader workers forked from a rank: they may not use its communicator, hold nothing of it, and harm nobody."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from figures import record_figure
from rank_processes import Ranks, process_values

pytest.importorskip("torch")

SCRIPT = Path(__file__).with_name("loader_ranks.py")


def check(value: dict[str, Any], steps: int) -> None:
    assert value["steps"] >= steps
    assert len(value["workers"]) == 4
    assert value["of_dcomm"] >= 3
    assert value["held_by_workers"] == 0
    assert value["refused"] == 2 * value["steps"]  # in each sample's worker


def test_forked_workers_feed_a_rank_until_another_one_is_killed() -> None:
    with Ranks(2, SCRIPT, "train", {"steps": 100_000}) as ranks:
        for rank in range(2):
            ranks.wait_for_mark(rank, "training", timeout=80)
        pid = ranks.processes[1].pid
        sent_ns = ranks.send(1, signal.SIGKILL)
        ranks.processes[0].wait(30)
        result = ranks.result(0)
    assert result.returncode == 0, result
    value = result.value
    check(value, 50)
    assert value["error"] == "PeerLostError", value
    assert f"rank 1 (pid {pid}) died" in value["text"]
    delay_ms = (value["at_ns"] - sent_ns) / 1e6
    record_figure("forked_workers", steps=value["steps"], crashes=0, held=value["held_by_workers"], lost_ms=delay_ms)
    assert delay_ms < 1000


@pytest.mark.long
@pytest.mark.timeout(170)
def test_forked_workers_feed_the_ranks_for_1000_steps() -> None:
    steps = 1000
    for value in process_values(2, SCRIPT, "train", {"steps": steps}, timeout=300):
        assert value["error"] is None
        check(value, steps)
    record_figure("many_forked_workers", steps=steps, crashes=0)
