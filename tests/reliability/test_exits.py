"""Ranks that leave: right after their part is done they harm nobody, and amid a wait the others learn how they went."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from figures import record_figure
from rank_processes import WORKERS, Ranks

STORM = Path(__file__).with_name("exit_storm.py")


def storm(when: str, runs: int, limit_s: float, key: str) -> dict[str, Any]:
    command = [sys.executable, str(STORM), when, str(runs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    record_figure(key, **summary)
    assert summary["runs"] == runs
    assert summary["problems"] == 0
    return summary


def test_an_exit_right_after_the_last_operation() -> None:
    storm("after", 40, 100, "exits_in_the_test_command")


@pytest.mark.long
@pytest.mark.timeout(400)
def test_an_exit_right_after_the_last_operation_1000_times() -> None:
    storm("after", 1000, 380, "exits_right_after_the_last_operation")


def test_the_others_learn_how_a_rank_left() -> None:
    """Closed, returned from main, exit codes, killed, SIGTERM: told within 1 s, and nobody hangs."""
    summary = storm("amid", 32, 100, "exits_amid_a_wait")
    assert summary["max_ms"] < 1000
    assert summary["untold"] <= 6  # of 64 ranks, about


def test_sigterm_is_told() -> None:
    """A rank without a handler of its own ends of it, which a shell calls 143; the others are told so within 1 s."""
    with Ranks(4, WORKERS / "death_ranks.py", "storm", {"mode": "sync", "seed": 18}) as ranks:
        for rank in range(4):
            ranks.wait_for_mark(rank, "storming")
        pid = ranks.processes[3].pid
        sent_ns = ranks.send(3, signal.SIGTERM)
        *others, ended = ranks.finish(timeout=20)
    assert ended.returncode == -signal.SIGTERM, ended
    for result in others:
        assert result.value["error"] == "PeerLostError", result
        assert (result.value["rank"], result.value["pid"]) == (3, pid), result
        assert f"rank 3 (pid {pid}) died (it was killed by SIGTERM)" in result.value["text"], result
    told_ms = max(result.value["at_ns"] - sent_ns for result in others) / 1e6
    record_figure("sigterm", ranks=len(others), told_ms=told_ms)
    assert told_ms < 1000
