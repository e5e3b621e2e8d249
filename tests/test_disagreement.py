"""Ranks that disagree or stay away: everybody gets a typed error that names both sides, soon, and nobody wrong data."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from rank_threads import thread_outcomes

import dcomm

Call = Callable[[dcomm.Communicator], Any]


def f32(count: int) -> Any:
    return np.ones(count, np.float32)


def scatter(comm: dcomm.Communicator, dtype: Any) -> Any:
    if comm.rank == 0:
        return comm.scatter(np.ones(6 * comm.world_size, dtype))
    return comm.scatter(out=np.ones(6, dtype))


MISMATCHES: dict[str, tuple[Call, Call, str, str]] = {
    "count": (lambda c: c.all_reduce(f32(100)), lambda c: c.all_reduce(f32(101)), "count=100,", "count=101,"),
    "count by chunks": (
        lambda c: c.all_reduce(f32(10)),
        lambda c: c.all_reduce(f32(900_000)),
        "count=10,",
        "count=900000,",
    ),
    "empty": (lambda c: c.all_reduce(f32(0)), lambda c: c.all_reduce(f32(1)), "count=0,", "count=1,"),
    "dtype": (
        lambda c: c.all_reduce(f32(64)),
        lambda c: c.all_reduce(np.ones(64, np.int32)),
        "dtype=float32",
        "dtype=int32",
    ),
    "op": (lambda c: c.all_reduce(f32(64)), lambda c: c.all_reduce(f32(64), "avg"), "op=sum", "op=avg"),
    "wire": (
        lambda c: c.all_reduce(f32(64)),
        lambda c: c.all_reduce(f32(64), wire_dtype="bf16"),
        "wire_dtype=float32",
        "wire_dtype=bfloat16",
    ),
    "algo": (
        lambda c: c.all_reduce(f32(64), algo="ring"),
        lambda c: c.all_reduce(f32(64), algo="two_shot"),
        "algo=ring",
        "algo=two_shot",
    ),
    "collective": (lambda c: c.all_reduce(f32(64)), lambda c: c.barrier(), "all_reduce(count=64", "barrier()"),
    "broadcast": (
        lambda c: c.broadcast(f32(64), 1),
        lambda c: c.all_reduce(f32(64)),
        "broadcast(count=64",
        "all_reduce(",
    ),
    "one of two operations of bool": (
        lambda c: c.all_reduce(np.ones(9, bool)),
        lambda c: c.all_reduce(np.ones(9, bool), "bxor"),
        "op=sum",
        "op=bxor",
    ),
    "premul_sum": (
        lambda c: c.all_reduce(f32(64)),
        lambda c: c.all_reduce(f32(64), dcomm.premul_sum(1.0)),
        "op=sum",
        "op=premul_sum",
    ),
    "one_shot and tree": (
        lambda c: c.all_reduce(f32(5000), algo="tree"),
        lambda c: c.all_reduce(f32(5000), algo="one_shot"),
        "algo=tree",
        "algo=one_shot",
    ),
    "reduce_scatter's count": (
        lambda c: c.reduce_scatter(f32(4 * c.world_size)),
        lambda c: c.reduce_scatter(f32(5 * c.world_size)),
        "reduce_scatter(count=4,",
        "reduce_scatter(count=5,",
    ),
    "reduce_scatter's op": (
        lambda c: c.reduce_scatter(f32(4 * c.world_size)),
        lambda c: c.reduce_scatter(f32(4 * c.world_size), "max"),
        "op=sum",
        "op=max",
    ),
    "all_gather's dtype": (
        lambda c: c.all_gather(f32(70)),
        lambda c: c.all_gather(np.ones(70, np.uint8)),
        "dtype=float32",
        "dtype=uint8",
    ),
    "all_gather and all_to_all": (
        lambda c: c.all_gather(f32(64)),
        lambda c: c.all_to_all(f32(64 * c.world_size)),
        "all_gather(",
        "all_to_all(",
    ),
    "all_to_all's count": (
        lambda c: c.all_to_all(f32(6 * c.world_size)),
        lambda c: c.all_to_all(f32(7 * c.world_size)),
        "count=6,",
        "count=7,",
    ),
    "reduce's op": (lambda c: c.reduce(f32(64)), lambda c: c.reduce(f32(64), "min"), "op=sum", "op=min"),
    "reduce's dst": (lambda c: c.reduce(f32(64)), lambda c: c.reduce(f32(64), dst=1), "dst=0", "dst=1"),
    "gather's count": (lambda c: c.gather(f32(64)), lambda c: c.gather(f32(63)), "count=64,", "count=63,"),
    "gather and reduce": (lambda c: c.gather(f32(64)), lambda c: c.reduce(f32(64)), "gather(", "reduce("),
    "scatter's dtype": (
        lambda c: scatter(c, np.float32),
        lambda c: scatter(c, np.int32),
        "dtype=float32",
        "dtype=int32",
    ),
    "asynchronous": (
        lambda c: c.all_reduce(f32(64), async_op=True).wait(),
        lambda c: c.all_reduce(f32(65)),
        "count=64,",
        "count=65,",
    ),
}


@pytest.mark.parametrize("odd_rank", [0, 1, -1])
@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("what", MISMATCHES)
def test_mismatch_raises_on_every_rank_and_names_both_sides(what: str, world_size: int, odd_rank: int) -> None:
    usual, odd, usual_text, odd_text = MISMATCHES[what]

    def body(comm: dcomm.Communicator) -> tuple[float, BaseException | None]:
        comm.barrier()
        start = time.monotonic()
        try:
            (odd if comm.rank == odd_rank % world_size else usual)(comm)
            comm.barrier(timeout=10)  # where a rank need not hear from all: its next operation
        except dcomm.DcommError as error:
            return time.monotonic() - start, error
        return time.monotonic() - start, None

    results = thread_outcomes(world_size, body, timeout=20)
    for result in results:
        assert isinstance(result, tuple), result
        seconds, error = result
        assert type(error) is dcomm.MismatchError, error
        assert seconds < 1.0
        text = str(error)
        assert "the ranks disagree about the operation" in text
        assert f"rank {odd_rank % world_size} called" in text
        assert usual_text in text
        assert odd_text in text


def test_different_sources_of_a_broadcast() -> None:
    """The source need not hear from all, so it may learn of it in its next operation only."""

    def body(comm: dcomm.Communicator) -> None:
        comm.broadcast(f32(1000), comm.rank)
        comm.barrier(timeout=10)

    for result in thread_outcomes(2, body, timeout=20):
        assert type(result) is dcomm.MismatchError, result
        assert "rank 0 called" in str(result)
        assert "rank 1 called" in str(result)


def test_random_disagreements_are_never_silent() -> None:
    rng = np.random.default_rng(11)
    for _ in range(40):
        world_size = int(rng.integers(2, 5))
        odd_rank = int(rng.integers(world_size))
        names = list(MISMATCHES)
        usual, odd = MISMATCHES[names[rng.integers(len(names))]][:2]
        num_before = int(rng.integers(0, 4))

        def body(
            comm: dcomm.Communicator,
            num_before: int = num_before,
            odd_rank: int = odd_rank,
            usual: Call = usual,
            odd: Call = odd,
        ) -> None:
            for _ in range(num_before):
                comm.all_reduce(f32(5))
            (odd if comm.rank == odd_rank else usual)(comm)
            comm.barrier(timeout=10)

        results = thread_outcomes(world_size, body, timeout=20)
        assert {type(result) for result in results} == {dcomm.MismatchError}, results


@pytest.mark.parametrize("algo", ["two_shot", "ring"])
@pytest.mark.parametrize(
    ("world_size", "late"),
    [(2, 0), (4, 2), *(pytest.param(*case, marks=pytest.mark.long) for case in ((2, 1), (4, 1), (5, 0)))],
)
def test_timeout_names_the_rank_behind(world_size: int, late: int, algo: str) -> None:
    """First to give up is a rank that, in a ring, has heard from its neighbour: the rank behind is farther away."""
    timeout = 0.3
    first = (late - 1) % world_size

    def body(comm: dcomm.Communicator) -> tuple[float, str] | None:
        comm.barrier()
        if comm.rank == late:
            time.sleep(1.5)
            with pytest.raises(dcomm.CollectiveTimeoutError):
                comm.all_reduce(f32(100), algo=algo)
            return None
        start = time.monotonic()
        with pytest.raises(dcomm.CollectiveTimeoutError) as caught:
            comm.all_reduce(f32(100), algo=algo, timeout=timeout if comm.rank == first else 2 * timeout)
        return time.monotonic() - start, str(caught.value)

    results = thread_outcomes(world_size, body, timeout=20)
    assert results[late] is None
    for rank, result in enumerate(results):
        if rank == late:
            continue
        assert isinstance(result, tuple), result
        seconds, text = result
        assert 0.9 * timeout <= seconds <= timeout + 1
        assert f"no answer from rank {late}, which is alive, within" in text
        assert f"rank {late} finished #1" in text
        assert f"rank {rank} in #2" in text


def test_slow_is_fine_and_warns_once(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCOMM_WARN_S", "0.2")

    def body(comm: dcomm.Communicator) -> float:
        if comm.rank == 1:
            time.sleep(0.8)
        return float(comm.all_reduce(f32(1), timeout=10)[0])

    assert thread_outcomes(2, body) == [2.0, 2.0]
    err = capfd.readouterr().err
    assert err.count("dcomm: rank 0 has waited") == 1
    assert "for rank 1; positions: rank 0 in #1, rank 1 finished #0" in err


@pytest.mark.parametrize("algo", ["two_shot", "ring"])
def test_a_peer_that_is_done_may_leave(algo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others may still wait for each other in the operation that it has completed."""
    monkeypatch.setenv("DCOMM_WINDOW_BYTES", "65536")  # small windows are made fast

    def body(comm: dcomm.Communicator) -> float:
        result = float(comm.all_reduce(f32(20_000), algo=algo, timeout=30)[-1])
        comm.close()
        return result

    for _ in range(100):
        assert thread_outcomes(6, body) == [6.0] * 6


def test_a_peer_that_closes_is_named() -> None:
    def body(comm: dcomm.Communicator) -> BaseException | None:
        comm.barrier()
        if comm.rank == 2:
            comm.close()
            return None
        with pytest.raises(dcomm.PeerLostError) as caught:
            comm.all_reduce(f32(10), timeout=10)
        return caught.value

    results = thread_outcomes(3, body)
    assert all("rank 2 closed its communicator after completing #1" in str(result) for result in results[:2])
