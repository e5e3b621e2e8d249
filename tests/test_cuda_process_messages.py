"""send and recv of CUDA arrays between processes, each with an emulated GPU: order, mismatch, dead ends, deaths."""

from __future__ import annotations

import signal
import time
from typing import Any

import pytest
from emulated_gpu import EmulatedGpu
from rank_processes import WORKERS, Ranks, process_values

pytestmark = pytest.mark.long  # the test command is to stay short

SCRIPT = WORKERS / "cuda_message_ranks.py"
SMALL = {"DCOMM_CUDA_CHANNELS": "2", "DCOMM_CUDA_SLOT_BYTES": "4096"}
FITS = 2048  # floats that the slots of a pair hold


@pytest.fixture
def library(emulated_gpu: EmulatedGpu) -> dict[str, Any]:
    return {"library": str(emulated_gpu.path)}


@pytest.mark.parametrize(("world_size", "windows"), [(2, "vmm"), (2, "ipc"), (3, "vmm")])
def test_messages_between_all_pairs(library: dict[str, Any], world_size: int, windows: str) -> None:
    env = {**SMALL, "DCOMM_CUDA_WINDOWS": windows}
    left = process_values(world_size, SCRIPT, "exchange_all", library, env=env, timeout=120)
    assert windows == "ipc" or left == [0] * world_size


def test_messages_hold_up_nobody_else(library: dict[str, Any]) -> None:
    seconds = process_values(4, SCRIPT, "beside_collectives", library, env=SMALL, timeout=120)
    assert min(seconds[:2]) > 1.4  # more than the slots hold: the sender waits for its receiver
    assert max(seconds[2:]) < min(seconds[:2])


@pytest.mark.parametrize("count", [10, 30_000])
@pytest.mark.parametrize(
    ("name", "sent", "expected"),
    [
        ("count", "count={count}, dtype=float32, dst=1, tag=4", "count={more}, dtype=float32, src=0, tag=4"),
        ("dtype", "count={count}, dtype=float32, dst=1, tag=4", "count={count}, dtype=int32, src=0, tag=4"),
        ("tag", "count={count}, dtype=float32, dst=1, tag=4", "count={count}, dtype=float32, src=0, tag=5"),
    ],
)
def test_mismatch(library: dict[str, Any], name: str, sent: str, expected: str, count: int) -> None:
    values = process_values(3, SCRIPT, "differ", {**library, "name": name, "count": count}, env=SMALL)
    for value in values:
        assert value["error"] == "MismatchError", value
        assert "message #4 from rank 0 to rank 1" in value["text"], value
        assert f"rank 0 called send({sent.format(count=count)})" in value["text"], value
        assert f"rank 1 called recv({expected.format(count=count, more=count + 1)})" in value["text"], value
        assert value["seconds"] < 10, value


@pytest.mark.parametrize(("call", "count"), [("send", FITS), ("send", FITS + 1), ("recv", 1)])
def test_both_call_the_same_first(library: dict[str, Any], call: str, count: int) -> None:
    values = process_values(2, SCRIPT, "both_first", {**library, "call": call, "count": count}, env=SMALL)
    for value in values:
        if (call, count) == ("send", FITS):
            assert value["error"] is None, value
            continue
        assert value["error"] == "CollectiveTimeoutError", value
        assert f"both have called {'send before recv' if call == 'send' else 'recv before send'}" in value["text"]
        assert "let one of two ranks receive first" in value["text"]
        assert value["seconds"] < 20, value


@pytest.mark.parametrize("call", ["send", "recv"])
def test_a_peer_that_does_not_call(library: dict[str, Any], call: str) -> None:
    value = process_values(2, SCRIPT, "alone", {**library, "call": call}, env=SMALL)[0]
    assert value["error"] == "CollectiveTimeoutError", value
    others = "receive" if call == "send" else "send"
    assert f"waiting for rank 1 to {others}: the deadline passed" in value["text"]
    assert "which has called" in value["text"]
    assert (
        f"0 times, not for {call}(count=8192, dtype=float32, {'dst' if call == 'send' else 'src'}=1, tag=3)"
        in (value["text"])
    )


@pytest.mark.parametrize(
    ("how", "error", "text"),
    [
        ("killed", "PeerLostError", "died"),
        ("abort", "AbortedError", "rank 1 aborted the communicator"),
        ("close", "PeerLostError", "closed its communicator"),
    ],
)
def test_a_peer_ends_while_its_message_is_waited_for(library: dict[str, Any], how: str, error: str, text: str) -> None:
    with Ranks(2, SCRIPT, "ends", {**library, "how": how}, env=SMALL) as ranks:
        for rank in range(2):
            ranks.wait_for_mark(rank, "ready")
        if how == "killed":
            time.sleep(0.2)
            ranks.send(1, signal.SIGKILL)
        value = ranks.finish(timeout=40)[0].value
    assert value["error"] == error, value
    assert text in value["text"], value
    assert value["seconds"] < 10, value


def test_leaving_after_ones_side_fails_nobody(library: dict[str, Any]) -> None:
    turns = 8
    args = {**library, "turns": turns}
    assert process_values(3, SCRIPT, "leaves_at_once", args, env=SMALL, timeout=120) == [turns] * 3


def test_messages_to_no_other_rank(library: dict[str, Any]) -> None:
    for rank, texts in enumerate(process_values(2, SCRIPT, "bad_peers", library, env=SMALL)):
        assert len(texts) == 4
        assert all(f"rank {rank} is this rank itself" in text for text in texts[:2])
        assert all("expected a rank from 0 to 1" in text for text in texts[2:])
