"""Collectives and messages of CUDA arrays on an emulated GPU: the host's bits; streams, failures, dcomm.group.

The bodies are in tests/support/cuda_cases.py; tests/gpu runs them on a real one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cuda_cases
import numpy as np
import pytest
from cuda_cases import INTEGER_DTYPES, MOVE_DTYPES, REDUCING, SUM_DTYPES, Make
from emulated_gpu import EmulatedGpu
from rank_threads import values

import dcomm


@pytest.fixture
def make(emulated_gpu: EmulatedGpu) -> Iterator[Make]:
    with cuda_cases.maker("cuda:0") as make_some:
        yield make_some


@pytest.mark.parametrize("op", ["sum", "avg"])
@pytest.mark.parametrize("dtype", SUM_DTYPES)
@pytest.mark.parametrize("name", REDUCING)
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_sums(emulated_gpu: EmulatedGpu, make: Make, n: int, name: str, dtype: str, op: str) -> None:
    cuda_cases.check_collective(emulated_gpu, make(n), name, dtype, op=op)


@pytest.mark.parametrize("dtype", INTEGER_DTYPES)
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_integer_sums(emulated_gpu: EmulatedGpu, make: Make, n: int, dtype: str) -> None:
    comms = make(n)
    for name in REDUCING:
        cuda_cases.check_collective(emulated_gpu, comms, name, dtype)
    for algo in ("two_shot", "ring"):
        cuda_cases.check_collective(emulated_gpu, comms, "all_reduce", dtype, algo=algo)


def test_forced_algorithm_that_integers_lack(
    monkeypatch: pytest.MonkeyPatch, emulated_gpu: EmulatedGpu, make: Make
) -> None:
    """DCOMM_ALGO says nothing about them."""
    monkeypatch.setenv("DCOMM_ALGO", "tree")
    cuda_cases.check_collective(emulated_gpu, make(3), "all_reduce", "int32")


@pytest.mark.parametrize("algo", ["two_shot", "one_shot", "ring", "tree"])
@pytest.mark.parametrize("wire", [None, "float16", "bfloat16"])
@pytest.mark.parametrize("n", [2, 3, 4])
def test_all_reduce_algorithms(emulated_gpu: EmulatedGpu, make: Make, n: int, wire: str | None, algo: str) -> None:
    comms = make(n)
    for op in ("sum", "avg"):
        cuda_cases.check_collective(emulated_gpu, comms, "all_reduce", "float32", op=op, wire_dtype=wire, algo=algo)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_fp8_wires(monkeypatch: pytest.MonkeyPatch, emulated_gpu: EmulatedGpu, make: Make, n: int) -> None:
    monkeypatch.setenv("DCOMM_ALGO", "tree")  # says nothing about them
    comms = make(n)
    for op, wire in (("sum", "fp8"), ("avg", "fp8_block128")):
        cuda_cases.check_collective(emulated_gpu, comms, "all_reduce", "float32", op=op, wire_dtype=wire)


@pytest.mark.parametrize("name", ["all_gather", "broadcast", "gather", "scatter", "all_to_all"])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_moves(emulated_gpu: EmulatedGpu, make: Make, n: int, name: str) -> None:
    comms = make(n)
    for dtype in MOVE_DTYPES if n == 3 else ["float32", "bfloat16", "int8"]:
        cuda_cases.check_collective(emulated_gpu, comms, name, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex128"])
@pytest.mark.parametrize("n", [2, 3, 4])
def test_messages(emulated_gpu: EmulatedGpu, make: Make, n: int, dtype: str) -> None:
    cuda_cases.check_messages(emulated_gpu, make(n), dtype)


@pytest.mark.parametrize("n", [2, 4])
def test_stream_order(emulated_gpu: EmulatedGpu, make: Make, n: int) -> None:
    cuda_cases.check_stream_order(emulated_gpu, make(n))


def test_barrier_of_streams(emulated_gpu: EmulatedGpu, make: Make) -> None:
    cuda_cases.check_barrier(emulated_gpu, make(3))


def test_mismatch_raises_on_all_ranks(emulated_gpu: EmulatedGpu, make: Make) -> None:
    before = emulated_gpu.num_launched
    comms = make(3)
    cuda_cases.check_mismatch(emulated_gpu, comms)
    assert emulated_gpu.num_launched == before + 2 * len(cuda_cases.COUNTS)  # of check_collective


def test_missing_rank(emulated_gpu: EmulatedGpu, make: Make) -> None:
    cuda_cases.check_missing_rank(emulated_gpu, make(3))


def test_message_errors(emulated_gpu: EmulatedGpu, make: Make) -> None:
    cuda_cases.check_message_errors(emulated_gpu, lambda: make(3))


def test_abort(emulated_gpu: EmulatedGpu, make: Make) -> None:
    cuda_cases.check_abort(emulated_gpu, make(3))


@pytest.mark.parametrize("n", [1, 2, 4])
def test_group(emulated_gpu: EmulatedGpu, make: Make, n: int) -> None:
    if n > 1:  # a rank sends to another one
        cuda_cases.check_group(emulated_gpu, make(n))
        return
    x = emulated_gpu.put(np.ones(4, np.float32))
    (comm,) = make(1)
    with dcomm.group([comm]):
        comm.all_reduce(x, "avg")
    assert (emulated_gpu.get(x) == 1).all()


def test_group_errors(emulated_gpu: EmulatedGpu, make: Make) -> None:
    cuda_cases.check_group_errors(emulated_gpu, make(3))


def test_group_keeps_inputs_until_the_launch(emulated_gpu: EmulatedGpu, make: Make) -> None:
    """Arrays of which the caller holds nothing are still there when the last rank's call comes."""
    comms = make(3)
    outs = [emulated_gpu.put(np.zeros(4000, np.float32)) for _ in comms]
    with dcomm.group(comms):
        for comm in comms:
            comm.all_reduce(emulated_gpu.put(np.full(4000, comm.rank + 1, np.float32)), out=outs[comm.rank])
            np.full(4000, 99, np.float32)  # would take the memory
        emulated_gpu.streams[0].synchronize()
    for out in outs:
        assert (emulated_gpu.get(out) == 6).all()


def test_a_rank_missing_on_the_gpu(emulated_gpu: EmulatedGpu, make: Make) -> None:
    """A kernel that waits in vain gives up in time; every rank hears of it in its next call."""
    comms = make(3)
    emulated_gpu.absent(1)

    def body(comm: dcomm.Communicator) -> str:
        x = emulated_gpu.put(np.zeros(100, np.float32))
        comm.all_reduce(x, timeout=0.2)
        with pytest.raises(dcomm.CollectiveTimeoutError) as caught:
            comm._core.synchronize_cuda(20_000_000_000)
        with pytest.raises(dcomm.CollectiveTimeoutError):
            comm.all_reduce(x)
        return str(caught.value)

    for text in values(comms, body):
        assert "gave up on the GPU, waiting for rank 1" in text


def test_more_ranks_than_the_gpu_holds(emulated_gpu: EmulatedGpu) -> None:
    with pytest.raises(dcomm.CudaError, match="40 ranks with 2 channels each need 80 thread blocks"):
        dcomm.init_threads(40, device=0)


def test_split_ranks_have_a_group_of_their_own(emulated_gpu: EmulatedGpu, make: Make) -> None:
    def body(comm: dcomm.Communicator) -> None:
        child = comm.split(comm.rank % 2)
        assert child is not None
        assert child.device == "cuda:0"
        x = emulated_gpu.put(np.full(10, comm.rank, np.float32))
        child.all_reduce(x)
        assert (emulated_gpu.get(x) == (2 if comm.rank % 2 == 0 else 4)).all()
        child.close()

    values(make(4), body)


def test_cpu_arrays_are_served_all_the_same(emulated_gpu: EmulatedGpu, make: Make) -> None:
    def body(comm: dcomm.Communicator) -> Any:
        return comm.all_reduce(np.ones(3, np.int64)).tolist()

    assert values(make(2), body) == [[2, 2, 2]] * 2
