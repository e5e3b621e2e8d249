"""What dcomm takes as a CUDA array, on which stream it uses it, on which GPU, and what it refuses."""

from __future__ import annotations

import sys
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from emulated_gpu import DLPackArray, EmulatedGpu, InterfaceArray
from rank_threads import values

import dcomm
from dcomm import arrays, device_arrays

Comm = dcomm.Communicator


@pytest.fixture
def alone(emulated_gpu: EmulatedGpu) -> Iterator[Comm]:
    """A single rank on cuda:0: its calls run at once, and an average leaves what it gets."""
    (comm,) = dcomm.init_threads(1, device=0)
    yield comm
    comm.close()


def ones(*shape: int) -> Any:
    return np.ones(shape or 8, np.float32)


# ---- The protocols ----


@pytest.mark.parametrize("dtype", [name for name in arrays.DTYPE_CODES if name != "bfloat16"])
def test_views_of_both_protocols(emulated_gpu: EmulatedGpu, dtype: str) -> None:
    host = np.arange(24).reshape(4, 6).astype(dtype)
    for device in (0, 1):
        for array in (
            emulated_gpu.array(host, device),
            DLPackArray(emulated_gpu, host, device=device),
            DLPackArray(emulated_gpu, host, device=device, is_old=True),
        ):
            found = arrays.view(array)
            assert (found.address, found.count, found.dtype_name) == (host.ctypes.data, 24, dtype)
            assert (found.shape, found.contiguous, found.writable, found.device) == ((4, 6), True, True, device)


def test_contiguity_and_empty_arrays(emulated_gpu: EmulatedGpu) -> None:
    host = np.zeros((4, 6, 5), np.float32)
    cases = [
        (host, True),
        (host[1:3], True),
        (host[:, 1:3], False),
        (host.T, False),
        (host[::2], False),
        (host[:1, :, :], True),
        (host[:, :1, :], False),
        (host[2:2], True),
        (host[:1, :1, ::-1], False),
        (np.zeros((), np.float32), True),
    ]
    for part, contiguous in cases:
        for array in (emulated_gpu.array(part), DLPackArray(emulated_gpu, part)):
            assert arrays.view(array).contiguous == contiguous, part.strides
            assert arrays.view(array).count == part.size
    explicit = emulated_gpu.array(host, strides=host.strides)
    assert arrays.view(explicit).contiguous
    nowhere = types.SimpleNamespace(id=1)
    empty = emulated_gpu.array(np.zeros(0, np.float32), data=(0, False))
    empty.device = nowhere  # type: ignore[attr-defined]
    assert arrays.view(empty).device == 1


def test_non_contiguous_arrays_are_refused(emulated_gpu: EmulatedGpu, alone: Comm) -> None:
    host = ones(4, 6)
    for array in (emulated_gpu.array(host[:, :3]), DLPackArray(emulated_gpu, host.T)):
        calls: list[Callable[[], Any]] = [
            lambda x=array: alone.all_reduce(x),
            lambda x=array: alone.all_reduce(emulated_gpu.array(ones(4, 3)), out=x),
            lambda x=array: alone.broadcast(x),
            lambda x=array: alone.all_to_all(x),
            lambda x=array: alone.scatter(x),
        ]
        for call in calls:
            with pytest.raises(ValueError, match=r"got a non-contiguous CUDA array: pass \.contiguous\(\)"):
                call()


def test_bfloat16_has_dlpack_only(emulated_gpu: EmulatedGpu, alone: Comm) -> None:
    host = np.array([1.5, -2], ml_dtypes.bfloat16)
    assert arrays.view(DLPackArray(emulated_gpu, host.view(np.uint16), bfloat16=True)).dtype_name == "bfloat16"
    array = emulated_gpu.array(host.view(np.uint16), typestr="<V2")
    with pytest.raises(TypeError, match=r"'<V2' \(this interface has no bfloat16: pass a torch tensor"):
        alone.broadcast(array)


def test_what_the_protocols_may_not_say(emulated_gpu: EmulatedGpu, alone: Comm) -> None:
    host = ones()
    refused: list[tuple[Any, type[Exception], str]] = [
        (emulated_gpu.array(host, typestr="<i2"), TypeError, "got a CUDA array of '<i2': expected one of float32"),
        (emulated_gpu.array(host, typestr=">f4"), TypeError, "got a CUDA array of '>f4'"),
        (emulated_gpu.array(host, mask=emulated_gpu.array(host)), TypeError, "got a masked .*InterfaceArray"),
        (emulated_gpu.array(host, stream=0), TypeError, "names stream 0, which __cuda_array_interface__ forbids"),
        (emulated_gpu.array(host, data=None), TypeError, "has a __cuda_array_interface__ that is not one"),
        (DLPackArray(emulated_gpu, host.view(np.uint32)), TypeError, "got a CUDA array of an unknown dtype"),
        (emulated_gpu.array(host, data=(64, False)), ValueError, "0x40 is not in the memory of a GPU"),
        (object(), TypeError, "got builtins.object: expected a NumPy array, a torch tensor, a CUDA array or a buffer"),
    ]
    for array, kind, text in refused:
        with pytest.raises(kind, match=text):
            alone.broadcast(array)


def test_read_only_arrays(emulated_gpu: EmulatedGpu) -> None:
    comms = dcomm.init_threads(2, device=0)
    fixed = ones()
    fixed.flags.writeable = False
    for make in (emulated_gpu.array, lambda host: DLPackArray(emulated_gpu, host)):
        array = make(fixed)
        with pytest.raises(ValueError, match="x is read-only: pass out=, or a writable array"):
            comms[0].all_reduce(array)
        with pytest.raises(ValueError, match="out is read-only"):
            comms[0].all_gather(make(ones(4)), out=array)
        with pytest.raises(ValueError, match="x is read-only"):
            comms[0].recv(array, 1)
        received = ones() * 3
        with dcomm.group(comms):  # the sender's is only read
            comms[0].broadcast(array, 0)
            comms[1].broadcast(make(received), 0)
        emulated_gpu.streams[0].synchronize()
        assert (received == 1).all()
    for comm in comms:
        comm.close()


# ---- Streams ----


def test_dlpack_gets_the_stream_of_its_use(emulated_gpu: EmulatedGpu, alone: Comm) -> None:
    stream = emulated_gpu.stream()
    x, out = DLPackArray(emulated_gpu, ones()), DLPackArray(emulated_gpu, ones())
    alone.all_reduce(x, out=out)
    alone.all_reduce(x, out=out, stream=0)
    alone.all_reduce(x, out=out, stream=stream)
    alone.all_reduce(x, out=out, stream=stream.ptr)
    assert x.streams == out.streams == [1, 1, stream.ptr, stream.ptr]  # 1: the legacy default stream


def late_input(gpu: EmulatedGpu, busy: Any) -> tuple[InterfaceArray, Any, Callable[[], None]]:
    """An array that gets its content on the stream `busy`, which is held, and names it."""
    host = np.zeros(8, np.float32)
    release = gpu.hold(busy)
    busy.copy(host, ones())
    return gpu.array(host, stream=busy.ptr), host, release


def test_the_interface_names_the_stream(emulated_gpu: EmulatedGpu, alone: Comm) -> None:
    """The operation comes after what the array's stream does: on that stream, or on stream= which waits for it."""
    gpu = emulated_gpu
    for override in (None, gpu.stream()):
        stream = gpu.stream()
        array, _, release = late_input(gpu, stream)
        result = np.zeros(8, np.float32)
        alone.all_reduce(array, out=gpu.array(result), stream=override)
        read = gpu.read(stream if override is None else override, gpu.array(result))
        time.sleep(0.1)  # a kernel that does not wait for `stream` runs now
        assert (result == 0).all()
        release()
        assert (read() == 1).all()


def test_out_s_stream_is_waited_for_too(emulated_gpu: EmulatedGpu, alone: Comm) -> None:
    gpu = emulated_gpu
    busy, stream = gpu.stream(), gpu.stream()
    out, host, release = late_input(gpu, busy)
    x = gpu.array(ones() * 5)
    alone.all_reduce(x, out=out, stream=stream)
    read = gpu.read(stream, gpu.array(host))
    time.sleep(0.1)  # a kernel that does not wait for `busy` runs now
    release()
    assert (read() == 5).all()
    busy.synchronize()
    assert (host == 5).all()  # what `busy` wrote late came first


@pytest.mark.parametrize("named", [None, 1, 2])
def test_default_streams(emulated_gpu: EmulatedGpu, alone: Comm, named: int | None) -> None:
    """None and 1: the legacy default stream; 2: that too, behind what the thread's own default stream does."""
    changes = {} if named is None else {"stream": named}
    x, result = emulated_gpu.array(ones(), **changes), np.zeros(8, np.float32)
    release = emulated_gpu.hold(emulated_gpu.streams[0])
    alone.all_reduce(x, out=emulated_gpu.array(result))
    assert (result == 0).all()
    release()
    emulated_gpu.streams[0].synchronize()
    assert (result == 1).all()


def test_cupy_and_cuda_core_streams(emulated_gpu: EmulatedGpu, alone: Comm, monkeypatch: pytest.MonkeyPatch) -> None:
    """CuPy's current stream is asked for; new arrays are CuPy's."""
    gpu = emulated_gpu
    current, made = gpu.stream(), []

    class Device:
        id = 0

        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    class CupyArray(InterfaceArray):
        device = Device()
        dtype = np.dtype(np.float32)

    CupyArray.__module__ = "cupy._core"

    def empty(shape: tuple[int, ...], dtype: Any) -> CupyArray:
        made.append(np.zeros(shape, dtype))
        return CupyArray(gpu, made[-1], {})

    cupy = types.SimpleNamespace(cuda=types.SimpleNamespace(get_current_stream=lambda: current), empty=empty)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    release = gpu.hold(current)
    x = CupyArray(gpu, ones(2, 3), {})
    result = alone.all_gather(x)
    assert isinstance(result, CupyArray)
    gpu.streams[0].synchronize()
    assert (made[0] == 0).all()
    release()
    current.synchronize()
    assert made[0].tolist() == ones(2, 3).tolist()

    other = types.SimpleNamespace(__cuda_stream__=lambda: (0, gpu.stream().ptr))
    assert device_arrays.handle_of(other) == gpu.streams[-1].ptr
    assert device_arrays.handle_of(types.SimpleNamespace(cuda_stream=7)) == 7


def test_bad_streams(emulated_gpu: EmulatedGpu, alone: Comm) -> None:
    x = emulated_gpu.array(ones())
    for bad in ("main", 1.5, True, object()):
        with pytest.raises(TypeError, match=r"expected an integer handle, a torch.cuda.Stream or a cupy.cuda.Stream"):
            alone.all_reduce(x, stream=bad)
    with pytest.raises(ValueError, match="per-thread default stream"):
        alone.all_reduce(x, stream=2)
    for call in (
        lambda: alone.all_gather(ones(), stream=0),
        lambda: alone.broadcast(ones(), stream=0),
        lambda: alone.send(ones(), 0, stream=0),
    ):
        with pytest.raises(ValueError, match="stream=0 with a CPU array: stream= is for CUDA arrays; leave it out"):
            call()


def test_a_barrier_must_know_its_gpu(emulated_gpu: EmulatedGpu) -> None:
    (comm,) = dcomm.init_threads(1)
    with pytest.raises(ValueError, match="on a communicator that does not know its GPU; make it with"):
        comm.barrier(stream=0)
    on_two = types.SimpleNamespace(device=types.SimpleNamespace(index=1), cuda_stream=0)
    comm.barrier(stream=on_two)
    comm.barrier(stream=0)  # where the ranks have met
    assert comm._core.cuda_device == 1
    comm.barrier()
    assert comm.barrier(stream=0, async_op=True).wait() is None
    comm.close()


# ---- Which GPU ----


def test_bound_communicators(emulated_gpu: EmulatedGpu) -> None:
    torch = pytest.importorskip("torch")
    for device, index in (("cuda", 0), ("cuda:1", 1), (1, 1), (torch.device("cuda", 1), 1)):
        (comm,) = dcomm.init_threads(1, device=device)
        assert comm.device == f"cuda:{index}"
        assert comm._core.cuda_device == index  # at once
        comm.all_reduce(emulated_gpu.array(ones(), index))
        text = rf"got an array on cuda:{1 - index}, but this communicator is bound to cuda:{index}"
        with pytest.raises(ValueError, match=text):
            comm.all_reduce(emulated_gpu.array(ones(), 1 - index))
        with pytest.raises(ValueError, match="x and out are on different devices"):
            comm.all_reduce(emulated_gpu.array(ones(), index), out=emulated_gpu.array(ones(), 1 - index))
        with pytest.raises(ValueError, match="x and out are on different devices"):
            comm.all_reduce(ones(), out=emulated_gpu.array(ones(), index))
        comm.close()
    for bad in ("cpu", "cuda:x", -1, True, 1.5, "cuda:-1"):
        with pytest.raises(ValueError, match=r"expected 'cuda', 'cuda:0', the number of a GPU or a torch\.device"):
            dcomm.init_threads(1, device=bad)
    with pytest.raises(ValueError, match=r"device='cuda:7': this process sees 2 GPUs"):
        dcomm.init_threads(2, device="cuda:7")


def test_unbound_communicators_meet_at_the_first_call(emulated_gpu: EmulatedGpu) -> None:
    comms = dcomm.init_threads(2)
    assert comms[0].device is None
    assert comms[0]._core.cuda_device == -1

    def mixed(comm: Comm) -> None:
        with pytest.raises(dcomm.MismatchError, match=r"cuda:0.*cuda:1"):
            comm.all_reduce(emulated_gpu.array(ones(), comm.rank))

    values(comms, mixed)
    values(comms, lambda comm: comm.all_reduce(emulated_gpu.array(ones(), 1)))

    def other(comm: Comm) -> None:
        with pytest.raises(ValueError, match=r"got an array on cuda:0, but this communicator's ranks met on cuda:1"):
            comm.all_reduce(emulated_gpu.array(ones(), 0))

    values(comms, other)
    for comm in comms:
        comm.close()


def test_without_a_cuda_part() -> None:
    """The machine's own: this build has none, or there is no GPU."""
    try:
        dcomm._core.cuda_device_count()
    except dcomm.CudaError:
        with pytest.raises(dcomm.CudaError):
            dcomm.init_threads(2, device="cuda:0")
    else:
        pytest.skip("this machine has a GPU")


# ---- What has no kernel ----


def test_bounds_name_what_there_is(emulated_gpu: EmulatedGpu, alone: Comm) -> None:
    gpu = emulated_gpu
    x = gpu.array(ones())
    for method in ("all_reduce", "reduce_scatter", "reduce"):
        call = getattr(alone, method)
        out = {} if method == "reduce" else {"out": gpu.array(ones())}
        for op in ("prod", "min", "max"):
            text = rf"op='{op}' with a CUDA array of float32: on CUDA there are 'sum', 'avg'; for the others use a CPU"
            with pytest.raises(ValueError, match=text):
                call(x, op, **out)
        with pytest.raises(ValueError, match="premul_sum is for CPU arrays: scale the CUDA array first"):
            call(x, dcomm.premul_sum(2), **out)
        for dtype in ("float64", "complex64"):
            host = np.ones(8, dtype)
            outs = {} if method == "reduce" else {"out": gpu.array(host.copy())}
            text = rf"got a CUDA array of {dtype} to reduce: on CUDA there are 'float32', .*, 'int64', 'bool'; for"
            with pytest.raises(ValueError, match=text):
                call(gpu.array(host), **outs)
        for dtype in ("int8", "uint8", "int32", "int64", "bool"):
            host = np.ones(8, dtype)
            outs = {} if method == "reduce" else {"out": gpu.array(host.copy())}
            with pytest.raises(ValueError, match=rf"op='avg' is not defined for {dtype} arrays.*or use op='sum'"):
                call(gpu.array(host), "avg", **outs)  # as of a CPU array
            with pytest.raises(ValueError, match=rf"op='max' with a CUDA array of {dtype}: on CUDA there are 'sum'"):
                call(gpu.array(host), "max", **outs)
    with pytest.raises(ValueError, match="algo='direct' with memory that the other ranks do not"):
        alone.all_reduce(x, algo="direct")
    integers = gpu.array(np.ones(8, np.int32))
    for algo in ("one_shot", "tree", "direct"):
        text = rf"algo='{algo}' with a CUDA array of int32: on CUDA there are 'auto', 'two_shot', 'ring'; for the"
        with pytest.raises(ValueError, match=text):
            alone.all_reduce(integers, algo=algo)
    with pytest.raises(ValueError, match="wire_dtype=float16 with a int32 array"):
        alone.all_reduce(integers, wire_dtype="fp16")
    with pytest.raises(ValueError, match="wire_dtype=bfloat16 with a float16 array"):
        alone.all_reduce(gpu.array(np.ones(8, np.float16)), wire_dtype="bf16")
    with pytest.raises(ValueError, match=r"dcomm cannot make another emulated_gpu.InterfaceArray for the result: pass"):
        alone.all_gather(x)
    with pytest.raises(dcomm.CudaError, match="buckets serve CPU arrays only"):
        dcomm.Bucket([x])
    with pytest.raises(dcomm.CudaError, match="register serves CPU arrays only"):
        alone.register(x)


def test_unequal_blocks_and_other_bad_arguments(emulated_gpu: EmulatedGpu) -> None:
    gpu = emulated_gpu
    comms = dcomm.init_threads(2, device=0)
    comm, x = comms[0], gpu.array(ones())
    with pytest.raises(ValueError, match=r"on CUDA all_to_all has blocks of one length; pad x, or use a CPU array"):
        comm.all_to_all(x, out=gpu.array(ones()), send_counts=[4, 4], recv_counts=[4, 4])
    with pytest.raises(ValueError, match="x and out overlap in part"):
        host = ones(16)
        comm.all_reduce(gpu.array(host[:8]), out=gpu.array(host[4:12]))
    with pytest.raises(ValueError, match="x and out overlap: pass disjoint arrays"):
        comm.all_to_all(x, out=x)
    with pytest.raises(ValueError, match="out has 7 elements"):
        comm.reduce_scatter(x, out=gpu.array(ones(7)))
    with pytest.raises(ValueError, match="is this rank itself"):
        comm.send(x, 0)
    with pytest.raises(ValueError, match="as src or dst: expected a rank"):
        comm.recv(x, 5)
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match="x is a CUDA array and out a torch tensor"):
        comm.all_reduce(x, out=torch.zeros(8))
    for each in comms:
        each.close()


def test_lists_of_the_emulated_gpu(emulated_gpu: EmulatedGpu) -> None:
    """The rest of the C table: pack and unpack, on a stream."""
    parts = [ones(3), ones(5) * 2]
    whole = np.zeros(8, np.float16)
    made = dcomm._core.CudaArrayList(0, [part.ctypes.data for part in parts], [3, 5], [0, 3], 0)
    stream = emulated_gpu.stream()
    made.pack(whole.ctypes.data, arrays.DTYPE_CODES["float16"], 0.5, stream.ptr)
    stream.synchronize()
    assert whole.tolist() == [0.5] * 3 + [1.0] * 5
