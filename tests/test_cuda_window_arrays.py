"""comm.empty(device="cuda"): arrays in GPU memory that all ranks reach, where ranks are threads on an emulated GPU."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from emulated_gpu import EmulatedGpu
from numpy.typing import NDArray
from rank_threads import outcomes, values

import dcomm
from dcomm import _core, arrays

COUNT = 5003
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
Comms = list[dcomm.Communicator]


@pytest.fixture(autouse=True)
def _nothing_left(emulated_gpu: EmulatedGpu) -> None:
    gc.collect()  # errors that a test has caught hold its arrays
    assert emulated_gpu.library.emulated_num_alive() == 0


@pytest.fixture(params=[2, 3, 4])
def comms(request: pytest.FixtureRequest, emulated_gpu: EmulatedGpu) -> Iterator[Comms]:
    made = dcomm.init_threads(request.param)
    yield made
    for comm in made:
        comm.close()


@pytest.fixture
def pair(emulated_gpu: EmulatedGpu) -> Iterator[Comms]:
    made = dcomm.init_threads(2)
    yield made
    for comm in made:
        comm.close()


def numbers(rank: int, dtype: str, count: int = COUNT) -> NDArray[Any]:
    random = np.random.default_rng([rank, count])
    return (random.standard_normal(count) * 10).astype(DTYPES[dtype])


def finished(gpu: EmulatedGpu, array: dcomm.CudaArray) -> NDArray[Any]:
    gpu.streams[0].synchronize()
    return gpu.memory_of(array).copy()


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_bits_of_two_shot(emulated_gpu: EmulatedGpu, comms: Comms, dtype: str) -> None:
    """In place, into a part of another such array, and into any other one; parts that begin anywhere."""

    def body(comm: dcomm.Communicator) -> None:
        memory = comm.empty(2 * COUNT + 64, DTYPES[dtype], device="cuda")
        other = comm.empty(COUNT + 64, DTYPES[dtype], device="cuda:0")
        assert not gpu.memory_of(memory).any()
        for turn, op in enumerate(("sum", "avg", "sum")):
            expected = numbers(comm.rank, dtype)
            x = memory[turn : turn + COUNT]
            gpu.memory_of(x)[:] = expected
            own = gpu.put(np.zeros(COUNT, DTYPES[dtype]))
            out: Any = (x, other[16 : 16 + COUNT], own)[turn]
            assert comm.all_reduce(x, op, out=out, algo="direct") is out
            gpu.streams[0].synchronize()
            result = own.host.view(DTYPES[dtype]) if turn == 2 else gpu.memory_of(out)
            if turn > 0:
                assert gpu.memory_of(x).tobytes() == expected.tobytes()
            comm.all_reduce(expected, op, algo="two_shot")
            assert result.tobytes() == expected.tobytes(), (turn, op)
            comm.barrier()

    gpu = emulated_gpu
    values(comms, body)
    assert gpu.num_direct >= 3
    assert gpu.library.emulated_num_alive() == 0  # the arrays are gone


def test_auto_takes_it_where_it_pays(emulated_gpu: EmulatedGpu, pair: Comms) -> None:
    def body(comm: dcomm.Communicator) -> None:
        large, small = comm.empty(100_000, device="cuda"), comm.empty(60_000, device="cuda")
        own = emulated_gpu.array(np.ones(100_000, np.float32))
        calls: list[tuple[Any, dict[str, Any], int]] = [
            (large, {}, 1),
            (small, {}, 0),  # in packets
            (small, {"algo": "direct"}, 1),
            (large, {"algo": "two_shot"}, 0),
            (large, {"wire_dtype": "float16"}, 0),
            (large, {"out": own}, 1),
            (own, {"out": large}, 0),
            (large[4:], {}, 1),
        ]
        for x, options, expected in calls:
            comm.barrier()
            before = emulated_gpu.num_direct
            comm.barrier()
            comm.all_reduce(x, **options)
            comm.barrier()
            assert emulated_gpu.num_direct - before == expected, (x, options)
        emulated_gpu.streams[0].synchronize()

    values(pair, body)


def test_shapes(emulated_gpu: EmulatedGpu, pair: Comms) -> None:
    def body(comm: dcomm.Communicator) -> None:
        nothing = comm.empty((2, 0, 3), device="cuda")
        assert (nothing.shape, nothing.size, nothing.nbytes) == ((2, 0, 3), 0, 0)
        comm.all_reduce(nothing)
        comm.all_reduce(nothing, algo="direct")
        x = comm.empty((6, 7), "int32", device="cuda", timeout=20)
        assert (x.shape, x.dtype, len(x), x.nbytes) == ((6, 7), np.int32, 6, 168)
        assert comm.empty((), device="cuda").size == 1
        assert repr(x) == "dcomm.CudaArray(shape=(6, 7), dtype=int32, device='cuda:0')"
        assert x[2:4]._address == x._address + 2 * 28
        assert x[2:4].shape == (2, 7)
        assert x[5:2].shape == (0, 7)
        for key in (0, slice(0, 4, 2), (slice(1), slice(1))):
            with pytest.raises(TypeError, match=r"expected x\[begin:end\]"):
                x[key]  # type: ignore[index]
        comm.all_gather(x, out=comm.empty((12, 7), "int32", device="cuda"))  # as any other array
        emulated_gpu.streams[0].synchronize()

    values(pair, body)


@pytest.mark.parametrize("dtype", [*DTYPES, "int8", "uint8", "int64", "bool", "complex64", "float64"])
def test_protocols(emulated_gpu: EmulatedGpu, pair: Comms, dtype: str) -> None:
    class WithDLPackOnly:
        def __init__(self, array: dcomm.CudaArray, is_old: bool) -> None:
            self._array, self._is_old = array, is_old

        def __dlpack_device__(self) -> tuple[int, int]:
            return self._array.__dlpack_device__()

        def __dlpack__(self, *, stream: int, **options: Any) -> Any:
            if self._is_old and options:
                raise TypeError("no such argument")
            return self._array.__dlpack__(stream=stream, **options)

    def body(comm: dcomm.Communicator) -> None:
        x = comm.empty((3, 5), DTYPES.get(dtype, dtype), device="cuda")
        sources: list[Any] = [x, WithDLPackOnly(x, False), WithDLPackOnly(x, True)]
        for source in sources:
            found = arrays.view(source)
            assert (found.address, found.count, found.dtype_name) == (x._address, 15, dtype)
            assert (found.shape, found.contiguous, found.writable, found.device) == ((3, 5), True, True, 0)
        assert hasattr(x, "__cuda_array_interface__") == (dtype != "bfloat16")
        with pytest.raises(BufferError, match="no copy"):
            x.__dlpack__(copy=True)
        capsules = [x.__dlpack__() for _ in range(3)]  # unused ones let go of the memory
        del x, sources, source, found
        assert emulated_gpu.library.emulated_num_alive() > 0
        del capsules

    values(pair, body)
    assert emulated_gpu.library.emulated_num_alive() == 0


def test_disagreement(emulated_gpu: EmulatedGpu, pair: Comms) -> None:
    """Another part, another array, ordinary memory: all raise, nothing is touched, and they go on."""

    # Small ones are staged by auto, which agrees.
    def large(comm: dcomm.Communicator) -> str:
        x = comm.empty(100_000, device="cuda")
        own = emulated_gpu.array(np.zeros(100_000, np.float32))
        with pytest.raises(dcomm.MismatchError) as raised:
            comm.all_reduce(x if comm.rank == 0 else own)
        return str(raised.value)

    def small(comm: dcomm.Communicator) -> list[str]:
        x, y = comm.empty(1000, device="cuda"), comm.empty(1000, device="cuda")
        texts = []
        for odd in (x[4:904], y[:900]):
            with pytest.raises(dcomm.MismatchError) as raised:
                comm.all_reduce(x[:900] if comm.rank == 0 else odd, algo="direct")
            texts.append(str(raised.value))
        comm.all_reduce(x, algo="direct")
        return texts

    for part, another in values(pair, small):
        assert "x=shared array 1" in part
        assert "x=shared array 1 from byte 16 on" in part
        assert "x=shared array 2" in another
    for text in values(pair, large):
        assert "direct, x=shared array 3" in text
        assert "sum, auto)" in text


def test_what_cannot_be_made(emulated_gpu: EmulatedGpu, pair: Comms) -> None:
    def refused(comm: dcomm.Communicator, *args: Any, **options: Any) -> str:
        with pytest.raises((dcomm.DcommError, ValueError, TypeError)) as raised:
            comm.empty(*args, **options)
        return f"{type(raised.value).__name__}: {raised.value}"

    def body(comm: dcomm.Communicator) -> None:
        odd = comm.rank == 1
        text = refused(comm, 10 if odd else 20, device="cuda")
        assert "MismatchError" in text, text
        assert "rank 1 one of 40" in text, text
        text = refused(comm, 20, device="cuda" if odd else None)
        assert "MismatchError: empty: rank 0 asks for memory of the host, rank 1 for memory of cuda:0" in text, text
        text = refused(comm, 20, device=1 if odd else 0)
        assert "MismatchError: empty: rank 0 asks for memory of cuda:0, rank 1 for memory of cuda:1" in text, text
        assert "expected 'cuda'" in refused(comm, 20, device="tpu")
        comm.all_reduce(emulated_gpu.array(np.ones(3, np.float32)))  # now they have met on cuda:0
        text = refused(comm, 20, device=1)
        assert "got cuda:1, but this communicator uses cuda:0" in text, text
        with pytest.raises(ValueError, match="memory that the other ranks do not reach"):
            comm.all_reduce(emulated_gpu.array(np.ones(3, np.float32)), algo="direct")
        x = comm.empty(20, device="cuda")
        with pytest.raises(ValueError, match="another wire_dtype"):
            comm.all_reduce(x, algo="direct", wire_dtype="float16")
        comm.all_reduce(x, algo="direct")

    values(pair, body)


@pytest.mark.parametrize("call", [0, 1, 2, 3])
def test_a_driver_that_fails_anywhere(emulated_gpu: EmulatedGpu, pair: Comms, call: int) -> None:
    """Two allocations, each zeroed."""

    def body(comm: dcomm.Communicator) -> str:
        error = ""
        try:
            comm.empty(20, device="cuda")
        except dcomm.CudaError as caught:
            error = str(caught)
        comm.barrier()
        assert emulated_gpu.library.emulated_num_alive() == 0
        comm.all_reduce(emulated_gpu.array(np.ones(3, np.float32)))
        return error

    emulated_gpu.library.emulated_process(3, -1, call)
    try:
        first, second = values(pair, body)
    finally:
        emulated_gpu.library.emulated_process(3, -1, -1)
    assert "the fake refuses (999)" in first
    assert "rank 0 could not make its part of the array" in second
    x = values(pair, lambda comm: comm.empty(20, device="cuda"))
    assert emulated_gpu.library.emulated_num_alive() == 2
    del x


def test_dropped_while_a_kernel_uses_it(emulated_gpu: EmulatedGpu, pair: Comms) -> None:
    """The last rank to let go waits for the GPU, with other threads running; those before it do not."""
    gpu = emulated_gpu
    streams = [gpu.stream(), gpu.stream()]
    made: list[Any] = values(pair, lambda comm: comm.empty(COUNT, device="cuda"))
    for rank, x in enumerate(made):
        gpu.memory_of(x)[:] = rank + 1
    del x
    word = streams[1].hold()
    results = [gpu.array(np.zeros(COUNT, np.float32)) for _ in range(2)]

    def body(comm: dcomm.Communicator) -> None:
        comm.all_reduce(made[comm.rank], out=results[comm.rank], algo="direct", stream=streams[comm.rank])

    values(pair, body)
    waits = gpu.library.emulated_num_device_waits()
    made[0] = None
    assert gpu.library.emulated_num_device_waits() == waits
    dropped = threading.Event()

    def drop() -> None:
        made.clear()
        dropped.set()

    thread = threading.Thread(target=drop)
    thread.start()
    assert not dropped.wait(0.3)
    assert gpu.library.emulated_num_alive() == 2
    word.fill(1)
    assert dropped.wait(30)
    thread.join()
    assert gpu.library.emulated_num_alive() == 0
    for stream in streams:
        stream.synchronize()
    for result in results:
        assert (result.host == 3).all()


def test_async_op_keeps_its_arrays(emulated_gpu: EmulatedGpu, pair: Comms) -> None:
    """The caller's stream goes on, and what nobody else holds lasts until the operation is over."""
    gpu = emulated_gpu
    streams = [gpu.stream(), gpu.stream()]
    results = [gpu.array(np.zeros(COUNT, np.float32)) for _ in range(2)]
    word = streams[1].hold()
    before = gpu.num_direct

    def start(comm: dcomm.Communicator) -> Any:
        x = comm.empty(COUNT, device="cuda")
        gpu.memory_of(x)[:] = comm.rank + 1
        return comm.all_reduce(x, out=results[comm.rank], algo="direct", async_op=True, stream=streams[comm.rank])

    works = values(pair, start)
    gc.collect()
    assert gpu.num_direct == before + 1
    streams[0].synchronize()
    assert not works[0].done()
    assert gpu.library.emulated_num_alive() == 2
    word.fill(1)
    for work, result in zip(works, results, strict=True):
        assert work.synchronize(30) is result
        assert (result.host == 3).all()
    assert gpu.library.emulated_num_alive() == 0  # once both ranks' arrays are gone


def test_arrays_outlive_their_communicator(emulated_gpu: EmulatedGpu) -> None:
    comms = dcomm.init_threads(2)
    made: list[Any] = values(comms, lambda comm: comm.empty(100, device="cuda"))
    for comm in comms:
        comm.close()
    emulated_gpu.memory_of(made[1])[:] = 7
    made[0] = None
    assert (emulated_gpu.memory_of(made[1]) == 7).all()
    made.clear()
    assert emulated_gpu.library.emulated_num_alive() == 0


def test_without_a_cuda_part() -> None:
    _core._use_cuda_library("")
    comms = dcomm.init_threads(2)
    errors = outcomes(comms, lambda comm: comm.empty(100, device="cuda"))
    assert [type(error) for error in errors] == [dcomm.CudaError] * 2
    assert values(comms, lambda comm: float(comm.all_reduce(np.ones(1, np.float32))[0])) == [2, 2]
    for comm in comms:
        comm.close()
