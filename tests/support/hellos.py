"""Hellos of the meeting (csrc/comm/hello.cc), taken from a real rank, and hosts of mutated ones."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

HELLO_BYTES = 160
CHECKED = slice(16, HELLO_BYTES)  # what the checksum at byte 8 covers
RANK, WORLD_SIZE, TOKEN, VERSION = slice(20, 24), slice(24, 28), slice(56, 72), slice(88, 160)


def names_of(pid: int) -> set[str]:
    """The abstract names on which process `pid` listens."""
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            inodes |= set(re.findall(r"^socket:\[(\d+)\]$", os.readlink(entry)))
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return {line[7].lstrip("@") for line in lines if len(line) > 7 and line[6] in inodes}


def wait_for_name(pid: int, pattern: str) -> str:
    """The first name of process `pid` that is like this."""
    deadline = time.monotonic() + 40
    while True:
        for name in names_of(pid):
            if re.fullmatch(pattern, name):
                return name
        assert time.monotonic() < deadline, f"process {pid} listens on {names_of(pid)}, not on {pattern}"
        time.sleep(0.005)


def door_of(pid: int) -> str:
    """Where this rank 0 waits for the other ranks of a job without a store."""
    return wait_for_name(pid, r"dcomm-[0-9a-f]{32}\.\d+")


def listener_of(pid: int) -> str:
    """Where this rank waits for those of higher rank."""
    return wait_for_name(pid, r"dcomm-[0-9a-f]{32}")


def receive_hello(door: str) -> np.ndarray:
    """Plays rank 0 at the name `door` and returns the hello of whoever knocks."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as host:
        host.settimeout(40)
        host.bind(b"\0" + door.encode())
        host.listen(1)
        with host.accept()[0] as knock:
            knock.settimeout(40)
            return np.frombuffer(knock.recv(4096), np.uint8).copy()


def checksums(hellos: np.ndarray) -> np.ndarray:
    """FNV-1a of each row, as the receiver computes it."""
    sums = np.full(len(hellos), 0xCBF29CE484222325, np.uint64)
    for column in hellos[:, CHECKED].T:
        sums = (sums ^ column.astype(np.uint64)) * np.uint64(0x100000001B3)
    return sums


def mutated(good: np.ndarray, count: int, seed: int) -> Iterator[bytes]:
    """`count` packets that are not hellos of this job: bits flipped, cut, lengthened, and, under a right checksum, with
    another token, no rank of any job, or a version that is no text."""
    rng = np.random.default_rng(seed)
    batch = 10_000
    for start in range(0, count, batch):
        rows = np.repeat(good[None], min(batch, count - start), axis=0)
        each = np.arange(len(rows))
        kinds = rng.integers(6, size=len(rows))
        rows[each, rng.integers(HELLO_BYTES, size=len(rows))] ^= rng.integers(1, 256, size=len(rows), dtype=np.uint8)
        token, ranks, version = (each[kinds == kind] for kind in (1, 2, 3))
        rows[token, TOKEN] = rng.integers(1, 256, size=(len(token), 16), dtype=np.uint8)
        rows[ranks, RANK] = rng.integers(128, 256, size=(len(ranks), 4), dtype=np.uint8)  # beyond any world_size
        rows[version, VERSION] = rng.integers(128, 256, size=(len(version), 72), dtype=np.uint8)
        resealed = np.concatenate([token, ranks, version])
        rows[resealed, 8:16] = checksums(rows[resealed]).view(np.uint8).reshape(-1, 8)
        lengths = np.where(kinds == 4, rng.integers(1, HELLO_BYTES, size=len(rows)), HELLO_BYTES)
        for kind, length, row in zip(kinds, lengths, rows, strict=True):
            packet = row.tobytes()[:length]
            yield packet + rng.bytes(int(rng.integers(1, 3000))) if kind == 5 else packet


def send_each(name: str, packets: Iterator[bytes]) -> int:
    """Connects once for each packet, sends it and hangs up; how many were taken."""
    address = b"\0" + name.encode()
    count = 0
    for packet in packets:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as knock:
            knock.connect(address)  # blocks while the listener's backlog is full
            knock.send(packet)
            count += 1
    return count
