"""async_op of CUDA tensors: the bodies that CI runs on an emulated GPU; and CUDA graphs, which that cannot show."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cuda_cases
import cuda_work_cases
import pytest
from cuda_cases import Make
from rank_processes import process_values
from rank_threads import values
from torch_gpu import TorchGpu

import dcomm

pytestmark = pytest.mark.gpu

GPU = TorchGpu()
RANKS = Path(__file__).with_name("cuda_graph_ranks.py")


@pytest.fixture
def make() -> Iterator[Make]:
    with cuda_cases.maker("cuda") as make_some:
        yield make_some


@pytest.mark.parametrize("n", [1, 3])
def test_streams_wait_and_the_host_does_not(make: Make, n: int) -> None:
    cuda_work_cases.check_wait(GPU, make(n))


def test_the_streams_of_asynchronous_ranks_do_not_wait(make: Make) -> None:
    cuda_work_cases.check_call_stream_does_not_wait(GPU, make(3))


def test_two_streams_on_one_communicator(make: Make) -> None:
    cuda_work_cases.check_two_streams(GPU, make(2))


def test_dropped_at_once(make: Make) -> None:
    cuda_work_cases.check_dropped_at_once(GPU, make(2))


@pytest.mark.parametrize("n", [1, 3])
def test_every_collective(make: Make, n: int) -> None:
    cuda_work_cases.check_every_collective(GPU, make(n))


@pytest.mark.parametrize("n", [2, 3])
def test_no_rank_waits_for_another(make: Make, n: int) -> None:
    cuda_work_cases.check_no_rank_waits_for_another(GPU, make(n))


def test_behind_the_stream_at_the_call(make: Make) -> None:
    cuda_work_cases.check_behind_the_stream_at_the_call(GPU, make(3))


def test_asynchronous_and_synchronous_ranks(make: Make) -> None:
    cuda_work_cases.check_asynchronous_and_synchronous_ranks(GPU, make(3))


def test_messages_cross(make: Make) -> None:
    cuda_work_cases.check_messages_cross(GPU, make(2))


def test_in_a_group(make: Make) -> None:
    cuda_work_cases.check_group_works(GPU, make(3))


def test_deadline_and_await(make: Make) -> None:
    cuda_work_cases.check_deadline_and_await(GPU, make(1))


def test_freed_on_another_stream_1000_times(make: Make) -> None:
    """Inputs are made and freed on one stream, the call is on another: the caching allocator hands the memory out at
    once, and nothing but dcomm keeps it."""
    import torch

    comms = make(2)
    count = 1 << 16

    def body(comm: dcomm.Communicator) -> None:
        home, side = torch.cuda.Stream(), torch.cuda.Stream()
        out = torch.zeros(count, device="cuda")
        wrong = torch.zeros((), device="cuda")
        home.wait_stream(torch.cuda.current_stream())
        for turn in range(1000):
            with torch.cuda.stream(home):
                x = torch.full((count,), float(turn + comm.rank), device="cuda")
            side.wait_stream(home)
            work = comm.all_reduce(x, out=out, stream=side, async_op=True)
            del x
            with torch.cuda.stream(home):
                torch.full((count,), -1e6, device="cuda")  # would take the memory
                work.wait()
                wrong += (out != float(2 * turn + 1)).sum()
            side.wait_stream(home)
        home.synchronize()
        assert float(wrong) == 0

    values(comms, body)


def test_a_graph_of_asynchronous_operations_1000_times(make: Make) -> None:
    """Captured by one thread for all ranks; replays follow their inputs, with other calls between them."""
    import torch

    n, count = 2, 50_000
    comms = make(n)
    x = [torch.zeros(count, device="cuda") for _ in range(n)]
    y = [torch.zeros(count, device="cuda") for _ in range(n)]
    wrong = torch.zeros((), device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), dcomm.group(comms):
        works = [comm.all_reduce(x[comm.rank], out=y[comm.rank], async_op=True) for comm in comms]
        for work in works:
            work.wait()
        for rank in range(n):
            y[rank].mul_(2)
    for ask in (works[0].synchronize, works[0].done):
        with pytest.raises(ValueError, match="part of a CUDA graph"):
            ask()
    for turn in range(1000):
        for rank in range(n):
            x[rank].fill_(turn % 1000 + rank)
        graph.replay()
        total = float(2 * (2 * (turn % 1000) + 1))
        wrong += sum((each != total).sum() for each in y)
        if turn % 3 == 0:
            with dcomm.group(comms):
                between = [comm.all_reduce(y[comm.rank], "avg", async_op=True) for comm in comms]
            for work in between:
                work.wait()
            wrong += sum((each != total).sum() for each in y)
    torch.cuda.synchronize()
    assert float(wrong) == 0
    graph.reset()


@pytest.mark.parametrize("world_size", [2])
def test_graphs_of_processes_1000_times(world_size: int) -> None:
    """Each rank captures its own; the same order on all."""
    assert process_values(world_size, RANKS, "replay", {"turns": 1000}, timeout=300) == [0.0] * world_size
