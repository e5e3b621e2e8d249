"""Random calls of every collective against NumPy: any count, address, strides, dtype, operation, algorithm, wire.

Runs 2,000 examples; DCOMM_DIFFERENTIAL_EXAMPLES=20000 runs more. Half of them come from a fixed seed, half from one
that differs from run to run and is printed; DCOMM_DIFFERENTIAL_SEED repeats that half.
"""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import numpy as np
import pytest
from differential import ALGOS, COLLECTIVES, DTYPES, LAYOUTS, REDUCTIONS, Case, check_case, ops_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rank_pool import RankPool

FIXED_SEED = 20261123
NUM_EXAMPLES = int(os.environ.get("DCOMM_DIFFERENTIAL_EXAMPLES", "2000"))
Pools = Callable[[int], RankPool]


@pytest.fixture(scope="module")
def pools() -> Iterator[Pools]:
    """Ranks by world size, in windows with slots of 16 KiB: 10^5 elements take many tiles."""
    made: dict[int, RankPool] = {}

    def pool(world_size: int) -> RankPool:
        if world_size not in made:
            made[world_size] = RankPool(world_size)
        return made[world_size]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DCOMM_WINDOW_BYTES", "65536")
        yield pool
        for each in made.values():
            each.close()


@st.composite
def cases(draw: st.DrawFn) -> Case:
    world_size = draw(st.integers(1, 8))
    collective = draw(st.sampled_from(["all_reduce", *COLLECTIVES]))
    dtype = draw(st.sampled_from(DTYPES))
    reduces = collective in REDUCTIONS
    most_rows = draw(st.sampled_from([20, 20, 300, 5000, 100_000]))
    wires = [None, None, "float16", "bfloat16"] if collective == "all_reduce" and dtype == "float32" else [None]
    return Case(
        world_size=world_size,
        collective=collective,
        dtype=dtype,
        op=draw(st.sampled_from(ops_of(dtype))) if reduces else "sum",
        algo=draw(st.sampled_from(ALGOS)) if collective == "all_reduce" else "auto",
        wire=draw(st.sampled_from(wires)),
        rows=draw(st.integers(0, most_rows)),
        layout=draw(st.sampled_from(LAYOUTS)),
        out_layout=draw(st.sampled_from([None, *LAYOUTS])),
        special=draw(st.booleans()),
        async_op=draw(st.booleans()),
        root=draw(st.integers(0, world_size - 1)),
        seed=draw(st.integers(0, 2**16)),
    )


def run(pools: Pools, seed: int, num_examples: int, spoil: Callable[[Any], None] | None = None) -> Counter[str]:
    """The property over `num_examples` cases; how often each collective, dtype, ... was seen."""
    seen: Counter[str] = Counter()

    @hypothesis.seed(seed)
    @settings(
        max_examples=num_examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
        report_multiple_bugs=False,
    )
    @given(case=cases())
    def every_result_is_right(case: Case) -> None:
        seen["examples"] += 1
        for value in (case.collective, case.dtype, case.op, case.algo, f"ranks {case.world_size}", str(case.wire)):
            seen[value] += 1
        check_case(pools(case.world_size), case, spoil)

    every_result_is_right()
    return seen


@pytest.mark.timeout(600)
def test_fixed_seed(pools: Pools) -> None:
    seen = run(pools, FIXED_SEED, NUM_EXAMPLES // 2)
    print(dict(seen))
    assert seen["examples"] >= NUM_EXAMPLES // 2
    for name in (*COLLECTIVES, *DTYPES, *ALGOS, *ops_of("float32"), *ops_of("int8"), "float16", "bfloat16"):
        assert seen[name] > 0, name
    assert all(seen[f"ranks {n}"] for n in range(1, 9))


@pytest.mark.timeout(600)
def test_random_seed(pools: Pools, capsys: pytest.CaptureFixture[str]) -> None:
    given_seed = os.environ.get("DCOMM_DIFFERENTIAL_SEED")
    seed = int(given_seed) if given_seed else secrets.randbits(32)
    command = f"DCOMM_DIFFERENTIAL_EXAMPLES={NUM_EXAMPLES} DCOMM_DIFFERENTIAL_SEED={seed}"
    with capsys.disabled():
        print(f"\nto repeat: {command} pytest tests/test_differential.py -k random_seed")
    assert run(pools, seed, NUM_EXAMPLES // 2)["examples"] >= NUM_EXAMPLES // 2


def flip_one_bit(result: Any) -> None:
    """In the upper half of the last element, of arrays long enough that few examples are."""
    if result.size > 100:
        result.reshape(-1).view(np.uint8)[-1] ^= 0x10


def test_one_wrong_element_is_found_and_the_example_made_small(pools: Pools) -> None:
    with pytest.raises(AssertionError) as caught:
        run(pools, FIXED_SEED, 300, flip_one_bit)
    notes = "\n".join(getattr(caught.value, "__notes__", []))
    print(notes)
    assert "every_result_is_right(" in notes
    assert "case=Case(world_size=" in notes


def test_a_wrong_operation_is_found(pools: Pools) -> None:
    case = Case(3, "all_reduce", "float32", "max", "ring", None, 40, "plain", None, False, False, 0, 1)

    def as_if_min(result: Any) -> None:
        result[...] = np.minimum(result, result[::-1])

    check_case(pools(3), case)
    with pytest.raises(AssertionError):
        check_case(pools(3), case, as_if_min)
