"""A rank that is stopped, slow, or keeps its interpreter to itself: the others wait, or say what it is doing."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from figures import record_figure
from rank_processes import Ranks, process_values, run_processes

SCRIPT = Path(__file__).with_name("frozen_ranks.py")


def stop_for_good(timeout: float, tmp_path: Path) -> None:
    """Rank 2 of 3 is stopped while they reduce; what the others say, and when."""
    env = {"DCOMM_TEST_RELEASE": str(tmp_path / "release")}
    with Ranks(3, SCRIPT, "reduce_until_told", {"timeout": timeout}, env) as ranks:
        for rank in range(3):
            ranks.wait_for_mark(rank, "reducing")
        ranks.send(2, signal.SIGSTOP)
        for rank in (0, 1):
            ranks.processes[rank].wait(timeout + 20)
        ranks.send(2, signal.SIGCONT)
        results = ranks.finish(timeout=20)
        pid = ranks.processes[2].pid
    for rank in (0, 1):
        value = results[rank].value
        assert value["error"] == "CollectiveTimeoutError", value
        text = value["text"]
        # The rank that waits for it reports it as rank 2; both name the same one.
        assert f"no answer from rank 2 (pid {pid}), which is alive, within" in text
        assert f"it is stopped (state T): continue it with kill -CONT {pid}" in text
        number = re.search(rf"rank {rank} in #(\d+)", text)
        assert number is not None, text
        positions = {int(r): int(seq) for r, seq in re.findall(r"rank (\d)(?: \(gone\))? (?:in|finished) #(\d+)", text)}
        assert positions[0] == positions[1] == int(number[1]), text
        assert positions[1] - positions[2] in (0, 1), text
    waits = [results[rank].value["waited_s"] for rank in (0, 1)]
    record_figure("stopped_rank", timeout_s=timeout, reported_s=max(waits))
    # One of the two reports it; the other may have begun its wait a little later.
    assert timeout <= max(waits)
    assert max(waits) <= timeout + 0.5


def test_a_stopped_rank_is_reported_as_alive_and_stopped(tmp_path: Path) -> None:
    stop_for_good(1.0, tmp_path)


@pytest.mark.long
def test_a_stopped_rank_is_reported_after_three_seconds(tmp_path: Path) -> None:
    stop_for_good(3.0, tmp_path)


def stop_and_continue(key: str, times: int, tmp_path: Path) -> None:
    release = tmp_path / "release"
    rng = np.random.default_rng(times)
    with Ranks(3, SCRIPT, "reduce_until_told", {"timeout": 20.0}, {"DCOMM_TEST_RELEASE": str(release)}) as ranks:
        for rank in range(3):
            ranks.wait_for_mark(rank, "reducing")
        for i in range(times):
            ranks.send(i % 3, signal.SIGSTOP)
            time.sleep(rng.uniform(0, 0.15))
            ranks.send(i % 3, signal.SIGCONT)
            time.sleep(rng.uniform(0, 0.05))
        release.touch()
        results = ranks.finish(timeout=40)
    assert [result.value and result.value["error"] for result in results] == [None] * 3, "\n".join(map(str, results))
    steps = results[0].value["steps"]
    record_figure(key, times=times, harmless=times, sums=steps)
    assert steps > times // 2


def test_a_rank_that_is_continued_harms_nobody(tmp_path: Path) -> None:
    stop_and_continue("continued_rank", 10, tmp_path)


@pytest.mark.long
def test_a_rank_that_is_continued_100_times_harms_nobody(tmp_path: Path) -> None:
    stop_and_continue("many_continued_ranks", 100, tmp_path)


def test_slow_is_fine_and_warned_of_once() -> None:
    timeout = 2.0
    args = {"late": 1, "how": "sleeps", "seconds": 0.8 * timeout, "timeout": timeout}
    results = run_processes(3, SCRIPT, "one_rank_is_late", args, env={"DCOMM_WARN_S": "0.5"})
    assert [result.value and result.value["error"] for result in results] == [None] * 3, "\n".join(map(str, results))
    for rank in (0, 2):
        lines = results[rank].err.splitlines()
        assert len(lines) == 1, lines
        assert re.match(rf"dcomm: rank {rank} has waited \d+ s in all_reduce #\d+ for rank 1; positions: ", lines[0])
    assert results[1].err == ""
    waited = results[0].value["waited_s"]
    record_figure("slow_rank", late_s=0.8 * timeout, timeout_s=timeout, warnings=1, waited_s=waited)


def late_values(how: str, seconds: float, timeout: float) -> list[dict[str, Any]]:
    args = {"late": 1, "how": how, "seconds": seconds, "timeout": timeout}
    values: list[dict[str, Any]] = process_values(3, SCRIPT, "one_rank_is_late", args)
    return values


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("holds the GIL", r"its main thread is not progressing \(state S\)"),
        ("computes", r"its main thread runs \(state R\)"),
    ],
)
def test_the_error_says_what_the_rank_that_is_late_does(how: str, said: str) -> None:
    timeout = 0.8
    values = late_values(how, timeout + 1.0, timeout)
    texts = [values[rank]["text"] for rank in (0, 2)]
    for rank in (0, 2):
        assert values[rank]["error"] == "CollectiveTimeoutError", values
        assert values[rank]["waited_s"] <= timeout + 0.5
    # A rank that computes is seen waiting for a CPU now and then, which is state R as well.
    assert all(re.search(said, text) for text in texts), texts
    record_figure(f"late_rank: {how}", timeout_s=timeout, reported_s=max(values[rank]["waited_s"] for rank in (0, 2)))


def test_what_is_queued_goes_on_while_its_rank_holds_the_gil() -> None:
    values = late_values("queued", 1.5, 10.0)
    assert [value["error"] for value in values] == [None] * 3, values
    waited = max(values[rank]["waited_s"] for rank in (0, 2))
    record_figure("queued_behind_gil", held_s=1.5, waited_s=waited)
    assert waited < 1.0
