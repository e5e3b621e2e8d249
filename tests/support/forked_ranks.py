"""Short-lived ranks: forked from one process that has imported everything, so that a run costs milliseconds.

For a rank process of rank_processes.py (one that has no threads and no communicator), which forks them and reports.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any


def run_forked(bodies: Sequence[Callable[[], Any]], timeout: float = 30, *, through_exit: bool = False) -> list[Any]:
    """Runs each function in a child of its own, all at the same time; what they return, as JSON would have it.

    through_exit: a child ends as a program does, through atexit and destructors, and not at once. For a child that
    crashes or hangs: {"crash": exit status}, -9 being the end of one that hung.
    """
    gc.freeze()  # the children neither search nor copy what is there already
    start_read, start_write = os.pipe()  # all begin when it closes
    pids, pipes = [], []
    for body in bodies:
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(start_write)
            for end in (read_end, *pipes):
                os.close(end)
            status = _child(body, start_read, write_end)
            if through_exit:
                sys.exit(status)
            os._exit(status)
        os.close(write_end)
        pids.append(pid)
        pipes.append(read_end)
    os.close(start_read)
    os.close(start_write)
    texts = _read_all(pipes, pids, timeout)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    return [
        json.loads(text) if status == 0 and text else {"crash": status}
        for text, status in zip(texts, statuses, strict=True)
    ]


def _child(body: Callable[[], Any], start: int, result: int) -> int:
    try:
        os.read(start, 1)
        os.close(start)
        text = json.dumps(body()).encode()
        while text:
            text = text[os.write(result, text) :]
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        return 1
    return 0


def _read_all(pipes: list[int], pids: list[int], timeout: float) -> list[bytes]:
    texts = [b""] * len(pipes)
    open_pipes = dict(zip(pipes, range(len(pipes)), strict=True))
    deadline = time.monotonic() + timeout
    while open_pipes:
        ready = select.select(list(open_pipes), [], [], max(0.0, deadline - time.monotonic()))[0]
        if not ready:
            for index in open_pipes.values():
                os.kill(pids[index], signal.SIGKILL)
            deadline = time.monotonic() + 10
        for pipe in ready:
            chunk = os.read(pipe, 1 << 16)
            if chunk:
                texts[open_pipes[pipe]] += chunk
            else:
                del open_pipes[pipe]
                os.close(pipe)
    return texts
