"""send and recv among processes: both first, speed of small messages, deaths, Ctrl-C."""

from __future__ import annotations

import signal
import time

import pytest
from rank_processes import WORKERS, Ranks, process_values

SCRIPT = WORKERS / "message_ranks.py"


@pytest.mark.parametrize("world_size", [2, 4])
def test_all_send_first_rings_and_pipelines(world_size: int) -> None:
    small, large, one_way = process_values(world_size, SCRIPT, "messages", timeout=120)[0]
    print(f"{world_size} ranks: shift of 8 B {1e6 * small:.0f} us, of 800 kB {1e6 * large:.0f} us; ", end="")
    print(f"pipeline of 8 B: {1e6 * one_way:.1f} us each")


@pytest.mark.parametrize("role", ["recv", "async", "send"])
def test_a_killed_peer_is_named(role: str) -> None:
    with Ranks(3, SCRIPT, "peer_dies", {"role": role}) as ranks:
        for rank in range(3):
            ranks.wait_for_mark(rank, "ready")
        time.sleep(0.3)
        killed_ns = ranks.send(1, signal.SIGKILL)
        pid = ranks.processes[1].pid
        results = ranks.finish(timeout=30)
    for rank in (0, 2):
        assert results[rank].returncode == 0, results[rank]
        value = results[rank].value
        assert value["error"] == "PeerLostError", value
        assert f"rank 1 (pid {pid}) died" in value["text"]
    delay_ms = (results[0].value["at_ns"] - killed_ns) / 1e6
    print(f"killed while rank 0 is in {role}: PeerLostError after {delay_ms:.1f} ms")
    assert 0 < delay_ms < 1000
    assert ("send(" if role == "send" else "recv(") in results[0].value["text"]
    assert "(seen by rank 0)" in results[2].value["text"]  # it waited for rank 0, which is alive


def test_what_a_dead_rank_had_sent_is_received() -> None:
    with Ranks(2, SCRIPT, "published_before_death") as ranks:
        ranks.wait_for_mark(1, "sent")
        ranks.wait_for_mark(0, "ready")
        ranks.send(1, signal.SIGKILL)
        results = ranks.finish(timeout=30)
    value = results[0].value
    assert value["got"] == 3.0, results[0]
    assert value["error"] == "PeerLostError"
    assert "rank 1" in value["text"]


def test_ctrl_c_ends_a_recv() -> None:
    with Ranks(2, SCRIPT, "interrupted") as ranks:
        for rank in range(2):
            ranks.wait_for_mark(rank, "waiting")
        time.sleep(0.3)
        sent_ns = ranks.send(0, signal.SIGINT)
        results = ranks.finish(timeout=20)
    mine, others = (result.value for result in results)
    assert mine["error"] == "KeyboardInterrupt", results[0]
    assert (mine["at_ns"] - sent_ns) / 1e6 < 400
    assert mine["second"] == "AbortedError"
    assert others["error"] == others["second"] == "PeerLostError"
    assert "rank 0" in others["text"]
    assert "was interrupted" in others["text"]


@pytest.mark.parametrize("world_size", [3, 4])
def test_receives_wait_side_by_side(world_size: int) -> None:
    longest = process_values(world_size, SCRIPT, "side_by_side", timeout=120)[0]
    print(f"{world_size} ranks: told to send, and received, within {1e3 * longest:.1f} ms")


def test_a_killed_peer_ends_a_receive_of_any_rank() -> None:
    with Ranks(3, SCRIPT, "peer_dies_beside_any") as ranks:
        for rank in range(3):
            ranks.wait_for_mark(rank, "ready")
        time.sleep(0.3)
        killed_ns = ranks.send(1, signal.SIGKILL)
        results = ranks.finish(timeout=30)
    value = results[0].value
    assert value["error"] == "PeerLostError", results[0]
    assert f"rank 1 (pid {ranks.processes[1].pid}) died" in value["text"]
    assert 0 < (value["at_ns"] - killed_ns) / 1e6 < 1000
    assert results[2].value["error"] == "PeerLostError"


@pytest.mark.parametrize(("world_size", "seed"), [(3, 1), (4, 2)])
def test_storm(world_size: int, seed: int) -> None:
    process_values(world_size, SCRIPT, "storm", {"seed": seed}, timeout=120)
