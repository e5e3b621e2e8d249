"""Ranks as threads on one GPU: the same bits as the host executor, in stream order, and every failure typed.

The wide version with all counts, compute-sanitizer and timings is tools/gpu_check.sh.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from cuda_arrays import bits, make_input
from rank_threads import run_threads, thread_outcomes

import dcomm

pytestmark = pytest.mark.gpu

PAIRS = [
    ("float32", None),
    ("float32", "bfloat16"),
    ("float32", "float16"),
    ("bfloat16", None),
    ("float16", None),
]


def all_reduce(world_size: int, make: Callable[[int], Any], **arguments: Any) -> list[Any]:
    """The result of every rank, on the CPU."""
    import torch

    def body(comm: dcomm.Communicator) -> Any:
        x = make(comm.rank)
        out = torch.empty_like(x)
        comm.all_reduce(x, out=out, **arguments)
        if x.is_cuda:
            torch.cuda.synchronize()
        return out.cpu()

    return run_threads(world_size, body)


@pytest.mark.parametrize("algo", ["two_shot", "ring", "one_shot", "tree"])
@pytest.mark.parametrize(("dtype", "wire"), PAIRS)
@pytest.mark.parametrize("world_size", [2, 3, 4, 8])
def test_same_bits_as_the_host(world_size: int, dtype: str, wire: str | None, algo: str) -> None:
    import torch

    for op in ("sum", "avg"):
        for count in (0, 1, 7, 1000, 65536 + 3):
            arguments = {"op": op, "wire_dtype": wire, "algo": algo}
            host = all_reduce(world_size, lambda rank, n=count: make_input(rank, n, dtype), **arguments)
            device = all_reduce(world_size, lambda rank, n=count: make_input(rank, n, dtype).cuda(), **arguments)
            for rank in range(world_size):
                assert torch.equal(bits(device[rank]), bits(host[0])), (op, count, rank)


@pytest.mark.parametrize("algo", ["two_shot", "ring", "one_shot", "tree"])
def test_unaligned_in_place(algo: str) -> None:
    import torch

    count = 5000

    def body(comm: dcomm.Communicator) -> Any:
        storage = torch.full((count + 8,), 7.0, device="cuda")
        x = storage[1 : count + 1]
        x.copy_(make_input(comm.rank, count, "float32"))
        comm.all_reduce(x, wire_dtype="float16", algo=algo)
        torch.cuda.synchronize()
        assert storage[0] == 7
        assert torch.all(storage[count + 1 :] == 7)
        return x.cpu()

    expected = all_reduce(3, lambda rank: make_input(rank, count, "float32"), wire_dtype="float16", algo=algo)[0]
    for result in run_threads(3, body):
        assert torch.equal(bits(result), bits(expected))


def test_runs_in_stream_order() -> None:
    """Each rank on its own stream: input written late, result read at once, many operations in a row."""
    import torch

    def body(comm: dcomm.Communicator) -> list[float]:
        seen = []
        with torch.cuda.stream(torch.cuda.Stream()):
            x = torch.empty(1 << 18, device="cuda")
            for turn in range(20):
                torch.cuda._sleep(200_000 * (comm.rank + 1))
                x.fill_(turn + comm.rank)
                comm.all_reduce(x)
                seen.append(x.sum())
            torch.cuda.current_stream().synchronize()
        return [float(total) / (1 << 18) for total in seen]

    for result in run_threads(4, body):
        assert result == [4 * turn + 6 for turn in range(20)]


def test_asynchronous_to_the_gpu() -> None:
    import torch

    def body(comm: dcomm.Communicator) -> float:
        x = torch.ones(1000, device="cuda")
        comm.all_reduce(x)  # makes windows, loads kernels
        torch.cuda.synchronize()
        if comm.rank == 0:
            torch.cuda._sleep(1_000_000_000)  # about half a second
        start = time.perf_counter()
        comm.all_reduce(x)
        elapsed = time.perf_counter() - start
        torch.cuda.synchronize()
        return elapsed

    assert max(run_threads(2, body)) < 0.2


def test_mismatch_raises_on_all_ranks() -> None:
    import torch

    def body(comm: dcomm.Communicator) -> None:
        comm.all_reduce(torch.ones(10 + comm.rank // 2, device="cuda"))

    for outcome in thread_outcomes(3, body):
        assert isinstance(outcome, dcomm.MismatchError)
        assert "10" in str(outcome)
        assert "11" in str(outcome)


def test_missing_rank_is_named_and_a_new_communicator_works() -> None:
    import torch

    gone = threading.Event()

    def body(comm: dcomm.Communicator) -> None:
        x = torch.ones(10, device="cuda")
        if comm.rank == 1:
            gone.wait(30)
            return
        try:
            comm.all_reduce(x, timeout=0.3)
        finally:
            if comm.rank == 0:
                time.sleep(0.5)  # the other's deadline passes too
                gone.set()

    results = thread_outcomes(3, body)
    assert results[1] is None
    for rank in (0, 2):
        assert isinstance(results[rank], dcomm.CollectiveTimeoutError)
        assert "rank 1" in str(results[rank])
    for total in run_threads(3, lambda comm: comm.all_reduce(torch.ones(10, device="cuda")).sum().item()):
        assert total == 30


def test_more_ranks_than_the_gpu_holds() -> None:
    import torch

    def body(comm: dcomm.Communicator) -> None:
        comm.all_reduce(torch.ones(10, device="cuda"))

    for outcome in thread_outcomes(200, body):
        assert isinstance(outcome, dcomm.CudaError)
        assert "200 ranks" in str(outcome)


def test_a_capture_of_one_rank_alone_is_refused() -> None:
    import torch

    def body(comm: dcomm.Communicator) -> None:
        x = torch.ones(10, device="cuda")
        comm.all_reduce(x)
        torch.cuda.synchronize()
        if comm.rank == 1:
            comm.all_reduce(x, timeout=30)
            return
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.Stream(), capture_error_mode="thread_local"):
            comm.all_reduce(x)

    for outcome in thread_outcomes(2, body):
        assert isinstance(outcome, ValueError)
        assert "rank 0's stream is capturing" in str(outcome)


def test_the_floor_of_a_launch_and_a_flag() -> None:
    empty_launch_us, round_trip_us = dcomm._core.cuda_launch_floor(0)
    assert 0 < empty_launch_us < 1000
    assert 0 < round_trip_us < 1000
