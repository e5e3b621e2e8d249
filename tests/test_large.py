"""Arrays at the edges of 32-bit counts: pytest -m slow -s tests/test_large.py (about 18 GiB at once, some minutes)."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from emulated_gpu import EmulatedGpu
from rank_threads import outcomes, run_threads

import dcomm

COUNTS = [2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1, 2**32, 2**32 + 1]
STEP = 1 << 20


def places(count: int) -> Any:
    """Ends, the neighbourhoods of 2^31 and 2^32, chunk edges, and a sample in between."""
    edges = [0, count, count // 2, 2**31, 2**32]
    near = [edge + offset for edge in edges for offset in range(-70, 70)]
    sample = np.random.default_rng(count).integers(0, count, 20_000).tolist()
    return np.array(sorted({place for place in near + sample if 0 <= place < count}))


def value(rank: int, at: Any) -> Any:
    """What `rank` has there; tells 2^32 bytes apart from 0, and neighbours from each other."""
    return ((at * 7 + at // 2**31 * 50 + at // STEP * 3 + rank * 100) % 256).astype(np.uint8)


def fill(x: Any, rank: int) -> None:
    first = value(rank, np.arange(STEP))
    for begin in range(0, len(x), STEP):  # within a step, values differ from the first step's by a constant
        part = x[begin : begin + STEP]
        offset = (int(value(rank, np.array(begin))) - int(first[0])) % 256
        np.add(first[: len(part)], np.uint8(offset), out=part)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("algo", ["two_shot", "ring", "tree", "one_shot"])
@pytest.mark.parametrize("count", COUNTS)
def test_all_reduce(count: int, algo: str) -> None:
    at = places(count)

    def body(comm: dcomm.Communicator) -> float:
        x = np.empty(count, np.uint8)
        fill(x, comm.rank)
        comm.barrier()
        start = time.monotonic()
        comm.all_reduce(x, algo=algo)
        seconds = time.monotonic() - start
        np.testing.assert_array_equal(x[at], value(0, at) + value(1, at))  # wraps
        return seconds

    print(f"all_reduce {algo} of {count} bytes: {max(run_threads(2, body, timeout=800)):.2f} s")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_five_gib_of_float32() -> None:
    """Bytes beyond 2^32 where the count is below it."""
    count = 5 * 2**28

    def body(comm: dcomm.Communicator) -> None:
        x = np.empty(count, np.float32)
        x.fill(1.5)
        at = np.arange(0, count, 99_991)
        x[at] = at % 1013 + comm.rank
        comm.all_reduce(x)
        np.testing.assert_array_equal(x[at], 2 * (at % 1013) + 1)
        assert x[at[:-1] + 1].min() == x[at[:-1] + 1].max() == 3.0

    run_threads(2, body, timeout=800)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("count", COUNTS)
def test_moves(count: int) -> None:
    """all_gather (the largest: gather, which needs less memory) and broadcast of that many bytes."""
    block = -(-count // 2)
    at = places(2 * block)
    everywhere = count < 2**32

    def body(comm: dcomm.Communicator) -> float:
        x = np.empty(block, np.uint8)
        fill(x, comm.rank)
        comm.barrier()
        start = time.monotonic()
        whole = comm.all_gather(x) if everywhere else comm.gather(x)
        del x
        seconds = time.monotonic() - start
        wanted = np.where(at < block, value(0, at % block), value(1, at % block))
        if whole is None:
            comm.barrier()  # the arrays of the other rank are gone
            whole = np.empty(2 * block, np.uint8)
        else:
            np.testing.assert_array_equal(whole[at], wanted)
            if not everywhere:
                comm.barrier()
        if comm.rank == 0:
            whole[at] ^= 0xFF
        start = time.monotonic()
        comm.broadcast(whole)
        seconds += time.monotonic() - start
        np.testing.assert_array_equal(whole[at], wanted ^ 0xFF)
        return seconds

    name = "all_gather" if everywhere else "gather"
    print(f"{name} and broadcast of {2 * block} bytes: {max(run_threads(2, body, timeout=800)):.2f} s")


def test_counts_of_cuda_arrays(emulated_gpu: EmulatedGpu) -> None:
    """They come whole to where ranks compare their calls. Nothing is moved: tests/cc/cuda_large_checks.cc goes on."""
    count = 2**32 + 8
    x = np.empty(count, np.uint8)  # of which no page is touched
    comms = dcomm.init_threads(2, device="cuda")
    found = outcomes(comms, lambda comm: comm.broadcast(emulated_gpu.array(x[: count - comm.rank])))
    for error in found:
        assert isinstance(error, dcomm.MismatchError)
        assert f"broadcast({count} x uint8" in str(error)
        assert f"broadcast({count - 1} x uint8" in str(error)
    for comm in comms:
        comm.close()
