"""The parent's side of the GPU checks: a process that says one finding a line, and is killed at the deadline."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress

from dcomm.doctor.finding import Finding, fail, skip
from dcomm.doctor.gpu import NAMES
from dcomm.doctor.output import last_line

_COMMAND = ("-m", "dcomm", "doctor", "--gpu-side")
_SLOW = (
    "give it more time with `dcomm doctor --seconds 30`; where the driver is slow to start, run nvidia-persistenced or "
    "`nvidia-smi -pm 1`"
)


def _lines(process: subprocess.Popen[bytes], deadline: float) -> Iterator[bytes]:
    """Whole lines until the process closes its end, or TimeoutError."""
    assert process.stdout is not None
    unread = b""
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
            raise TimeoutError
        chunk = os.read(process.stdout.fileno(), 1 << 16)
        if not chunk:
            return
        *whole, unread = (unread + chunk).split(b"\n")
        yield from whole


def _end(process: subprocess.Popen[bytes]) -> int | None:
    """Kill it; its exit status, None where it hangs in the kernel."""
    with suppress(subprocess.TimeoutExpired):
        return process.wait(timeout=0.1)
    process.kill()
    with suppress(subprocess.TimeoutExpired):
        return process.wait(timeout=0.1)
    return None


def gpu_side(deadline: float, command: Sequence[str] = _COMMAND) -> Iterator[Finding]:
    """What the process says, then a finding for the first name that it owes."""
    start, owed, why, words = time.monotonic(), list(NAMES), "", ""
    arguments = [sys.executable, *command, str(os.getpid())]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
        )
        try:
            for line in _lines(process, deadline):
                finding = Finding(**json.loads(line))
                yield finding
                owed.remove(finding.name)
        except TimeoutError:
            why = f"no answer within {time.monotonic() - start:.1f} s"
        finally:
            code = _end(process)
            if process.stdout is not None:
                process.stdout.close()
        words = last_line(errors)
    if owed:
        fix = _SLOW if why else "report it with this line; CPU ranks do not need it"
        yield fail(owed[0], (why or f"the process of the GPU checks ended (exit status {code})") + words, fix)
        for name in owed[1:]:
            yield skip(name, f"not reached: see {owed[0]}", fix)
