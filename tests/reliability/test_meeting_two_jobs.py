"""Two jobs with one key: no rank ever joins the other job, and who is refused learns why."""

from __future__ import annotations

import secrets
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from figures import record_figure
from rank_processes import process_values

SCRIPT = Path(__file__).with_name("meeting_jobs.py")
NUM_RANKS = 4
REFUSED = "another job holds this meeting point; set DCOMM_JOB_ID"


def start_both(times: int, folder: Path, keys: list[str], timeout: float) -> list[tuple[Any, ...]]:
    """By start: what the ranks of each job say."""
    args = {"num_ranks": NUM_RANKS, "times": times, "folder": str(folder), "keys": keys, "timeout": timeout}
    return list(zip(*process_values(2, SCRIPT, "launch_again_and_again", args, timeout=20 + 8 * times), strict=True))


def start_with_one_key(key: str, times: int, folder: Path) -> None:
    outcomes: Counter[str] = Counter()
    for jobs in start_both(times, folder, [secrets.token_hex(8)] * 2, 4.0):
        running = 0
        for job, ranks in enumerate(jobs):
            errors = {rank: value for rank, value in enumerate(ranks) if value.get("error") is not None}
            assert not [value for value in ranks if "crash" in value], jobs
            for value in ranks:
                assert value["error"] is not None or value["jobs"] == [job], jobs  # no cross-join
            assert len(errors) in (0, NUM_RANKS), jobs  # a job runs, or none of its ranks does
            running += not errors
            for rank, value in errors.items():
                outcomes[f"{value['error']} on rank {'0' if rank == 0 else '1 to 3'}"] += 1
                if value["error"] == "ValueError":
                    assert REFUSED in value["text"], jobs
                else:  # came when the other job had gone, or its own rank 0 had been refused already
                    assert value["error"] == "CollectiveTimeoutError", jobs
                    assert "did not arrive" in value["text"], jobs
            assert not errors or "ValueError" in {value["error"] for value in errors.values()}, jobs
        assert running >= 1, jobs
        outcomes[f"{running} of 2 jobs ran"] += 1
    print(dict(sorted(outcomes.items())))
    record_figure(
        key, starts=times, cross_joins=0, one_ran=outcomes["1 of 2 jobs ran"], both_ran=outcomes["2 of 2 jobs ran"]
    )


def test_two_jobs_with_one_key(tmp_path: Path) -> None:
    start_with_one_key("two_jobs", 3, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(170)
@pytest.mark.parametrize("part", range(4))
def test_two_jobs_with_one_key_100_times(part: int, tmp_path: Path) -> None:
    start_with_one_key(f"many_two_jobs: part {part}", 25, tmp_path)


def test_two_jobs_with_keys_of_their_own(tmp_path: Path) -> None:
    times = 5
    for jobs in start_both(times, tmp_path, [secrets.token_hex(8), secrets.token_hex(8)], 20.0):
        assert [value["error"] for ranks in jobs for value in ranks] == [None] * (2 * NUM_RANKS), jobs
    record_figure("two_jobs_with_own_keys", starts=times, both_ran=times)
