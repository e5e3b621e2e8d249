"""The process that started the ranks is killed: the ranks go as well, at once, and leave nothing."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from figures import record_figure

WITHIN_S = 2.0


def children_of(pid: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError):
        return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def runs(pid: int) -> bool:
    """False as well for a process that has ended and waits for whoever adopted it."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"


def has_a_window(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "dcomm" in Path(f"/proc/{pid}/maps").read_text().replace("dcomm/", "").replace("/dcomm", "")
    return False


def sockets_of(pid: int) -> set[str]:
    """The inode numbers of its sockets."""
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found |= set(re.findall(r"^socket:\[(\d+)\]$", os.readlink(entry)))
    return found


def living_sockets() -> set[str]:
    return {line.split()[6] for line in Path("/proc/net/unix").read_text().splitlines()[1:]}


def test_ranks_go_with_their_launcher() -> None:
    before_shm = set(os.listdir("/dev/shm"))
    options = ["-n", "4", "-b", "1M", "-e", "1M", "--iters", "100000"]
    command = [sys.executable, "-m", "dcomm", "bench", "all_reduce", *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as launcher:
        ranks: list[int] = []
        try:
            deadline = time.monotonic() + 30
            while not (len(ranks) == 4 and all(map(has_a_window, ranks))):
                assert launcher.poll() is None, f"dcomm bench ended early, exit code {launcher.returncode}"
                assert time.monotonic() < deadline, f"dcomm bench has {len(ranks)} ranks, not 4 with windows"
                time.sleep(0.01)
                ranks = children_of(launcher.pid)
            for pid in ranks[:2]:  # these cannot notice by themselves that nobody reads their answers
                os.kill(pid, signal.SIGSTOP)
            sockets = set().union(*map(sockets_of, ranks))
        finally:
            launcher.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        launcher.wait(10)
        while any(map(runs, ranks)) and time.monotonic() < killed + 10:
            time.sleep(0.002)
        gone_s = time.monotonic() - killed
        left = [pid for pid in ranks if runs(pid)]
        for pid in left:
            os.kill(pid, signal.SIGKILL)
    record_figure("launcher_killed", ranks=len(ranks), gone_ms=1e3 * gone_s)
    assert not left
    assert gone_s <= WITHIN_S
    assert [name for name in set(os.listdir("/dev/shm")) - before_shm if "dcomm" in name] == []
    assert len(sockets) >= 12  # of the ranks' mesh, at least
    assert sockets & living_sockets() == set()
