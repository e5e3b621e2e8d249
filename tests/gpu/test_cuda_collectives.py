"""Collectives, messages, streams, failures and dcomm.group of CUDA tensors: the bodies that CI runs on an emulated GPU.

And what that cannot show: torch's and CuPy's own arrays and streams, and CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cuda_cases
import numpy as np
import pytest
from cuda_cases import INTEGER_DTYPES, MOVE_DTYPES, REDUCING, SUM_DTYPES, Make
from rank_threads import values
from torch_gpu import TorchGpu

import dcomm

pytestmark = pytest.mark.gpu

GPU = TorchGpu()


@pytest.fixture
def make() -> Iterator[Make]:
    with cuda_cases.maker("cuda") as make_some:
        yield make_some


@pytest.mark.parametrize("op", ["sum", "avg"])
@pytest.mark.parametrize("dtype", SUM_DTYPES)
@pytest.mark.parametrize("name", REDUCING)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 8])
def test_sums(make: Make, n: int, name: str, dtype: str, op: str) -> None:
    cuda_cases.check_collective(GPU, make(n), name, dtype, op=op)


@pytest.mark.parametrize("dtype", INTEGER_DTYPES)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 8])
def test_integer_sums(make: Make, n: int, dtype: str) -> None:
    comms = make(n)
    for name in REDUCING:
        cuda_cases.check_collective(GPU, comms, name, dtype)
    for algo in ("two_shot", "ring"):
        cuda_cases.check_collective(GPU, comms, "all_reduce", dtype, algo=algo)


@pytest.mark.parametrize("name", ["all_gather", "broadcast", "gather", "scatter", "all_to_all"])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 8])
def test_moves(make: Make, n: int, name: str) -> None:
    comms = make(n)
    for dtype in MOVE_DTYPES:
        cuda_cases.check_collective(GPU, comms, name, dtype)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_messages(make: Make, n: int) -> None:
    cuda_cases.check_messages(GPU, make(n), "bfloat16")


@pytest.mark.parametrize("n", [2, 4])
def test_stream_order(make: Make, n: int) -> None:
    cuda_cases.check_stream_order(GPU, make(n))


def test_barrier_of_streams(make: Make) -> None:
    cuda_cases.check_barrier(GPU, make(3))


def test_failures(make: Make) -> None:
    cuda_cases.check_mismatch(GPU, make(3))
    cuda_cases.check_missing_rank(GPU, make(3))
    cuda_cases.check_message_errors(GPU, lambda: make(3))
    cuda_cases.check_abort(GPU, make(3))


def test_group(make: Make) -> None:
    cuda_cases.check_group(GPU, make(4))
    cuda_cases.check_group_errors(GPU, make(3))


def test_torch_s_current_stream_is_the_default(make: Make) -> None:
    import torch

    comms = make(2)

    def body(comm: dcomm.Communicator) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            x = torch.zeros(1000, device="cuda")
            torch.cuda._sleep(100_000_000)
            x.fill_(comm.rank + 1)
            gathered = comm.all_gather(x)
            assert gathered.shape == (2000,)
            total = gathered.sum()
            torch.cuda.current_stream().synchronize()
        assert float(total) == 3000

    values(comms, body)


def test_other_libraries_arrays(make: Make) -> None:
    """The interface and DLPack of torch's own memory."""
    import torch

    class Interface:
        def __init__(self, tensor: Any) -> None:
            self.__cuda_array_interface__ = tensor.__cuda_array_interface__

    class DLPack:
        def __init__(self, tensor: Any) -> None:
            self.__dlpack__, self.__dlpack_device__ = tensor.__dlpack__, tensor.__dlpack_device__

    comms = make(2)
    for wrap in (Interface, DLPack):
        x = [torch.full((100,), rank + 1.0, device="cuda") for rank in range(2)]
        with dcomm.group(comms):
            for comm in comms:
                comm.all_reduce(wrap(x[comm.rank]))
        torch.cuda.synchronize()
        assert all(bool((each == 3).all()) for each in x)


def test_cupy(make: Make) -> None:
    cupy = pytest.importorskip("cupy")
    comms = make(2)

    def body(comm: dcomm.Communicator) -> None:
        with cupy.cuda.Stream(non_blocking=True) as stream:
            x = cupy.full(100, comm.rank + 1.0, "float32")
            gathered = comm.all_gather(x)
            assert isinstance(gathered, cupy.ndarray)
            stream.synchronize()
            assert float(gathered.sum()) == 300

    values(comms, body)


def test_graph_of_all_ranks(make: Make) -> None:
    """One thread captures several operations for all ranks; replays follow their inputs, between eager calls too."""
    import torch

    n, count = 3, 70_000
    comms = make(n)
    x = [torch.zeros(count, device="cuda") for _ in range(n)]
    gathered = [torch.zeros(n * count, device="cuda") for _ in range(n)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), dcomm.group(comms):
        for comm in comms:
            comm.all_reduce(x[comm.rank])
            comm.all_gather(x[comm.rank], out=gathered[comm.rank])
    stream = torch.cuda.current_stream()
    for turn in range(20):
        for rank in range(n):
            x[rank].fill_(turn + rank)
        graph.replay()
        with dcomm.group(comms):
            for comm in comms:
                comm.all_reduce(x[comm.rank], stream=stream)
        torch.cuda.synchronize()
        total = float(n * turn + sum(range(n)))
        assert all(bool((each == total).all()) for each in gathered)
        assert all(bool((each == n * total).all()) for each in x)
    graph.reset()


def test_a_graph_across_streams(make: Make) -> None:
    """Every rank on a stream of its own, forked from the capturing one and joined again."""
    import torch

    n = 2
    comms = make(n)
    x = [torch.zeros(5000, device="cuda") for _ in range(n)]
    streams = [torch.cuda.Stream() for _ in range(n)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), dcomm.group(comms):
        origin = torch.cuda.current_stream()
        for stream in streams:
            stream.wait_stream(origin)
        for comm in comms:
            with torch.cuda.stream(streams[comm.rank]):
                x[comm.rank].add_(1)
                comm.all_reduce(x[comm.rank])
                x[comm.rank].mul_(2)
        for stream in streams:
            origin.wait_stream(stream)
    graph.replay()
    torch.cuda.synchronize()
    assert all(bool((each == 4).all()) for each in x)
    graph.reset()


def test_arrays_of_numpy_stay_on_the_host(make: Make) -> None:
    for result in values(make(2), lambda comm: comm.all_reduce(np.ones(3)).tolist()):
        assert result == [2.0] * 3
