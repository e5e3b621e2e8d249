"""all_reduce gives the right numbers: every dtype, size, layout and way of calling it, against exact references.

The values are whole and small enough that every partial sum is exact in every dtype and on every wire, so the results
are compared for equality. How inexact sums are rounded is in test_bits.py and test_wire.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rank_threads import run_threads, values

import dcomm

WORLD_SIZES = [1, 2, 3, 4, 5, 8]
ALGOS = ["two_shot", "ring"]
DTYPES = ["float32", "float16", "bfloat16", "float64", "int32", "int64"]
COUNTS = [0, 1, 2, 3, 15, 16, 17, 31, 33, 257, 1000, 4099]


def exact_values(rank: int, count: int, world_size: int) -> NDArray[np.float64]:
    """Whole multiples of world_size from -4 to 4 times it: exact in bfloat16, also summed and divided."""
    rng = np.random.default_rng([rank, count])
    return world_size * rng.integers(-4, 5, count).astype(np.float64)


def expected(world_size: int, count: int, op: str) -> NDArray[np.float64]:
    total = sum((exact_values(rank, count, world_size) for rank in range(world_size)), np.zeros(count))
    return total / world_size if op == "avg" else total


def make(dtype: str, data: NDArray[np.float64]) -> Any:
    if dtype == "bfloat16":
        torch = pytest.importorskip("torch")
        return torch.from_numpy(data).to(torch.bfloat16)
    return data.astype(dtype)


def read(array: Any) -> NDArray[np.float64]:
    return np.asarray(array.double() if hasattr(array, "double") else array, np.float64)


def ops_of(dtype: str) -> list[str]:
    return ["sum"] if dtype.startswith("int") else ["sum", "avg"]


@pytest.mark.parametrize("algo", ALGOS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_exact_in_place_and_out(world_size: int, dtype: str, algo: str) -> None:
    def body(comm: dcomm.Communicator) -> None:
        for count in COUNTS:
            data = exact_values(comm.rank, count, world_size)
            for op in ops_of(dtype):
                x = make(dtype, data)
                assert comm.all_reduce(x, op, algo=algo) is x
                np.testing.assert_array_equal(read(x), expected(world_size, count, op))
                x, out = make(dtype, data), make(dtype, np.full(count, 99.0))
                assert comm.all_reduce(x, op, algo=algo, out=out) is out
                np.testing.assert_array_equal(read(out), expected(world_size, count, op))
                np.testing.assert_array_equal(read(x), data)

    run_threads(world_size, body)


@pytest.mark.parametrize("wire", ["float16", "bfloat16", "fp16", "bf16", np.float16])
@pytest.mark.parametrize("algo", ALGOS)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_exact_on_a_wire(world_size: int, algo: str, wire: Any) -> None:
    def body(comm: dcomm.Communicator) -> None:
        for count in COUNTS:
            for op in ("sum", "avg"):
                x = exact_values(comm.rank, count, world_size).astype(np.float32)
                comm.all_reduce(x, op, algo=algo, wire_dtype=wire)
                np.testing.assert_array_equal(x, expected(world_size, count, op))

    run_threads(world_size, body)


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize("algo", ALGOS)
@pytest.mark.parametrize("world_size", [2, 3, 5, 8])
def test_many_tiles(world_size: int, algo: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCOMM_WINDOW_BYTES", "65536")  # slots of 16 KiB
    slot_count = 16384 // np.dtype(dtype).itemsize
    counts = [world_size * slot_count * tiles + extra for tiles, extra in ((1, 0), (1, 1), (2, -1), (3, 17), (6, 0))]
    wanted = {count: expected(world_size, count, "sum") for count in counts}

    def body(comm: dcomm.Communicator) -> None:
        assert comm._core.slot_bytes == 16384
        for count in counts:
            x = make(dtype, exact_values(comm.rank, count, world_size))
            comm.all_reduce(x, algo=algo)
            assert np.array_equal(x, wanted[count]), count

    run_threads(world_size, body)


@pytest.mark.parametrize("algo", ALGOS)
@pytest.mark.parametrize("world_size", [2, 4])
def test_large_with_the_default_window(world_size: int, algo: str) -> None:
    count = 3_000_017
    wanted = expected(world_size, count, "sum")

    def body(comm: dcomm.Communicator) -> str:
        x = exact_values(comm.rank, count, world_size).astype(np.float32)
        comm.all_reduce(x, algo=algo)
        assert np.array_equal(x, wanted)
        return hashlib.sha256(x).hexdigest()

    assert len(set(run_threads(world_size, body))) == 1


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("algo", ALGOS)
@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_integers_wrap(dtype: str, algo: str, world_size: int) -> None:
    info = np.iinfo(dtype)

    def body(comm: dcomm.Communicator) -> None:
        x = np.random.default_rng(comm.rank).integers(info.min, info.max, 1001, dtype)
        x[:2] = info.max, info.min
        inputs = [np.random.default_rng(rank).integers(info.min, info.max, 1001, dtype) for rank in range(world_size)]
        for array in inputs:
            array[:2] = info.max, info.min
        exact = [sum(int(array[i]) for array in inputs) for i in range(1001)]
        wrapped = [(value - info.min) % (1 << info.bits) + info.min for value in exact]
        comm.all_reduce(x, algo=algo)
        assert x.tolist() == wrapped

    run_threads(world_size, body)


def strided_views(base: NDArray[Any]) -> Iterator[tuple[str, Any]]:
    """Views of a (12, 10) array, none of them C-contiguous."""
    yield "transposed", base.T
    yield "columns", base[:, 2:7]
    yield "every third row", base[::3, ::2]
    yield "reversed", base[::-1, ::-1]
    yield "one column", base[:, 3]


@pytest.mark.parametrize("async_op", [False, True])
@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_strided_views_in_and_out(world_size: int, library: str, async_op: bool) -> None:
    torch = pytest.importorskip("torch") if library == "torch" else None

    def call(comm: dcomm.Communicator, *args: Any, **kwargs: Any) -> Any:
        result = comm.all_reduce(*args, async_op=async_op, **kwargs)
        return result.wait() if async_op else result

    def convert(view: Any) -> Any:
        return (
            view
            if torch is None or min(view.strides) < 0
            else torch.as_strided(
                torch.from_numpy(view), view.shape, [stride // view.itemsize for stride in view.strides]
            )
        )

    def body(comm: dcomm.Communicator) -> None:
        names = [name for name, _ in strided_views(np.zeros((12, 10)))]
        for name in names:
            bases = [exact_values(rank, 120, world_size).reshape(12, 10) for rank in range(world_size)]
            total = sum(dict(strided_views(base))[name] for base in bases)
            mine = bases[comm.rank]
            before = mine.copy()
            view = dict(strided_views(mine))[name]
            assert not view.flags.c_contiguous
            x = convert(view)
            assert call(comm, x) is x
            np.testing.assert_array_equal(np.asarray(x), total, err_msg=name)
            mask = np.zeros((12, 10))
            dict(strided_views(mask))[name][...] = 1  # elements outside of the view are as they were
            np.testing.assert_array_equal(mine[mask == 0], before[mask == 0], err_msg=name)

            mine[...] = before
            target_base = np.full((12, 10), 7.0)
            target = convert(dict(strided_views(target_base))[name])
            assert call(comm, convert(view), out=target) is target
            np.testing.assert_array_equal(np.asarray(target), total, err_msg=name)
            np.testing.assert_array_equal(mine, before, err_msg=name)
            plain = np.ascontiguousarray(view)
            target_base[...] = 7.0
            x = plain if isinstance(target, np.ndarray) else convert(plain)  # torch has no reversed views
            call(comm, x, out=target)  # only the output is strided
            np.testing.assert_array_equal(np.asarray(target), total, err_msg=name)

    run_threads(world_size, body)


def test_reversed_view_beside_the_input() -> None:
    """The address of a reversed view is that of its last element: nearer to its neighbour than it is long."""

    def body(comm: dcomm.Communicator) -> None:
        room = np.ones(200)
        x, out = room[100:], room[:100][::-1]
        comm.all_reduce(x, out=out)
        assert (out == 2).all()
        assert (x == 1).all()

    run_threads(2, body)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
@pytest.mark.parametrize("algo", ALGOS)
def test_any_byte_offset_and_nothing_written_outside(algo: str, dtype: str) -> None:
    def body(comm: dcomm.Communicator) -> None:
        for offset in (0, 1, 2, 3, 7, 13, 60, 63):
            for count in (1, 5, 31, 64, 1003):
                data = exact_values(comm.rank, count, comm.world_size).astype(dtype)
                room = bytearray(b"\xa5" * (offset + data.nbytes + 64))
                x = np.frombuffer(room, dtype, count, offset)
                x[...] = data
                comm.all_reduce(x, algo=algo)
                np.testing.assert_array_equal(x, expected(comm.world_size, count, "sum"))
                assert set(room[:offset]) <= {0xA5}
                assert set(room[offset + data.nbytes :]) == {0xA5}

    run_threads(3, body)


def test_shapes_buffers_and_return_values() -> None:
    def body(comm: dcomm.Communicator) -> None:
        scalar = np.array(comm.rank + 1.0)
        assert comm.all_reduce(scalar) is scalar
        assert scalar.shape == ()
        assert scalar == 3
        cube = np.full((3, 1, 4), comm.rank, np.int32)
        assert comm.all_reduce(cube).shape == (3, 1, 4)
        assert (cube == 1).all()
        for empty in (np.zeros((0, 5)), np.zeros((4, 0), np.float32).T):
            assert comm.all_reduce(empty) is empty
        buffer = memoryview(bytearray(16)).cast("f")
        buffer[0] = 2.0
        assert comm.all_reduce(buffer) is buffer
        assert buffer.tolist() == [4.0, 0.0, 0.0, 0.0]
        strided = memoryview(bytearray(32)).cast("f")[::2]
        strided[1] = 2.0
        comm.all_reduce(strided)
        assert strided.tolist() == [0.0, 4.0, 0.0, 0.0]
        assert comm.stats()["num_operations"] == 6
        assert comm.stats()["num_bytes"] == 8 + 48 + 0 + 0 + 16 + 16

    run_threads(2, body)


def test_torch_and_numpy_ranks_meet() -> None:
    torch = pytest.importorskip("torch")

    def body(comm: dcomm.Communicator) -> list[float]:
        x = np.full(7, 1.0, np.float32) if comm.rank == 0 else torch.full((7,), 2.0)
        comm.all_reduce(x, torch.distributed.ReduceOp.AVG if comm.rank else "avg")
        return [float(value) for value in x]

    assert run_threads(2, body) == [[1.5] * 7] * 2


def test_lazily_negated_tensor() -> None:
    torch = pytest.importorskip("torch")

    def body(comm: dcomm.Communicator) -> list[float]:
        x = torch.complex(torch.zeros(1), torch.ones(1)).conj().imag  # contiguous, and stored as +1
        assert x.is_neg()
        comm.all_reduce(torch.zeros(1))  # the type and dtype are known from now on: the short way
        comm.all_reduce(x)
        return x.tolist()  # type: ignore[no-any-return]

    assert run_threads(2, body) == [[-2.0]] * 2


@pytest.mark.parametrize("world_size", [2, 3])
def test_random_layouts(world_size: int) -> None:
    comms = dcomm.init_threads(world_size)

    @settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(
        shape=st.lists(st.integers(0, 6), max_size=4),
        steps=st.lists(st.sampled_from([-2, -1, 1, 2, 3]), min_size=4, max_size=4),
        transpose=st.booleans(),
        dtype=st.sampled_from([name for name in DTYPES if name != "bfloat16"]),
        algo=st.sampled_from(ALGOS),
        use_out=st.booleans(),
        seed=st.integers(0, 9),
    )
    def check(
        shape: list[int], steps: list[int], transpose: bool, dtype: str, algo: str, use_out: bool, seed: int
    ) -> None:
        index = tuple(slice(None, None, step) for step in steps[: len(shape)])

        def view_of(array: NDArray[Any]) -> NDArray[Any]:
            view = array[index] if shape else array
            return view.T if transpose else view

        count = int(np.prod(shape))
        bases = [exact_values(10 * rank + seed, count, world_size).reshape(shape) for rank in range(world_size)]
        total = view_of(sum(bases, np.zeros(shape)))

        def body(comm: dcomm.Communicator) -> None:
            x = view_of(bases[comm.rank].astype(dtype))
            out = view_of(np.zeros(shape, dtype)) if use_out else None
            result = comm.all_reduce(x, algo=algo, out=out)
            np.testing.assert_array_equal(result, total)

        values(comms, body)

    check()
    for comm in comms:
        comm.close()
