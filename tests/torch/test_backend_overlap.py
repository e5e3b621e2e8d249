"""Collectives of the "dcomm" backend run beside backward: a delay in them is hidden, and is not where they block."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from rank_processes import process_values  # noqa: E402

SCRIPT = Path(__file__).with_name("backend_overlap_ranks.py")
DELAY_MS = 8  # of backend_overlap_ranks.py


@pytest.mark.long
def test_slow_all_reduces_are_hidden_by_backward(tmp_path: Path) -> None:
    for value in process_values(2, SCRIPT, "step_times", {"folder": str(tmp_path)}, timeout=110):
        print(value)
        delays_ms = DELAY_MS * value["num_reduced"]
        assert value["num_reduced"] >= 6
        assert value["overlapped"] - value["none"] < 0.6 * delays_ms  # the last bucket is not, and a busy machine costs
        assert value["blocking"] - value["none"] > 0.8 * delays_ms  # what the caller would wait; or nothing is shown
        assert value["same"]
