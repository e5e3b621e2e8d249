"""A long life: memory, descriptors and threads stay what they are, and numbers pass 2^32 unnoticed.

    DCOMM_SOAK_SECONDS=1200 DCOMM_SOAK_JSON=soak.json pytest -m soak tests/reliability/test_soak.py

Runs two rank processes at low priority that pause most of the time, so it may run beside other work; nothing in it
depends on speed. The short one is among the tests that always run: it shows no slow leak, but that the programs, the
numbers at 2^32 and the check are in order.
"""

from __future__ import annotations

import faulthandler
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from figures import record_figure
from rank_processes import process_values
from slopes import Slope, slope

SCRIPT = Path(__file__).with_name("soak_ranks.py")
FIRST_NUMBER = 2**32 - 16  # each communicator passes 2^32 in its first moments, also a short-lived one
MOST_MIB_PER_HOUR = 1.0
# Below this a fit over minutes sees nothing but the allocator; what 15 minutes at that slope are.
MOST_MIB = 0.25


# One arena: with several, which thread gets which is luck, and shows as growth.
ENV = {"DCOMM_TEST_FIRST_NUMBER": str(FIRST_NUMBER), "DCOMM_WINDOW_BYTES": "262144", "MALLOC_ARENA_MAX": "1"}
PARTS = {"sums": 1500, "moves": 2000, "messages": 2000, "splits": 1500, "meetings": 200}


def run(seconds: float, **args: Any) -> list[dict[str, Any]]:
    return process_values(2, SCRIPT, "soak", {"seconds": seconds, **args}, env=ENV, timeout=3 * seconds + 600)


def after_warm_up(samples: list[dict[str, float]]) -> list[dict[str, float]]:
    """Without the first tenth: the ranks have warmed up before they sample."""
    return samples[len(samples) // 10 :]


def column(samples: list[dict[str, float]], name: str) -> list[float]:
    return [one[name] for one in samples]


def grows(found: Slope) -> bool:
    return found.most > max(MOST_MIB_PER_HOUR, MOST_MIB / found.hours)


def memory_slope(one: dict[str, Any]) -> Slope:
    samples = after_warm_up(one["samples"])
    return slope(column(samples, "s"), column(samples, "rss_mib"))


def check(of_ranks: list[dict[str, Any]]) -> None:
    for one in of_ranks:
        samples = after_warm_up(one["samples"])
        for name in ("descriptors", "threads", "mappings"):
            values = column(samples, name)
            assert max(values) - min(values) <= (16 if name == "mappings" else 0), (name, values)
        assert not grows(memory_slope(one)), memory_slope(one)


def report(of_ranks: list[dict[str, Any]]) -> None:
    one = of_ranks[0]
    slopes = [memory_slope(each) for each in of_ranks]
    worst = max(slopes, key=lambda found: found.most)
    wall_s = one["samples"][-1]["s"] - one["samples"][0]["s"]
    record_figure(
        "soak",
        minutes=wall_s / 60,
        operations=one["operations"],
        splits=one["splits"],
        meetings=one["meetings"],
        rss_mib_per_hour=worst.per_hour,
        rss_95_half_width=worst.half_width,
        descriptors=one["samples"][-1]["descriptors"],
        threads=one["samples"][-1]["threads"],
        cpu_percent=100 * one["cpu_s"] / wall_s,
    )
    target = os.environ.get("DCOMM_SOAK_JSON")
    if target:
        text = json.dumps({"ranks": of_ranks, "slopes": [found._asdict() for found in slopes]}, indent=1)
        Path(target).write_text(text + "\n")


@pytest.mark.soak
@pytest.mark.timeout(0)  # the ranks have a deadline of their own
def test_soak() -> None:
    faulthandler.cancel_dump_traceback_later()  # pytest's own limit, which no marker lifts
    seconds = float(os.environ.get("DCOMM_SOAK_SECONDS", "1200"))
    of_ranks = run(seconds)
    report(of_ranks)
    check(of_ranks)


@pytest.mark.long
@pytest.mark.parametrize("part", PARTS)
def test_nothing_grows_by_the_call(part: str) -> None:
    """A leak of some hundred bytes in each call, or of some thousand in each meeting, would show in seconds."""
    times = PARTS[part]
    for mib in process_values(2, SCRIPT, "repeat", {"part": part, "times": times}, env=ENV, timeout=110):
        growth = mib[-1] - mib[4]
        print(f"{part}: {growth * 2**20 / (times / 2):.1f} bytes in each of {times // 2} calls, after as many")
        assert growth < MOST_MIB, mib


def test_a_short_soak() -> None:
    of_ranks = run(3, warm_up_turns=1)
    for one in of_ranks:
        assert FIRST_NUMBER < 2**32 < FIRST_NUMBER + one["operations"]
        samples = after_warm_up(one["samples"])
        assert max(column(samples, "descriptors")) == min(column(samples, "descriptors"))
        assert max(column(samples, "threads")) == min(column(samples, "threads"))
    print({name: value for name, value in of_ranks[0].items() if name != "samples"})


def test_growth_would_be_noticed() -> None:
    seconds = np.arange(0, 900, 2.0)
    noise = np.random.default_rng(1).normal(0, 0.05, len(seconds))
    flat, leak = 50 + noise, 50 + noise + 1.5 * seconds / 3600  # 1.5 MiB an hour: 3 bytes of 4,000 in each second
    assert not grows(slope(seconds, flat))
    assert grows(slope(seconds, leak))
    assert slope(seconds, leak).least > 1
    with pytest.raises(ValueError, match="got 5 samples: expected at least 12"):
        slope(seconds[:5], flat[:5])
    samples = [{"s": s, "rss_mib": 50.0, "descriptors": 9 + s // 300, "threads": 3, "mappings": 90} for s in seconds]
    with pytest.raises(AssertionError, match="descriptors"):
        check([{"samples": samples}])
