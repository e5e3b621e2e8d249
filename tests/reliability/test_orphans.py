"""A child that a rank forked and that lives longer: it holds nothing of dcomm."""

from __future__ import annotations

import time
from pathlib import Path

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
    print(
        f"a child that outlives its rank holds 0 of its {value['of_dcomm']} dcomm descriptors and 0 of its "
        f"{value['maps'][0]} mappings; the other rank's error after {second.value['seconds']:.3f} s"
    )
