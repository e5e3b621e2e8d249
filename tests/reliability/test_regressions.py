"""One small test for each row of docs/track_record.md."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

RANKS = Path(__file__).with_name("regression_ranks.py")


def seen_in(core: Path, name: str) -> dict[int, str]:
    done = subprocess.run([sys.executable, str(RANKS), str(core), name], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return {int(rank): text for rank, text in json.loads(done.stdout).items()}


def test_killed_while_the_ranks_meet(failpoint_core: Path) -> None:
    seen = seen_in(failpoint_core, "killed_while_the_ranks_meet")
    for rank in (1, 2, 3):
        assert re.match(r"PeerLostError: rank 0( \(pid \d+\))? ended during set-up", seen[rank]), seen
