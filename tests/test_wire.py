"""Half-precision wires: dividing before the cast, the error bounds of decision 4, infinities, the caller's MXCSR."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rank_threads import run_threads

import dcomm

ALGOS = ["two_shot", "ring"]
UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-8}  # half a unit in the last place of 11 and 8 significant bits
DENORMAL = np.float32(1e-40)


def one_large_gradient(rank: int) -> NDArray[np.float32]:
    return np.full(64, 1e5 if rank == 5 else 0.0, np.float32)


def torch_fp16_hook_mean(inputs: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """fp16_compress_hook: cast, divide by the number of ranks, sum in float16 (one term after the other)."""
    torch = pytest.importorskip("torch")
    terms = [torch.from_numpy(x).to(torch.float16).div_(len(inputs)) for x in inputs]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total.float().numpy()  # type: ignore[no-any-return]


@pytest.mark.parametrize("algo", ALGOS)
def test_one_large_gradient_survives_where_torch_overflows(algo: str) -> None:
    def body(comm: dcomm.Communicator) -> NDArray[np.float32]:
        return comm.all_reduce(  # type: ignore[no-any-return]
            one_large_gradient(comm.rank), "avg", wire_dtype="float16", algo=algo
        )

    mean = float(np.float16(12500.0))
    assert mean == 12496.0  # float16 has a grid of 8 there
    for result in run_threads(8, body):
        np.testing.assert_array_equal(result, np.full(64, mean, np.float32))
    torch_result = torch_fp16_hook_mean([one_large_gradient(rank) for rank in range(8)])
    assert np.isinf(torch_result).all()


@pytest.mark.parametrize("algo", ALGOS)
def test_beyond_the_range_is_infinite(algo: str) -> None:
    """What a GradScaler needs; the sum overflows even though each term fits."""

    def body(comm: dcomm.Communicator) -> list[float]:
        x = np.array([6e4, -6e4, 1.0], np.float32)
        comm.all_reduce(x, "sum", wire_dtype="float16", algo=algo)
        return x.tolist()  # type: ignore[no-any-return]

    assert run_threads(2, body) == [[np.inf, -np.inf, 2.0]] * 2


def random_gradients(rank: int, scale: float) -> NDArray[np.float32]:
    rng = np.random.default_rng([rank, 7])
    x = (rng.standard_normal(20_000) * scale).astype(np.float32)
    x[::7] = np.abs(x[::7])  # no cancellation there, so that the relative part of the bound counts
    x[::11] *= np.float32(1e-4)
    return x


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 50.0])
@pytest.mark.parametrize("wire", ["float16", "bfloat16"])
@pytest.mark.parametrize("algo", ALGOS)
@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_error_bounds(world_size: int, algo: str, wire: str, scale: float) -> None:
    inputs = [random_gradients(rank, scale) for rank in range(world_size)]
    exact = np.mean([x.astype(np.float64) for x in inputs], axis=0)
    mean_abs = np.mean([np.abs(x.astype(np.float64)) for x in inputs], axis=0)
    if algo == "ring":
        bound = world_size * UNIT[wire] * mean_abs + world_size * 2.0**-25
    else:
        bound = UNIT[wire] * (mean_abs + np.abs(exact)) + (world_size + 1) * 2.0**-25

    def body(comm: dcomm.Communicator) -> NDArray[np.float32]:
        x = inputs[comm.rank].copy()
        return comm.all_reduce(x, "avg", wire_dtype=wire, algo=algo)  # type: ignore[no-any-return]

    results = run_threads(world_size, body)
    error = np.abs(results[0].astype(np.float64) - exact)
    worst = float(np.max(error / bound))
    print(f"{algo} {wire} n={world_size} scale={scale}: worst error {worst:.3f} of the bound")
    assert worst <= 1.0
    if scale > 1e-4:  # below, the absolute part of the bound is the larger one
        assert worst > 0.05  # without the wire the error would be far smaller
    assert len({hashlib.sha256(result).hexdigest() for result in results}) == 1


@pytest.mark.parametrize("wire", ["float16", "bfloat16"])
@pytest.mark.parametrize("algo", ALGOS)
@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_infinity_and_nan_pass(world_size: int, algo: str, wire: str) -> None:
    def body(comm: dcomm.Communicator) -> NDArray[np.float32]:
        x = np.ones(100, np.float32)
        for rank in range(world_size):  # one place for each rank
            if comm.rank == rank:
                x[rank] = np.nan
                x[20 + rank] = np.inf
                x[40 + rank] = -np.inf
        x[60] = np.inf if comm.rank else -np.inf
        return comm.all_reduce(x, "avg", wire_dtype=wire, algo=algo)  # type: ignore[no-any-return]

    for x in run_threads(world_size, body):
        n = world_size
        assert np.isnan(x[:n]).all()
        assert (x[20 : 20 + n] == np.inf).all()
        assert (x[40 : 40 + n] == -np.inf).all()
        assert np.isnan(x[60])
        assert (x[70:] == 1).all()


def flushes_denormals() -> bool:
    return bool(np.array([DENORMAL])[0] * np.float32(1.0) == 0)


@pytest.mark.parametrize("async_op", [False, True])
@pytest.mark.parametrize("wire", [None, "bfloat16"])
@pytest.mark.parametrize("algo", ALGOS)
def test_the_callers_flush_to_zero_changes_no_bit_and_stays(algo: str, wire: str | None, async_op: bool) -> None:
    torch = pytest.importorskip("torch")
    if not torch.set_flush_denormal(False):
        pytest.skip("this CPU cannot flush denormals")
    bits = np.random.default_rng(1).integers(1, 1 << 23, (3, 999), np.uint32)  # subnormal, all of them

    def run(flush: bool) -> list[tuple[Any, bool, bool]]:
        def body(comm: dcomm.Communicator) -> tuple[Any, bool, bool]:
            if flush and comm.rank != 1:  # callers that differ
                torch.set_flush_denormal(True)
            before = flushes_denormals()
            x = bits[comm.rank].view(np.float32).copy()
            result = comm.all_reduce(x, algo=algo, wire_dtype=wire, async_op=async_op)
            if async_op:
                result.wait()
            return x.view(np.uint32).tolist(), before, flushes_denormals()

        return run_threads(3, body)

    plain, flushed = run(False), run(True)
    assert [before for _, before, _ in plain] == [False] * 3
    assert [before for _, before, _ in flushed] == [True, False, True]  # the setting took effect at all
    assert [after for _, _, after in flushed] == [True, False, True]
    assert len({tuple(result) for result, _, _ in plain + flushed}) == 1
    assert any(plain[0][0])
