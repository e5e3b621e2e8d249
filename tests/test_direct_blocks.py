"""reduce_scatter and all_gather of inputs that all ranks reach: read where they lie, with the bits of the slots."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rank_processes import WORKERS, Ranks, process_values
from rank_threads import run_threads, thread_outcomes

import dcomm
from dcomm import cuda_operation, operation

SCRIPT = WORKERS / "window_ranks.py"
COUNT = 5003
LARGE = 40_000  # floats: "auto" asks
FLOATS = ("float32", "float64", "float16", "complex64", "complex128")
OPS = {
    **dict.fromkeys(FLOATS[:3], ("sum", "avg", "prod", "min", "max")),
    **dict.fromkeys(FLOATS[3:], ("sum", "avg")),
    **dict.fromkeys(("int8", "uint8", "int32", "int64", "bool"), ("sum", "prod", "min", "max", "band", "bxor")),
}


def random_array(rank: int, dtype: str, count: int) -> NDArray[Any]:
    random = np.random.default_rng([rank, count, len(dtype)])
    if dtype not in FLOATS:
        return random.integers(0, 2 if dtype == "bool" else 100, count).astype(dtype)
    return (random.standard_normal(count) * 10).astype(dtype)


def counted(comm: dcomm.Communicator, call: Callable[[], Any]) -> tuple[int, int]:
    """Operations that were direct, and bytes sent, by `call`."""
    before = comm.stats()
    call()
    after = comm.stats()
    return after["num_direct"] - before["num_direct"], after["num_sent_bytes"] - before["num_sent_bytes"]


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_bits_of_the_slots_for_every_dtype_and_op(world_size: int) -> None:
    def body(comm: dcomm.Communicator) -> None:
        rank, n = comm.rank, comm.world_size
        memory = comm.empty(3 * n * COUNT * 16, np.uint8)
        for number, (dtype, ops) in enumerate(OPS.items()):
            nbytes = n * COUNT * np.dtype(dtype).itemsize
            x = memory[64 * (number + 5 * rank) :][:nbytes].view(dtype)  # elsewhere on every rank
            block = slice(rank * COUNT, (rank + 1) * COUNT)
            for op in ops:
                x[:] = given = random_array(rank, dtype, n * COUNT)
                expected = comm.reduce_scatter(given, op, algo="flat")
                found: list[Any] = []
                assert counted(comm, lambda: found.append(comm.reduce_scatter(x, op, algo="direct"))) == (1, 0)  # noqa: B023
                assert found[0].tobytes() == expected.tobytes(), (dtype, op)
                assert x.tobytes() == given.tobytes()
                assert comm.reduce_scatter(x, op, out=x[block], algo="direct").tobytes() == expected.tobytes()
            x[:] = 0
            x[block] = own = random_array(rank, dtype, COUNT)
            expected = comm.all_gather(own, algo="flat")
            assert counted(comm, lambda: comm.all_gather(x[block], out=x, algo="direct")) == (1, 0)  # noqa: B023
            assert x.tobytes() == expected.tobytes(), dtype
            assert comm.all_gather(x[block], algo="direct").tobytes() == expected.tobytes()

    run_threads(world_size, body)


def test_auto_asks_where_a_region_was_made_and_the_message_is_large() -> None:
    def body(comm: dcomm.Communicator) -> None:
        n, rank = comm.world_size, comm.rank
        own, small = np.ones(n * LARGE, np.float32), np.ones(n * 16, np.float32)
        block = 4 * LARGE
        assert counted(comm, lambda: comm.reduce_scatter(own)) == (0, (n - 1) * block)
        x, other = comm.empty(n * LARGE + 64), comm.empty(n * LARGE)
        x[:] = 1
        part = x[16 * rank :][: n * LARGE]

        def all_ways(x: Any) -> list[tuple[int, int]]:
            calls: list[Callable[[], Any]] = [
                lambda: comm.reduce_scatter(x, "avg"),
                lambda: comm.reduce_scatter(x, async_op=True).wait(),
                lambda: comm.all_gather(x[:LARGE], timeout=20),
                lambda: comm.all_gather(x[:LARGE], async_op=True).wait(),
            ]
            return [counted(comm, call) for call in calls]

        staged = (0, (n - 1) * block)
        assert all_ways(part) == [(1, 0)] * 4
        assert all_ways(own) == [staged] * 4
        assert all_ways(own if rank == 1 else part) == [staged] * 4  # one rank has its array elsewhere
        assert all_ways(other if rank == 1 else part) == [staged] * 4  # ... in another array of comm.empty
        assert counted(comm, lambda: comm.reduce_scatter(part, dcomm.premul_sum(0.5))) == staged
        assert counted(comm, lambda: comm.reduce_scatter(x[::2][: n * 9000], algo="auto")) == (0, (n - 1) * 4 * 9000)
        assert counted(comm, lambda: comm.reduce_scatter(x[: n * 16])) == (0, (n - 1) * 64)
        assert counted(comm, lambda: comm.reduce_scatter(part, algo="flat")) == staged
        assert counted(comm, lambda: comm.reduce_scatter(x[: n * 16], algo="direct")) == (1, 0)
        assert counted(comm, lambda: comm.all_gather(small[:0], algo="direct")) == (0, 0)
        with pytest.raises(ValueError, match="algo='direct' with memory that the other ranks do not reach"):
            comm.reduce_scatter(own, algo="direct")
        with pytest.raises(ValueError, match="memory that the other ranks do not reach"):
            comm.all_gather(small, algo="direct")
        with pytest.raises(ValueError, match="algo='direct' with premul_sum"):
            comm.reduce_scatter(part, dcomm.premul_sum(2), algo="direct")
        with pytest.raises(ValueError, match="algo='ring': expected one of 'auto', 'flat', 'direct'"):
            comm.all_gather(part, algo="ring")
        comm.barrier()

    run_threads(3, body)


@pytest.mark.parametrize(("forced", "counts"), [("direct", (1, 0)), ("two_shot", (0, 64))])
def test_environment_override(forced: str, counts: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCOMM_ALGO", forced)

    def body(comm: dcomm.Communicator) -> None:
        x = comm.empty(2 * 16)
        assert counted(comm, lambda: comm.reduce_scatter(x)) == counts  # however small it is
        comm.all_gather(np.ones(LARGE, np.float32))
        assert comm.empty(3 * LARGE)[:0].size == 0
        assert comm.all_gather(np.ones(LARGE, np.float32))[-1] == 1

    run_threads(2, body)


def mismatched(comm: dcomm.Communicator, what: str) -> None:
    x, other = comm.empty(2 * LARGE), comm.empty(2 * LARGE)
    odd = comm.rank == 1
    if what == "other array":
        comm.all_gather(other if odd else x, algo="direct", timeout=20)
    elif what == "other algo":
        comm.reduce_scatter(x, algo="auto" if odd else "direct", timeout=20)
    else:
        comm.all_gather(x[: LARGE if odd else LARGE + 1], algo="direct", timeout=20)


@pytest.mark.parametrize(
    ("what", "texts"),
    [
        ("other array", ["algo=direct, x=shared array 1)", "x=shared array 2)", "parts of the same array"]),
        (
            "other algo",
            ["count=40000, dtype=float32, op=sum, algo=auto)", "algo=direct, x=shared array"],
        ),
        ("other count", ["count=40000, ", "count=40001, "]),
    ],
)
def test_ranks_that_disagree_all_raise(what: str, texts: list[str]) -> None:
    for error in thread_outcomes(2, lambda comm: mismatched(comm, what)):
        assert isinstance(error, dcomm.MismatchError), error
        for text in texts:
            assert text in str(error), error


@pytest.mark.parametrize("algo", ["auto", "direct"])
def test_a_missing_rank_is_named(algo: str) -> None:
    def body(comm: dcomm.Communicator) -> None:
        x = comm.empty(2 * LARGE)
        if comm.rank == 0:
            comm.all_gather(x, algo=algo, timeout=0.2)

    missing, _ = thread_outcomes(2, body)
    assert isinstance(missing, dcomm.CollectiveTimeoutError), missing
    assert "rank 1" in str(missing)


def test_operation_keeps_a_dropped_array() -> None:
    def body(comm: dcomm.Communicator) -> None:
        for step in range(10):
            x = comm.empty(LARGE)
            x[:] = comm.rank + step
            work = comm.all_gather(x, async_op=True)
            del x
            found = work.wait(30)
            assert (found[0], found[-1]) == (step, step + 1)
        comm.barrier()

    run_threads(2, body)


@pytest.mark.parametrize("kind", [operation.REDUCE_SCATTER, operation.ALL_GATHER])
def test_cuda_arrays_go_through_slots(kind: int) -> None:
    cuda_operation._check_bounds(operation.Operation(kind, 1, 0))
    for algo, code in (("flat", 3), ("direct", 6)):
        with pytest.raises(ValueError, match=rf"algo='{algo}' with a CUDA array: on CUDA there is 'auto'"):
            cuda_operation._check_bounds(operation.Operation(kind, 1, 0, algo=code))


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes(world_size: int) -> None:
    assert process_values(world_size, SCRIPT, "direct_blocks") == ["same"] * world_size


def test_rank_dies_during_direct() -> None:
    with Ranks(3, SCRIPT, "die_in_direct_blocks") as ranks:
        for rank in range(3):
            ranks.wait_for_mark(rank, "running")
        ranks.send(1, signal.SIGKILL)
        for result in ranks.finish(40):
            if result.rank == 1:
                continue
            assert result.returncode == 0, result
            assert result.value["error"] == "PeerLostError", result
            assert "rank 1" in result.value["text"]


def test_memory_that_comes_when_it_is_needed() -> None:
    for value in process_values(2, SCRIPT, "reserve_and_commit"):
        assert value["before_kb"] < 10_000, value  # of gigabytes of addresses
        assert 60_000 < value["after_kb"] < 90_000, value  # what was committed
        assert value["direct"] == 2
        assert "expected a part of the window" in value["beyond"]
        assert value["left"] == 0
