"""A process of another user at the meeting point: it gets in nowhere, and the job does not mind it."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from figures import record_figure
from hellos import door_of
from rank_processes import WORKERS, Ranks

SCRIPT = WORKERS / "process_ranks.py"
FOREIGN_UID = 65534

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user as well")

# A program of the other user: knocks 1,000 times, or holds names until it is killed.
INTRUDER = """
import os, socket, sys, time
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
what, names = sys.argv[1], sys.argv[2:]
def named(name):
    return b"\\0" + name.encode()
if what == "knock":
    refused = 0
    for number in range(1000):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as knock:
            knock.settimeout(10)
            knock.connect(named(names[number % len(names)]))
            try:
                knock.send(os.urandom(160))
                refused += knock.recv(65536) == b""
            except (BrokenPipeError, ConnectionResetError):
                refused += 1
    print(refused)
else:
    held = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in names]
    for door, name in zip(held, names):
        door.bind(named(name))
        door.listen(100)
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def intruder(what: str, names: list[str]) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-I", "-c", INTRUDER, what, *names]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd="/") as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGKILL)


def values_of(ranks: list[Ranks]) -> list[object]:
    values = []
    for started in ranks:
        (result,) = started.finish(timeout=40)
        assert result.returncode == 0, result
        values.append(result.value)
    return values


def one_rank(rank: int, key: str) -> Ranks:
    args = {"my_rank": rank, "my_world_size": 2, "timeout": 30}
    return Ranks(1, SCRIPT, "init_and_report", args, {"DCOMM_JOB_ID": key})


def test_a_foreign_user_is_refused_1000_times() -> None:
    key = secrets.token_hex(8)
    with one_rank(0, key) as zero:
        door = door_of(zero.processes[0].pid)
        with intruder("knock", [door]) as process:
            out, _ = process.communicate(timeout=60)
        with one_rank(1, key) as one:
            values = values_of([zero, one])
        lines = [
            line for line in zero.result(0).err.splitlines() if f"refused a connection of user {FOREIGN_UID}" in line
        ]
    assert out == "1000\n"
    assert [value["error"] for value in values] == [None, None], values  # type: ignore[index]
    record_figure("foreign_user", knocks=1000, refused=int(out), log_lines=len(lines))
    assert 1 <= len(lines) <= 15  # at most one a second


def test_names_that_a_foreign_user_holds_are_passed_by() -> None:
    key = secrets.token_hex(8)
    with one_rank(0, key) as zero:
        name = door_of(zero.processes[0].pid).rpartition(".")[0]
        with one_rank(1, key) as one:
            values_of([zero, one])
    squatted = [f"{name}.{number}" for number in range(5)]
    with intruder("hold", squatted) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with one_rank(0, key) as zero, one_rank(1, key) as one:
            assert door_of(zero.processes[0].pid) == f"{name}.5"
            values = values_of([zero, one])
    assert [value["error"] for value in values] == [None, None], values  # type: ignore[index]


def test_every_name_held_is_an_error_that_says_so() -> None:
    key = secrets.token_hex(8)
    with one_rank(0, key) as zero:
        name = door_of(zero.processes[0].pid).rpartition(".")[0]
        with one_rank(1, key) as one:
            values_of([zero, one])
    with intruder("hold", [f"{name}.{number}" for number in range(16)]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with one_rank(0, key) as zero:
            (value,) = values_of([zero])
    assert value["error"] == "ValueError", value  # type: ignore[index]
    assert "are held by other users; set DCOMM_JOB_ID to another value" in value["text"]  # type: ignore[index]


def test_the_sockets_of_this_user_do_get_in() -> None:
    """The tests above can tell: from this user the same knock is answered by a hang-up only when it says nonsense."""
    key = secrets.token_hex(8)
    with one_rank(0, key) as zero:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as knock:
            knock.settimeout(1.0)
            knock.connect(b"\0" + door_of(zero.processes[0].pid).encode())
            with pytest.raises(TimeoutError):
                knock.recv(100)
        with one_rank(1, key) as one:
            values_of([zero, one])
