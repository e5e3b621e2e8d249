"""What a result is, sentence by sentence: order of -0 and NaN, wrapping, bool, division, overflow, no contraction.

Rounding to nearest even is tested over all halves in tests/cc/kernel_checks.cc, error bounds in test_wire.py and
test_differential.py, the instructions themselves in test_kernel_objects.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from rank_pool import RankPool

import dcomm

ALGOS = ["one_shot", "two_shot", "ring", "tree"]
WORLD_SIZES = [2, 3, 4, 5, 8]
FLOATS = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float64": np.float64}
QUIET_NAN = {"float32": 0x7FC00000, "float16": 0x7E00, "bfloat16": 0x7FC0, "float64": 0x7FF8000000000000}
ODD_NAN = {"float32": 0xFFC12345, "float16": 0xFE12, "bfloat16": 0xFFE1, "float64": 0xFFF8123456789ABC}
SIGNALLING_NAN = {"float32": 0x7F812345, "float16": 0x7D12, "bfloat16": 0x7FA1, "float64": 0x7FF4123456789ABC}


@pytest.fixture(scope="module")
def pools() -> Iterator[dict[int, RankPool]]:
    made = {n: RankPool(n) for n in WORLD_SIZES}
    yield made
    for pool in made.values():
        pool.close()


def reduced(pool: RankPool, inputs: list[NDArray[Any]], op: Any, **kwargs: Any) -> NDArray[Any]:
    """The result, which is the same on every rank; inputs by rank."""
    results = pool.run(lambda comm: comm.all_reduce(inputs[comm.rank].copy(), op, **kwargs))
    assert len({result.tobytes() for result in results}) == 1
    return results[0]  # type: ignore[no-any-return]


def bits(array: NDArray[Any]) -> NDArray[Any]:
    return array.view(f"u{array.itemsize}")


@pytest.mark.parametrize("op", ["min", "max"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("algo", ALGOS)
def test_nan_wins_in_min_and_max_wherever_it_is(pools: dict[int, RankPool], algo: str, dtype: str, op: str) -> None:
    for n, pool in pools.items():
        for some_nan in (ODD_NAN, SIGNALLING_NAN, QUIET_NAN):
            inputs = [np.full(70, rank - 1.0).astype(FLOATS[dtype]) for rank in range(n)]
            for rank in range(n):  # each rank's NaN in its own places: the head and the tail of vector loops
                bits(inputs[rank])[[rank, 50 + rank]] = some_nan[dtype]
                inputs[rank][20 + rank] = np.inf if op == "min" else -np.inf  # neither helps against NaN
            bits(inputs[n - 1])[:n] = some_nan[dtype]
            result = reduced(pool, inputs, op, algo=algo)
            places = [*range(n), *range(50, 50 + n)]
            assert (bits(result)[places] == QUIET_NAN[dtype]).all(), (n, result)
            assert not np.isnan(np.delete(result.astype(np.float64), places)).any()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("algo", ALGOS)
def test_minus_zero_is_below_plus_zero(pools: dict[int, RankPool], algo: str, dtype: str) -> None:
    for n, pool in pools.items():
        inputs = [np.zeros(70).astype(FLOATS[dtype]) for _ in range(n)]
        for rank in range(n):
            inputs[rank][[rank, 60 + rank]] = -0.0  # on one rank only
        only = [*range(n), *range(60, 60 + n)]
        lowest = np.signbit(reduced(pool, inputs, "min", algo=algo).astype(np.float64))
        assert lowest[only].all()
        assert lowest.sum() == len(only)
        assert not np.signbit(reduced(pool, inputs, "max", algo=algo).astype(np.float64)).any()
        negative = [np.full(70, -0.0).astype(FLOATS[dtype])] * n
        assert np.signbit(reduced(pool, negative, "max", algo=algo).astype(np.float64)).all()


@pytest.mark.parametrize("op", ["sum", "avg", "prod", "min", "max"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("algo", ALGOS)
def test_a_nan_result_is_the_quiet_nan(pools: dict[int, RankPool], algo: str, dtype: str, op: str) -> None:
    for n, pool in pools.items():
        inputs = [np.ones(40).astype(FLOATS[dtype]) for _ in range(n)]
        for rank in range(n):
            bits(inputs[rank])[rank] = ODD_NAN[dtype]
        inputs[0][[20, 21]] = np.inf, np.inf  # made, not passed on: inf - inf and inf * 0
        inputs[n - 1][[20, 21]] = -np.inf, 0.0
        result = bits(reduced(pool, inputs, op, algo=algo))
        made = {"sum": [20], "avg": [20], "prod": [21]}.get(op, [])
        assert (result[[*range(n), *made]] == QUIET_NAN[dtype]).all(), (n, result)


@pytest.mark.parametrize("algo", ALGOS)
def test_integers_wrap(pools: dict[int, RankPool], algo: str) -> None:
    for n, pool in pools.items():
        for dtype in ("int8", "uint8", "int32", "int64"):
            most, least = int(np.iinfo(dtype).max), int(np.iinfo(dtype).min)
            inputs = [np.array([most, least, 3, most // 2 + rank] * 9, dtype) for rank in range(n)]
            for op in ("sum", "prod"):
                result = reduced(pool, inputs, op, algo=algo).tolist()
                for place in range(4):
                    total = 0 if op == "sum" else 1
                    for array in inputs:
                        total = total + int(array[place]) if op == "sum" else total * int(array[place])
                    wrapped = (total - least) % (most - least + 1) + least
                    assert result[place] == wrapped, (dtype, op, place)


@pytest.mark.parametrize("op", ["sum", "max", "bor", "prod", "min", "band", "bxor"])
@pytest.mark.parametrize("algo", ALGOS)
def test_of_bool_sum_and_max_are_or_prod_and_min_are_and(pools: dict[int, RankPool], algo: str, op: str) -> None:
    for n, pool in pools.items():
        inputs = [np.array([rank >= of for of in range(n + 1)] * 7) for rank in range(n)]  # n, n-1, ... 0 ranks have it
        have = np.array([n - of for of in range(n + 1)] * 7)
        wanted = have % 2 == 1 if op == "bxor" else have > 0 if op in ("sum", "max", "bor") else have == n
        result = reduced(pool, inputs, op, algo=algo)
        assert result.dtype == bool
        np.testing.assert_array_equal(result.view(np.uint8), wanted.view(np.uint8))  # the bytes 0 and 1, no other


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64", "bool"])
def test_there_is_no_average_of_integers_or_bool(dtype: str) -> None:
    comm = dcomm.init_threads(1)[0]
    for call in (comm.all_reduce, comm.reduce, comm.reduce_scatter):
        with pytest.raises(ValueError, match=f"op='avg' is not defined for {dtype} arrays: avg needs floats"):
            call(np.ones(4, dtype), "avg")


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "int64", "bool", "complex64"])
@pytest.mark.parametrize("wire", ["float16", "bfloat16"])
def test_a_wire_is_for_float32_only(dtype: str, wire: str) -> None:
    comm = dcomm.init_threads(1)[0]
    if dtype == wire:
        assert comm.all_reduce(np.ones(4, dtype), wire_dtype=wire).tolist() == [1.0] * 4  # no conversion
        return
    with pytest.raises(ValueError, match=f"wire_dtype={wire} with a {dtype} array: only float32 arrays can travel"):
        comm.all_reduce(np.ones(4, dtype), wire_dtype=wire)


@pytest.mark.parametrize("algo", ALGOS)
def test_on_a_half_wire_an_average_divides_before_the_cast(pools: dict[int, RankPool], algo: str) -> None:
    for culprit in range(8):
        inputs = [np.full(64, 1e5 if rank == culprit else 0.0, np.float32) for rank in range(8)]
        result = reduced(pools[8], inputs, "avg", algo=algo, wire_dtype="float16")
        assert (result == 12496.0).all(), result  # 12500 on float16's grid of 8
    same = [np.full(64, 2.0**15, np.float32)] * 8  # the sum of two is beyond float16
    assert (reduced(pools[8], same, "avg", algo=algo, wire_dtype="float16") == 2.0**15).all()


@pytest.mark.parametrize("algo", ALGOS)
def test_on_a_full_wire_the_sum_is_divided_once(pools: dict[int, RankPool], algo: str) -> None:
    for n, pool in pools.items():
        tiny = [np.full(40, 2.0**-149, np.float32)] * n  # each term divided by n would be 0, or its own neighbour
        assert (reduced(pool, tiny, "avg", algo=algo) == 2.0**-149).all()
        large = [np.full(40, 3e38, np.float32)] * n
        assert np.isinf(reduced(pool, large, "avg", algo=algo)).all()  # the sum comes first


@pytest.mark.parametrize("algo", ALGOS)
def test_an_average_is_a_true_division(pools: dict[int, RankPool], algo: str) -> None:
    for n in (3, 5):
        sums = np.arange(1, 4000, dtype=np.float32)
        reciprocal = sums * (np.float32(1) / np.float32(n))
        quotient = sums / np.float32(n)
        assert (reciprocal != quotient).any()  # the data can tell
        inputs = [sums if rank == 0 else np.zeros_like(sums) for rank in range(n)]
        np.testing.assert_array_equal(reduced(pools[n], inputs, "avg", algo=algo), quotient)


@pytest.mark.parametrize("algo", ALGOS)
def test_beyond_the_range_is_infinite(pools: dict[int, RankPool], algo: str) -> None:
    for pool in (pools[2], pools[5]):
        n = pool.world_size
        halves = [np.array([6e4, -6e4, 1.0], np.float32)] * n
        assert reduced(pool, halves, "sum", algo=algo, wire_dtype="float16").tolist() == [np.inf, -np.inf, float(n)]
        arrays = [np.array([6e4, -6e4, 1.0], np.float16)] * n
        assert reduced(pool, arrays, "sum", algo=algo).tolist() == [np.inf, -np.inf, float(n)]
        full = [np.array([3e38, -3e38, 1.0], np.float32)] * n
        assert reduced(pool, full, "sum", algo=algo).tolist() == [np.inf, -np.inf, float(n)]
        for dtype, values in (("float16", arrays), ("bfloat16", [full[0].astype(ml_dtypes.bfloat16)] * n)):
            assert np.isinf(reduced(pool, values, "prod", algo=algo).astype(np.float64)[:2]).all(), dtype


@pytest.mark.parametrize("algo", ["one_shot", "two_shot"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves_are_summed_in_float32(pools: dict[int, RankPool], algo: str, dtype: str) -> None:
    small = 2.0**-11 if dtype == "float16" else 2.0**-8  # half a unit of 1: adding one alone to 1 changes nothing
    inputs = [np.full(40, value).astype(FLOATS[dtype]) for value in (1.0, small, small, small)]
    assert (reduced(pools[4], inputs, "sum", algo=algo).astype(np.float64) == 1 + 4 * small).all()  # 3 to even: 4


@pytest.mark.parametrize("algo", ALGOS)
def test_products_and_sums_are_not_contracted(pools: dict[int, RankPool], algo: str) -> None:
    value = 1 + 2.0**-12
    product = np.float32(value) * np.float32(value)
    assert float(product) != value * value  # what a fused multiply-add would have kept
    x = [np.full(70, value, np.float32), np.full(70, -product, np.float32)]

    def body(comm: dcomm.Communicator) -> NDArray[np.float32]:
        op = dcomm.premul_sum((value, 1.0)[comm.rank])
        return comm.all_reduce(x[comm.rank].copy(), op, algo=algo)  # type: ignore[no-any-return]

    for result in pools[2].run(body):
        assert (result == 0).all(), result


@pytest.mark.parametrize("op", ["sum", "min", "max", "avg"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("algo", ALGOS)
def test_the_callers_flush_to_zero_changes_no_bit(pools: dict[int, RankPool], algo: str, dtype: str, op: str) -> None:
    torch = pytest.importorskip("torch")
    least = np.array([1, 2, 3, 7], f"u{np.dtype(FLOATS[dtype]).itemsize}").view(FLOATS[dtype])  # subnormal

    def run(flush: bool) -> bytes:
        def body(comm: dcomm.Communicator) -> bytes:
            torch.set_flush_denormal(flush and comm.rank != 1)
            try:
                return comm.all_reduce(np.tile(least, 10), op, algo=algo).tobytes()  # type: ignore[no-any-return]
            finally:
                torch.set_flush_denormal(False)

        results = set(pools[3].run(body))
        assert len(results) == 1
        return results.pop()

    assert run(True) == run(False)
    assert any(run(False))


def test_premul_sum_multiplies_in_the_wider_type_and_rounds_once(pools: dict[int, RankPool]) -> None:
    factor = 1 / 3
    x = np.arange(-50, 50, dtype=np.float32)
    cases: list[tuple[NDArray[Any], str | None, NDArray[Any]]] = [
        (x, None, x * np.float32(factor) + x * np.float32(factor)),
        (x.astype(np.float64), None, 2 * (x.astype(np.float64) * factor)),
        (x.astype(np.float16), None, (2 * (x * np.float32(factor))).astype(np.float16)),
        (x, "float16", 2 * (x * np.float32(factor)).astype(np.float16).astype(np.float32)),
    ]
    for values, wire, wanted in cases:
        result = reduced(pools[2], [values] * 2, dcomm.premul_sum(factor), algo="two_shot", wire_dtype=wire)
        if values.dtype == np.float16:  # the product is rounded to the wire, which is the array's own type, as all are
            wanted = (2 * (x * np.float32(factor)).astype(np.float16).astype(np.float32)).astype(np.float16)
        np.testing.assert_array_equal(result, wanted)


@pytest.mark.parametrize("n", WORLD_SIZES)
def test_one_shot_two_shot_reduce_scatter_and_reduce_agree_bit_for_bit(pools: dict[int, RankPool], n: int) -> None:
    """The canonical order, whoever sums and however the array is split."""

    def body(comm: dcomm.Communicator) -> set[bytes]:
        x = (np.random.default_rng(comm.rank).standard_normal(16 * n * 50) * 1e3).astype(np.float32)
        found = {comm.all_reduce(x.copy(), algo=algo).tobytes() for algo in ("one_shot", "two_shot")}
        halves = [comm.all_reduce(part.copy(), algo="one_shot") for part in np.split(x, [37])]
        found.add(np.concatenate(halves).tobytes())
        found.add(comm.all_gather(comm.reduce_scatter(x)).tobytes())
        got = comm.reduce(x, dst=n - 1, out=np.empty_like(x) if comm.rank == n - 1 else None)
        if got is not None:
            found.add(got.tobytes())
        return found

    assert len(set.union(*pools[n].run(body))) == 1
