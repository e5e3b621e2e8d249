"""Failpoints: all named places are stormed, and none of them ships."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import failpoint_core as support
import pytest

import dcomm

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).parent


def declared() -> set[str]:
    text = "".join(path.read_text() for path in (ROOT / "csrc").rglob("*.[hc]*") if path.name[:9] != "failpoint")
    calls = re.findall(r"failpoint\(([^;]*)\);", text)
    return {name for call in calls for name in re.findall(r'"(\w+)"', call)}


def stormed() -> set[str]:
    code = "import storm_cases as s; print(*[n for f in s.FAILPOINTS.values() for n in f], s.ABORTING)"
    done = subprocess.run([sys.executable, "-c", code], cwd=FOLDER, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_every_failpoint_is_stormed() -> None:
    assert len(declared()) >= 13
    assert declared() == stormed()


def test_the_extension_that_ships_has_none(failpoint_core: Path) -> None:
    shipped = Path(str(dcomm._core.__file__)).read_bytes()
    tested = failpoint_core.read_bytes()
    for name in [*declared(), "DCOMM_FAILPOINT"]:
        assert f"{name}\0".encode() in tested, name
        assert f"\0{name}\0".encode() not in shipped, name


SLEEPER = """
import os, sys, time
sys.path.append(sys.argv[1])
import failpoint_core
failpoint_core.install()
import numpy as np, threading, dcomm
comms = dcomm.init_threads(2)
def run(comm):
    for _ in range(3):
        start = time.monotonic()
        comm.all_reduce(np.ones(10), algo="two_shot")
        os.write(1, b"%.1f\\n" % (time.monotonic() - start))
threads = [threading.Thread(target=run, args=(comm,)) for comm in comms]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


def run_with(failpoint: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SLEEPER, str(Path(support.__file__).parent)],
        env={**os.environ, "DCOMM_FAILPOINT": failpoint, "DCOMM_FAILPOINT_FD": "2"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.usefixtures("failpoint_core")
def test_actions_and_passes() -> None:
    # Two ranks pass "between_phases" once in each operation: the third time is in the second one.
    slept = run_with("between_phases:sleep=400@3")
    assert slept.returncode == 0, slept.stderr
    assert re.fullmatch(r"between_phases 3 \d+\n", slept.stderr)
    seconds = sorted(map(float, slept.stdout.split()))
    assert seconds[3] < 0.4 <= seconds[4], seconds  # both ranks, in one operation of three
    killed = run_with("after_completed:kill@2")
    assert killed.returncode == -9
    assert re.fullmatch(r"after_completed 2 \d+\n", killed.stderr)
    refused = run_with("after_completed:explode")
    assert "expected name:kill" in refused.stderr
