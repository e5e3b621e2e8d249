"""Numbers of operations and messages that begin just below 2^32, or far beyond, change no result."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pytest
from differential import ALGOS, COLLECTIVES, DTYPES, REDUCTIONS, Case, check_case, ops_of
from rank_pool import RankPool

import dcomm

CASES_PER_GROUP = 40


@pytest.fixture(params=[2**32 - 16, 2**32 + 2**31 - 8, 2**40])
def first_number(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setenv("DCOMM_TEST_FIRST_NUMBER", str(request.param))
    monkeypatch.setenv("DCOMM_WINDOW_BYTES", "65536")  # many tiles of each array
    return request.param  # type: ignore[no-any-return]


def random_case(rng: np.random.Generator, world_size: int) -> Case:
    collective = str(rng.choice(["all_reduce", "all_reduce", *COLLECTIVES]))
    dtype = str(rng.choice(DTYPES))
    return Case(
        world_size=world_size,
        collective=collective,
        dtype=dtype,
        op=str(rng.choice(ops_of(dtype))) if collective in REDUCTIONS else "sum",
        algo=str(rng.choice(ALGOS)) if collective == "all_reduce" else "auto",
        wire=None,
        rows=int(rng.choice([0, 3, 200, 9000, 40_000])),
        layout="plain",
        out_layout=None,
        special=False,
        async_op=bool(rng.integers(2)),
        root=int(rng.integers(world_size)),
        seed=int(rng.integers(2**16)),
    )


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_results_are_right(world_size: int, first_number: int) -> None:
    rng = np.random.default_rng(world_size)
    pool = RankPool(world_size)
    try:
        for _ in range(CASES_PER_GROUP):
            check_case(pool, random_case(rng, world_size))
        pool.run(messages)
        numbers = pool.run(number_of_a_mismatch)
        assert len(set(numbers)) == 1
        assert max(first_number, 2**32) < numbers[0] < first_number + 10_000
    finally:
        pool.close()


def messages(comm: dcomm.Communicator) -> None:
    """Through more slots than there are: under credits."""
    work = comm.send(np.arange(60_000), (comm.rank + 1) % comm.world_size, async_op=True)
    x = np.empty(60_000, np.int64)
    comm.recv(x, (comm.rank - 1) % comm.world_size)
    work.wait()
    np.testing.assert_array_equal(x, np.arange(60_000))


def number_of_a_mismatch(comm: dcomm.Communicator) -> int:
    with pytest.raises(dcomm.MismatchError) as caught:
        comm.all_reduce(np.ones(1 + comm.rank))
    number = re.search(r"\) #(\d+) on rank", str(caught.value))
    assert number is not None
    assert f"as #{number[1]}" in str(caught.value)
    return int(number[1])
