"""Hellos that are none, sent to a rank that waits for its job: nothing crashes, grows or joins."""

from __future__ import annotations

import re
import secrets
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from figures import record_figure
from hellos import door_of, listener_of, mutated, receive_hello, send_each
from rank_processes import WORKERS, Ranks

SCRIPT = WORKERS / "process_ranks.py"
MOST_GROWTH_KIB = 1024


def rank_of_two(rank: int, key: str) -> Ranks:
    args = {"my_rank": rank, "my_world_size": 2, "timeout": 600}
    return Ranks(1, SCRIPT, "init_and_report", args, {"DCOMM_JOB_ID": key})


def value_of(ranks: Ranks) -> Any:
    (result,) = ranks.finish(timeout=40)
    assert result.returncode == 0, result
    return result.value


def resident_kib(pid: int) -> int:
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def num_descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def a_hello_and_its_door(key: str) -> tuple[Any, str]:
    """Where the ranks of this key meet, and what rank 1 says there."""
    with rank_of_two(0, key) as zero:
        door = door_of(zero.processes[0].pid)
    with rank_of_two(1, key):  # its first knock is ours
        return receive_hello(door), door


def flood(key: str, count: int, seed: int) -> None:
    job = secrets.token_hex(8)
    hello, door = a_hello_and_its_door(job)
    with rank_of_two(0, job) as zero:
        pid = zero.processes[0].pid
        assert door_of(pid) == door
        own_listener = listener_of(pid)
        send_each(door, mutated(hello, 1000, seed + 1))
        time.sleep(0.2)
        memory, descriptors = resident_kib(pid), num_descriptors(pid)
        start = time.monotonic()
        sent = send_each(door, mutated(hello, count, seed))
        seconds = time.monotonic() - start
        send_each(own_listener, mutated(hello, 500, seed + 2))  # rank 0 asks nobody there: they stay in its backlog
        time.sleep(0.2)
        growth = resident_kib(pid) - memory
        assert num_descriptors(pid) == descriptors
        with rank_of_two(1, job) as one:
            values = [value_of(zero), value_of(one)]
        assert [value["error"] for value in values] == [None, None], values
        log = zero.result(0).err
    assert sent == count
    record_figure(key, hellos=count, seconds=seconds, crashes=0, growth_kib=growth)
    assert growth <= MOST_GROWTH_KIB
    lines = log.splitlines()
    assert all("its hello is garbled" in line for line in lines), log
    assert 1 <= len(lines) <= seconds + 3  # at most one a second


def test_garbled_hellos() -> None:
    flood("garbled_hellos", 10_000, 1)


@pytest.mark.soak
@pytest.mark.timeout(170)
def test_a_million_garbled_hellos() -> None:
    flood("many_garbled_hellos", 1_000_000, 2)


def test_the_captured_hello_is_one() -> None:
    """The tests above can tell: as it was, the hello gets its sender a seat."""
    key = secrets.token_hex(8)
    hello, door = a_hello_and_its_door(key)
    with rank_of_two(0, key) as zero, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as guest:
        assert door_of(zero.processes[0].pid) == door
        guest.settimeout(10)
        guest.connect(b"\0" + door.encode())
        guest.send(hello.tobytes())
        assert guest.recv(4096).startswith(b"dcommRE1\1")  # a status: it is seated
        guest.close()
        value = value_of(zero)
    assert value["error"] == "PeerLostError", value
