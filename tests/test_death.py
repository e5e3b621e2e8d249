"""A rank that dies, leaves or is interrupted: every wait of the others ends, soon, and names it."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rank_processes import WORKERS, Ranks, process_values, run_processes

SCRIPT = WORKERS / "death_ranks.py"
LOST_WITHIN_S = 2.0
NUM_KILLS = 10


def kill_in_storm(world_size: int, victims: list[int], mode: str, seed: int) -> tuple[list[float], list[Any]]:
    """Milliseconds from the first SIGKILL to the error on each survivor, and what the survivors say."""
    rng = np.random.default_rng(seed)
    with Ranks(world_size, SCRIPT, "storm", {"mode": mode, "seed": seed}) as ranks:
        for rank in range(world_size):
            ranks.wait_for_mark(rank, "storming")
        time.sleep(rng.uniform(0, 0.05))
        pids = [process.pid for process in ranks.processes]
        killed_ns = [ranks.send(victim, signal.SIGKILL) for victim in victims]
        results = ranks.finish(timeout=20)
    delays_ms, values = [], []
    for rank, result in enumerate(results):
        if rank in victims:
            assert result.returncode == -signal.SIGKILL, result
            continue
        assert result.returncode == 0, result
        value = result.value
        assert value["error"] == "PeerLostError", value
        named = [victim for victim in victims if f"rank {victim} (pid {pids[victim]}) died" in value["text"]]
        assert named, value
        assert f": rank {value['rank']} (pid {value['pid']}) died" in value["text"], value
        assert f"after completing #{value['last_seq']}" in value["text"], value
        assert value["pid"] == pids[value["rank"]], value
        reason, pointer, rest = value["text"].partition(" (see docs/errors.md#peerlosterror)")
        assert not rest, value
        # The first reason again, and nothing but who has died since.
        since = "|".join(rf"; rank {victim} \(pid {pids[victim]}\) died too" for victim in victims)
        assert re.fullmatch(re.escape(reason) + f"({since})*" + re.escape(pointer), value["second"]), value
        assert value["num_operations"] >= 20
        delays_ms.append((value["at_ns"] - min(killed_ns)) / 1e6)
        values.append(value)
    return delays_ms, values


def report(what: str, delays_ms: list[float]) -> None:
    print(f"{what}: error on survivors after median {np.median(delays_ms):.1f} ms, worst {max(delays_ms):.1f} ms")
    assert max(delays_ms) < 1e3 * LOST_WITHIN_S


def test_a_killed_rank_is_named_by_every_survivor() -> None:
    before = sorted(os.listdir("/dev/shm"))
    delays_ms: list[float] = []
    for seed in range(NUM_KILLS):
        delays_ms += kill_in_storm(4, [seed % 4], "sync", seed)[0]
    assert len(delays_ms) == 3 * NUM_KILLS
    report(f"{NUM_KILLS} kills of 1 of 4", delays_ms)
    assert [name for name in set(os.listdir("/dev/shm")) - set(before) if "dcomm" in name] == []


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_many_kills() -> None:
    delays_ms: list[float] = []
    for seed in range(100, 300):
        delays_ms += kill_in_storm(4, [seed % 4], ("sync", "async")[seed % 2], seed)[0]
    report("200 kills of 1 of 4", delays_ms)


@pytest.mark.parametrize("victims", [[0, 2], [1, 2, 3]])
def test_several_ranks_killed_at_once(victims: list[int]) -> None:
    report(f"ranks {victims} of 4 killed", kill_in_storm(4, victims, "sync", 31)[0])


def test_killed_with_asynchronous_operations_queued() -> None:
    report("killed with queued operations", kill_in_storm(3, [0], "async", 17)[0])


def test_killed_while_a_forked_child_lives_on() -> None:
    """The child would keep the victim's sockets open for 8 s."""
    report("killed, forked child alive", kill_in_storm(3, [1], "forked", 5)[0])


@pytest.mark.parametrize("how", ["sync", "work", "queued"])
def test_ctrl_c_ends_a_wait(how: str, tmp_path: Path) -> None:
    """Rank 0 is interrupted, rank 2 waits with it, rank 1 comes later and meets the reason."""
    release = tmp_path / "release"
    args = {"how": how, "absent": 1}
    with Ranks(3, SCRIPT, "wait_for_a_peer_that_never_calls", args, {"DCOMM_TEST_RELEASE": str(release)}) as ranks:
        for rank in range(3):
            ranks.wait_for_mark(rank, "waiting")
        time.sleep(0.25)
        sent_ns = ranks.send(0, signal.SIGINT)
        time.sleep(0.6)
        release.touch()
        results = ranks.finish(timeout=20)
    interrupted, late, waiting = (result.value for result in results)
    assert [result.returncode for result in results] == [0, 0, 0], "\n".join(map(str, results))
    assert interrupted["error"] == "KeyboardInterrupt"
    delay_ms = (interrupted["at_ns"] - sent_ns) / 1e6
    peer_ms = (waiting["at_ns"] - sent_ns) / 1e6
    print(f"Ctrl-C in a wait ({how}): KeyboardInterrupt after {delay_ms:.0f} ms, peer's error after {peer_ms:.0f} ms")
    assert delay_ms < 400
    assert peer_ms < 1000
    assert interrupted["second"].startswith("AbortedError")
    kinds = {"PeerLostError"} if how == "sync" else {"PeerLostError", "AbortedError"}
    for value in (late, waiting):
        assert value["error"] in kinds, value
        assert "rank 0" in value["text"]


def test_ctrl_c_ends_init() -> None:
    with Ranks(1, SCRIPT, "interrupted_in_init") as ranks:
        ranks.wait_for_mark(0, "waiting")
        time.sleep(0.5)
        sent_ns = ranks.send(0, signal.SIGINT)
        (result,) = ranks.finish(timeout=20)
    assert result.returncode == 0, result
    assert result.value["error"] == "KeyboardInterrupt"
    print(f"Ctrl-C in init: KeyboardInterrupt after {(result.value['at_ns'] - sent_ns) / 1e6:.0f} ms")
    assert (result.value["at_ns"] - sent_ns) / 1e6 < 400


@pytest.mark.parametrize(
    ("how", "returncode", "what"),
    [
        ("return", 0, "exited with status 0 without close()"),
        ("exception", 1, "exited with status 1 without close()"),
        ("close", 0, "closed its communicator after"),
        ("exit", 3, "exited with status 3 without close()"),
        ("dropped", 0, "closed its communicator (dropped without close()) after"),
    ],
)
def test_a_rank_that_leaves_early(how: str, returncode: int, what: str) -> None:
    results = run_processes(3, SCRIPT, "exit_early", {"how": how})
    assert results[1].returncode == returncode, results[1]
    for rank in (0, 2):
        value = results[rank].value
        assert results[rank].returncode == 0, results[rank]
        assert value["error"] == "PeerLostError", value
        assert "rank 1" in value["text"]
        # Its last steps may take longer than the others wait for its status.
        assert what in value["text"] or (
            how not in ("close", "dropped") and "exits without close()" in value["text"]
        ), value
        assert value["seconds"] < LOST_WITHIN_S


def test_no_rank_is_lost_when_nothing_happens() -> None:
    """The tests above can tell: the same work without a signal ends well."""
    values = process_values(3, SCRIPT, "train_until_stopped", {"timeout": 20.0, "steps": 100})
    assert values == [{"error": None}] * 3
