"""The storms can fail: over a core with a rule broken on purpose (csrc/base/mutation.h) they do, and say why."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
KILLS = ("kill_storm.py", "--kills", "40")


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("mutation", "complaint"), [("ring_wrong_chunk", "had wrong results"), ("stale_packet_tag", "had wrong results")]
)
def test_a_broken_rule(failpoint_core: Path, mutation: str, complaint: str) -> None:
    script, *arguments = KILLS
    done = subprocess.run(
        [sys.executable, str(FOLDER / script), *arguments, "--core", str(failpoint_core)],
        env={**os.environ, "DCOMM_MUTATION": mutation},
        capture_output=True,
        text=True,
        timeout=290,
        check=False,
    )
    assert done.returncode == 1, done.stdout[-4000:] + done.stderr[-2000:]
    assert complaint in done.stdout
