"""Ranks of different dcomm in one job: every rank is told, soon, which rank has which version and protocol."""

from __future__ import annotations

import pytest
from figures import record_figure
from rank_processes import WORKERS, process_values

import dcomm

SCRIPT = WORKERS / "process_ranks.py"


@pytest.mark.parametrize("odd_rank", [0, 2])
@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("DCOMM_TEST_VERSION", "9.8.7", "9.8.7 (protocol 1)"),
        ("DCOMM_TEST_PROTOCOL", "77", f"{dcomm.__version__} (protocol 77)"),
    ],
    ids=["version", "protocol"],
)
def test_two_versions_in_one_job(variable: str, value: str, said: str, odd_rank: int) -> None:
    world_size = 3
    env: list[dict[str, str]] = [{} for _ in range(world_size)]
    env[odd_rank][variable] = value
    values = process_values(world_size, SCRIPT, "init_and_report", env=env)
    for outcome in values:
        assert outcome["error"] == "VersionMismatchError", outcome
        for rank in range(world_size):
            has = said if rank == odd_rank else f"{dcomm.__version__} (protocol 1)"
            assert f"rank {rank} has {has}" in outcome["text"], outcome
        assert "install the same dcomm for all ranks" in outcome["text"]
    slowest = max(outcome["seconds"] for outcome in values)
    record_figure(f"versions: {variable} of rank {odd_rank}", ranks=world_size, slowest_s=slowest)
    assert slowest <= 2
