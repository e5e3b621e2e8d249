"""A child that a rank forked and that lives longer: it holds nothing of dcomm."""

from __future__ import annotations

import time
from pathlib import Path

from figures import record_figure
from rank_processes import Ranks

SCRIPT = Path(__file__).with_name("orphan_ranks.py")


def test_a_child_that_outlives_its_rank_holds_nothing_of_dcomm() -> None:
    with Ranks(2, SCRIPT, "exit_before_children") as ranks:
        first, second = ranks.finish(timeout=40)
        counted = ranks.folder / "0.mark-counted"
        deadline = time.monotonic() + 20
        while not counted.exists():  # by the child, whose parent has ended
            assert time.monotonic() < deadline, first
            time.sleep(0.005)
        value = ranks.result(0).value
    assert value["of_dcomm"] >= 3
    assert value["held"] == 0, value
    assert value["maps"][0] > 0
    assert value["maps"][1] == 0, value
    assert second.value["error"] == "PeerLostError", second
    record_figure("orphan", descriptors=value["held"], mappings=value["maps"][1], lost_s=second.value["seconds"])
