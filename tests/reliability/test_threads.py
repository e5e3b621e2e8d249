"""Threads against communicators: each call is right or refused with ConcurrentUseError, and refusing harms nobody."""

from __future__ import annotations

from pathlib import Path

import pytest
from figures import record_figure
from rank_processes import process_values

SCRIPT = Path(__file__).with_name("thread_ranks.py")


@pytest.mark.parametrize("num_groups", [8, 1])
def test_eight_threads(num_groups: int) -> None:
    each = 100
    args = {"num_threads": 8, "num_groups": num_groups, "each": each}
    values = process_values(2, SCRIPT, "threads_against_groups", args)
    for value in values:
        assert value["wrong"] == 0, value
        assert value["right"] == each * num_groups
        for text in value["texts"]:
            assert "another thread is using this communicator" in text, text
    refused = sum(value["refused"] for value in values)
    record_figure(f"eight_threads: {num_groups} communicators", right=each * num_groups, refused=refused, wrong=0)
    assert num_groups > 1 or refused > 0  # with one, the threads do meet
