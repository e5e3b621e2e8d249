"""Ctrl-C at any moment: the rank gets its KeyboardInterrupt soon, the others an error that names it; nobody hangs."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import numpy as np
import pytest
from figures import record_figure
from rank_processes import Ranks

SCRIPT = Path(__file__).with_name("interrupt_ranks.py")
MODES = ("sync", "async", "sleepy")


def interrupt(key: str, times: int) -> None:
    world_size = 3
    rng = np.random.default_rng(times)
    modes = [MODES[number % len(MODES)] for number in range(times)]
    sent_ns, victims = [], []
    with Ranks(world_size, SCRIPT, "interrupted_in_rounds", {"modes": modes}) as ranks:
        for number in range(times):
            for rank in range(world_size):
                ranks.wait_for_mark(rank, f"round-{number}")
            time.sleep(rng.uniform(0, 0.08))
            victims.append(int(rng.integers(world_size)))
            sent_ns.append(ranks.send(victims[-1], signal.SIGINT))
        results = ranks.finish(timeout=40)
    assert [result.returncode for result in results] == [0] * world_size, "\n".join(map(str, results))
    own_ms, peers_ms = [], []
    for number in range(times):
        for rank, result in enumerate(results):
            value = result.value[number]
            delay_ms = (value["at_ns"] - sent_ns[number]) / 1e6
            if rank == victims[number]:
                assert value["error"] == "KeyboardInterrupt", (number, modes[number], value)
                own_ms.append(delay_ms)
            else:
                assert value["error"] in ("PeerLostError", "AbortedError"), (number, modes[number], value)
                assert f"rank {victims[number]}" in value["text"], (number, value)
                peers_ms.append(delay_ms)
    worst_ms, peers_worst_ms = max(own_ms), max(peers_ms)
    record_figure(
        key, times=times, median_ms=float(np.median(own_ms)), worst_ms=worst_ms, peers_worst_ms=peers_worst_ms, hangs=0
    )
    assert max(own_ms) <= 200
    assert max(peers_ms) <= 1000


def test_ctrl_c_at_random_moments() -> None:
    interrupt("interrupts", 9)


@pytest.mark.long
def test_ctrl_c_at_100_random_moments() -> None:
    interrupt("many_interrupts", 100)
