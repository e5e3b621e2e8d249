"""Ranks that do not call the same never get a result: all are told, within a second, who called what, and where."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import pytest
from disagreements import BARRIER, KINDS, Case, make_case, problems, run_case
from figures import record_figure
from mismatch_tally import Tally, of_threads
from rank_processes import process_values
from rank_threads import thread_outcomes

SCRIPT = Path(__file__).with_name("mismatch_ranks.py")


def line_of(comment: str) -> str:
    """ "mismatch_ranks.py:42" of the line with this comment."""
    lines = SCRIPT.read_text().splitlines()
    (number,) = [number for number, line in enumerate(lines, 1) if line.endswith(f"# {comment}")]
    return f"{SCRIPT.name}:{number}"


def of_processes(seeds_of: dict[int, range]) -> Tally:
    tally = Tally()
    for world_size, seeds in seeds_of.items():
        args = {"seeds": list(seeds)}
        env = {"DCOMM_WINDOW_BYTES": "65536"}  # made fast
        try:
            told = process_values(world_size, SCRIPT, "many_cases", args, env=env, timeout=100)
        except AssertionError as error:
            tally.add_hang(f"{world_size} ranks: {error}")
            continue
        for index, seed in enumerate(seeds):
            tally.add(make_case(seed, world_size), [of_rank[index] for of_rank in told])
    return tally


def test_random_mismatches_of_threads() -> None:
    tally = of_threads(range(80))
    assert tally.kinds.keys() == KINDS.keys()
    tally.check("mismatches_of_threads")


def test_random_mismatches_of_processes() -> None:
    of_processes({2: range(1000, 1010), 3: range(1010, 1020)}).check("mismatches_of_processes")


@pytest.mark.long
@pytest.mark.timeout(400)
def test_many_random_mismatches_of_threads() -> None:
    of_threads(range(10_000, 10_400)).check("many_mismatches_of_threads")


@pytest.mark.long
@pytest.mark.timeout(300)
def test_many_random_mismatches_of_processes() -> None:
    of_processes({2: range(11_000, 11_040), 4: range(11_040, 11_100)}).check("many_mismatches_of_processes")


def test_agreement_would_be_noticed() -> None:
    """The checks above can fail: where all ranks call the same there is no error, and they say so."""
    case = make_case(1)
    agreeing = Case(1, "argument", 3, 1, case.usual, case.usual, 0)
    told = thread_outcomes(3, lambda comm: run_case(comm, agreeing), timeout=20)
    assert ["silent success" in problem for problem in problems(agreeing, told)] == [True] * 3  # type: ignore[arg-type]
    wrong = {"error": "MismatchError", "seconds": 0.1, "text": "rank 0 called barrier() as #2; rank 1 called x() as #2"}
    assert problems(Case(1, "argument", 2, 1, (BARRIER,), (BARRIER,), 0), [wrong, wrong])


def test_the_storm_fails_where_a_case_does(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    storm = importlib.import_module("mismatch_storm")
    assert storm.main(["--first", "31", "--cases", "3"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["cases"], last["hangs"], last["problems"]) == (3, 0, 0)
    hung = Tally()
    hung.add_hang("seed 31")
    monkeypatch.setattr(storm, "of_threads", lambda seeds: hung)
    assert storm.main(["--first", "31", "--cases", "3"]) == 1
    *text, line = capsys.readouterr().out.splitlines()
    assert text == ["seed 31"]
    assert json.loads(line)["hangs"] == 1


def test_a_skipped_call_is_named_with_its_line() -> None:
    """Rank 1 skips a call and does something that is no collective: the deadline finds out."""
    texts = process_values(3, SCRIPT, "skipped_call", timeout=30)
    skipped, elsewhere = line_of("skipped by rank 1"), line_of("rank 1 is here")
    for rank in (0, 2):
        text = texts[rank]
        print(text)
        assert text.startswith("CollectiveTimeoutError: all_reduce(count=100, dtype=float32")
        assert f"#3 on rank {rank} of 3, called at {skipped}: no answer from rank 1" in text
        gone = r"( \(gone\))?"  # a rank that has failed may have left already
        in_third = rf"{gone} in #3 called at {skipped}"
        assert re.search(rf"positions: rank 0{in_third}, rank 1{gone} finished #2, rank 2{in_third}", text)
    assert texts[1].startswith("CollectiveTimeoutError: recv("), texts[1]
    assert f"called at {elsewhere}: " in texts[1]
    assert f"in #3 called at {skipped}" in texts[1]
    record_figure("skipped_call", names_rank=True, names_numbers=True, names_lines=True)


def test_a_call_that_one_rank_skips_before_others_is_named_with_both_lines() -> None:
    """Its next collective comes in the place of the skipped one."""
    skipped, next_call = line_of("not by rank 1"), line_of("by all")
    for text in process_values(2, SCRIPT, "another_call", timeout=30):
        print(text)
        assert text.startswith("MismatchError: ")
        assert re.search(rf"rank 0 called all_reduce\(count=100[^;]*\) as #2 at {skipped};", text)
        assert f"rank 1 called barrier() as #2 at {next_call};" in text


def test_groups_in_opposite_order_are_named_with_their_lines() -> None:
    texts = process_values(2, SCRIPT, "swapped_groups", timeout=30)
    made = [line_of("the first one is made here"), line_of("the second one is made here")]
    used = [line_of("the others use the first one first"), line_of("rank 1 uses the second one first")]
    for rank, text in enumerate(texts):
        print(text)
        other = 1 - rank
        assert text.startswith("CollectiveTimeoutError: all_reduce(count=100, dtype=float32")
        assert f"on rank {rank} of 2, called at {used[rank]}: " in text
        assert f"this is the communicator of 2 ranks made at {made[rank]}; rank {other} is in all_reduce(" in text
        assert (
            f"of the communicator of 2 ranks made at {made[other]} as its rank {other}, called at {used[other]}" in text
        )
    record_figure("swapped_groups", names_groups=True, names_lines=True)


@pytest.mark.parametrize("records", [False, True])
def test_lines_of_asynchronous_calls_are_recorded_on_request(records: bool) -> None:
    line = line_of("queued here")
    env = {"DCOMM_CALL_SITES": "1"} if records else {}
    for text in process_values(2, SCRIPT, "asynchronous", env=env, timeout=30):
        assert text.startswith("MismatchError: ")
        assert text.count(f" at {line}") == (3 if records else 0), text
