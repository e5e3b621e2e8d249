"""Ranks forked from one process that has imported everything: a start costs milliseconds, not a second.

The parent makes no communicator and has no threads, so its children are as good as fresh processes. What a rank says
comes back line by line through a pipe; the failpoints of the core (csrc/base/failpoint.h) write to the same one.
"""

from __future__ import annotations

import ctypes
import gc
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


def prepare() -> None:
    """Once in the parent: it gets what its children leave behind, and they share its memory."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    gc.collect()
    gc.freeze()


@dataclass
class ForkedRank:
    rank: int
    pid: int
    pipe: int
    pidfd: int
    lines: list[str] = field(default_factory=list)
    ended: bool = False  # reaped
    status: int = 0  # as of os.waitpid
    _rest: bytes = b""

    def read(self) -> list[str]:
        """New whole lines; nothing when there are none."""
        try:
            data = os.read(self.pipe, 1 << 16)
        except BlockingIOError:
            return []
        *whole, self._rest = (self._rest + data).split(b"\n")
        new = [line.decode() for line in whole]
        self.lines += new
        return new

    def reap(self) -> bool:
        """True once the process has ended."""
        if not self.ended:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.ended = pid == self.pid
            self.status = status
        return self.ended


class ForkedRanks:
    """All ranks of one job. Leaving the `with` block kills what is left of them."""

    def __init__(
        self,
        world_size: int,
        main: Callable[[int, Callable[[str], None]], None],
        environment: Callable[[int], Mapping[str, str]],
    ) -> None:
        """main(rank, say) runs in the child; environment(rank) is set before, with DCOMM_FAILPOINT_FD."""
        self.ranks: list[ForkedRank] = []
        sys.stdout.flush()
        sys.stderr.flush()
        for rank in range(world_size):
            self.ranks.append(self._fork(rank, main, environment(rank)))

    def _fork(
        self, rank: int, main: Callable[[int, Callable[[str], None]], None], environment: Mapping[str, str]
    ) -> ForkedRank:
        reader, writer = os.pipe()
        parent = os.getpid()
        pid = os.fork()
        if pid != 0:
            os.close(writer)
            os.set_blocking(reader, False)
            return ForkedRank(rank, pid, reader, os.pidfd_open(pid))
        status = 1
        try:
            _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)
            os.close(reader)
            for other in self.ranks:
                os.close(other.pipe)
                os.close(other.pidfd)
            os.environ.update(environment)
            os.environ["DCOMM_FAILPOINT_FD"] = str(writer)
            main(rank, lambda line: _write_all(writer, f"{line}\n".encode()))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)

    def __enter__(self) -> ForkedRanks:
        return self

    def __exit__(self, *_: object) -> None:
        for rank in self.ranks:
            if not rank.reap():
                os.kill(rank.pid, signal.SIGKILL)
        for rank in self.ranks:
            while not rank.reap():
                select.select([rank.pidfd], [], [], 1.0)
            os.close(rank.pipe)
            os.close(rank.pidfd)

    def news(self, until: float) -> Iterator[tuple[ForkedRank, list[str]]]:
        """Lines of whoever said something, and [] of one that has ended; until time.monotonic() reaches `until`."""
        waiting: dict[int, ForkedRank] = {}
        for rank in self.ranks:
            if not rank.ended:
                waiting[rank.pipe] = rank
                waiting[rank.pidfd] = rank
        timeout = max(0.0, until - time.monotonic())
        ready, _, _ = select.select(list(waiting), [], [], timeout)
        for rank in {waiting[descriptor].rank: waiting[descriptor] for descriptor in ready}.values():
            has_ended = rank.pidfd in ready
            lines = rank.read()
            while has_ended and (more := rank.read()):
                lines += more
            if lines:
                yield rank, lines
            if has_ended and rank.reap():
                yield rank, []


def has_children() -> bool:
    """Whether anything that was forked here, or by a rank that has ended, is still there; reaps what is not."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0] != 0:
            pass
    except ChildProcessError:
        return False
    return True


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
