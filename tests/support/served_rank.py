"""Ranks forked by a server (rank_server.py), with what rank_processes.py uses of subprocess.Popen."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SERVER = Path(__file__).with_name("rank_server.py")
_LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def rank_environment() -> dict[str, str]:
    """What a rank's environment is now, before what its test adds."""
    base = {name: value for name, value in os.environ.items() if name not in _LAUNCHER_VARIABLES}
    return base | {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}


_BEFORE_ALL_TESTS = rank_environment()
# A rank whose environment differs in anything else is a new interpreter: that may be read where modules are imported.
LATE = {"DCOMM_JOB_ID", "GLOO_SOCKET_IFNAME", "PYTEST_CURRENT_TEST"}


class RankServer:
    """One server process; `has_torch`: with torch imported."""

    def __init__(self, has_torch: bool) -> None:
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(60)
        with theirs:
            command = [sys.executable, str(SERVER), str(theirs.fileno()), *(["torch"] if has_torch else [])]
            self.process = subprocess.Popen(
                command, env=_BEFORE_ALL_TESTS, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
            )
        atexit.register(self.close)

    def ask(self, order: Mapping[str, Any]) -> int:
        with self._lock:
            self._socket.send(json.dumps(order).encode())
            answer: int = json.loads(self._socket.recv(1 << 16))
            return answer

    def close(self) -> None:
        """Ends the server, after which nobody can ask for its ranks' exit statuses."""
        self._socket.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class ServedRank:
    """A forked rank. It stays a zombie, and its pid its own, until somebody has seen that it ended."""

    def __init__(
        self, server: RankServer, task: Mapping[str, Any], env: Mapping[str, str], out: Path, err: Path
    ) -> None:
        self.returncode: int | None = None
        self._server = server
        self.pid = server.ask({"start": {"task": task, "env": dict(env), "out": str(out), "err": str(err)}})
        self._pidfd = os.pidfd_open(self.pid)

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            poller = select.poll()
            poller.register(self._pidfd, select.POLLIN)
            if not poller.poll(None if timeout is None else 1e3 * timeout):
                raise subprocess.TimeoutExpired(f"rank with pid {self.pid}", timeout or 0)
            self.returncode = self._server.ask({"wait": self.pid})
            os.close(self._pidfd)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


_servers: dict[bool, RankServer] = {}


def _has_pidfds() -> bool:
    """False in a container that refuses them."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return False
    return True


def server_for(script: Path, env: Mapping[str, str]) -> RankServer | None:
    """Who forks the ranks of `script`; None where they have to be new interpreters.

    Those of tests/reliability always are: what happens to a program is shown on programs as people start them.
    """
    if script.parent.name == "reliability" or not _has_pidfds():
        return None
    has_torch = script.parent.name == "torch"
    if has_torch not in _servers:
        _servers[has_torch] = RankServer(has_torch)
    names = env.keys() | _BEFORE_ALL_TESTS.keys()
    changed = {name for name in names if env.get(name) != _BEFORE_ALL_TESTS.get(name)}
    return _servers[has_torch] if changed <= LATE else None
