"""Long life: a process that makes 1,000 communicators holds no more descriptors, threads and memory than before."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from figures import record_figure

SCRIPT = Path(__file__).with_name("many_lives.py")


@pytest.mark.long
@pytest.mark.timeout(300)
def test_1000_communicators() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "1000"], capture_output=True, text=True, timeout=290)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    growth = max(late["bytes"] - early["bytes"] for early, late in result["ranks"])
    record_figure("many_lives", communicators=result["lives"], grown_bytes=growth, seconds=result["seconds"])
    for early, late in result["ranks"]:
        assert late["descriptors"] == early["descriptors"]
        assert late["threads"] == early["threads"]
        assert late["bytes"] - early["bytes"] < 1 << 20
