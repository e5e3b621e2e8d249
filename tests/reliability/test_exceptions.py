"""A rank fails in the program's own code: the errors of its peers say with what, and where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from figures import record_figure
from rank_processes import run_processes
from rank_threads import outcomes

import dcomm
from dcomm.call_site import describe

SCRIPT = Path(__file__).with_name("exception_ranks.py")
LINES = SCRIPT.read_text().splitlines()
(FAILS_AT,) = [f"{SCRIPT.name}:{number}" for number, line in enumerate(LINES, 1) if line.endswith("# fails here")]
SUMMARY = f"KeyError: 'not there' at {FAILS_AT}"


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("with", f"closed its communicator ({SUMMARY}) after completing #1"),
        ("uncaught", f"exited with status 1 without close() ({SUMMARY}) after completing #1"),
        ("with, queued", f"aborted the communicator ({SUMMARY})"),
        ("abort", "aborted the communicator (loss is NaN at step 7)"),
        ("long", "closed its communicator (ValueError: ää"),
        ("dropped", "closed its communicator (dropped without close()) after completing #1"),
        ("exit", "exited with status 3 without close() after completing #1"),  # sys.exit is no failure of the program's
    ],
)
def test_peers_are_told_what_failed(how: str, expected: str) -> None:
    results = run_processes(3, SCRIPT, "failing_program", {"how": how}, timeout=40)
    for rank in (0, 2):
        text = results[rank].value
        print(text)
        assert results[rank].returncode == 0, results[rank]
        assert expected in text, text
        assert "rank 1" in text
    assert results[1].returncode == {"exit": 3, "dropped": 4}.get(how, 1), results[1]
    if how == "with":
        record_figure("exception_of_a_rank", names_rank=True, names_type=True, names_line=True)


def test_threads_are_told_the_reason_of_an_abort() -> None:
    comms = dcomm.init_threads(3)

    def body(comm: dcomm.Communicator) -> Any:
        if comm.rank == 2:
            comm.abort("the data are used up")
        comm.all_reduce(np.ones(4), timeout=20)

    results = outcomes(comms, body, timeout=30)
    assert [type(result) for result in results] == [dcomm.AbortedError] * 3
    assert "rank 2 aborted the communicator (the data are used up)" in str(results[0])
    assert "this communicator was aborted on rank 2 (the data are used up)" in str(results[2])
    for comm in comms:
        comm.close()


def test_threads_are_told_the_exception_of_one() -> None:
    comms = dcomm.init_threads(2)

    def body(comm: dcomm.Communicator) -> Any:
        with comm:
            if comm.rank == 1:
                raise KeyError("on purpose")
            comm.all_reduce(np.ones(4), timeout=20)

    results = outcomes(comms, body, timeout=30)
    assert isinstance(results[0], dcomm.PeerLostError)
    assert "rank 1 closed its communicator (KeyError: 'on purpose' at test_exceptions.py:" in str(results[0])
    assert isinstance(results[1], KeyError)


def test_description_of_exceptions() -> None:
    try:
        dcomm.init_threads(0)
    except ValueError as error:
        text = describe(error)
    assert text.startswith("ValueError: world_size=0: expected")
    assert " at test_exceptions.py:" in text  # the program's line, not dcomm's
    assert describe(KeyError()) == "KeyError"
