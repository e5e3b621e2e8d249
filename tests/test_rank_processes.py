"""tests/support/rank_processes.py: what a test learns of a rank that does not end."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rank_processes import run_processes


@pytest.mark.parametrize("env", [{}, {"A_NEW_INTERPRETER": "1"}])
def test_a_rank_that_does_not_end_says_where_it_is(tmp_path: Path, env: dict[str, str]) -> None:
    script = tmp_path / "ranks.py"
    script.write_text("import time\ndef sleep(rank, world_size):\n    time.sleep(60 * rank)\n")
    with pytest.raises(AssertionError, match=r"ranks \[1\] are still running") as raised:
        run_processes(2, script, "sleep", {}, env=env, timeout=3)
    assert "line 3 in sleep" in str(raised.value)
    # Its main thread: number, name, that it sleeps, CPU seconds, where in the kernel.
    assert re.search(r"^rank 1: \d+ \S+ S \d+\.\d\d s \S+$", str(raised.value), re.MULTILINE)
