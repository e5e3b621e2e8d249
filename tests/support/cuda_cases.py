"""What CUDA arrays must do, whatever the GPU: the same bodies run on an emulated one and, in tests/gpu, on a real one.

Buffers are filled, used in parts, and compared whole with what the same calls do to CPU arrays: the result, and
everything that must be left alone, bit for bit.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from rank_threads import outcomes, run_threads, values

import dcomm

Host = NDArray[Any]
Make = Callable[[int], list[dcomm.Communicator]]
SPECIAL = (float("nan"), float("inf"), -float("inf"), -0.0, 1e-40, 65520.0, 3e38, 6e-8)
SUM_DTYPES = ["float32", "float16", "bfloat16"]
INTEGER_DTYPES = ["int8", "uint8", "int32", "int64", "bool"]
MOVE_DTYPES = [*SUM_DTYPES, *INTEGER_DTYPES, "float64", "complex64", "complex128"]
REDUCING = ("all_reduce", "reduce_scatter", "reduce")
ROOTED = {"broadcast": "src", "scatter": "src", "reduce": "dst", "gather": "dst"}
COLLECTIVES = [*REDUCING, "all_gather", "broadcast", "gather", "scatter", "all_to_all"]
COUNTS = (0, 1, 7, 1000, 9001)  # of a block or a message; the last takes several slots of several channels


@contextmanager
def maker(device: str) -> Iterator[Make]:
    """Makes communicators on `device`, which are closed at the end."""
    made: list[dcomm.Communicator] = []

    def make_some(world_size: int) -> list[dcomm.Communicator]:
        comms = dcomm.init_threads(world_size, device=device)
        made.extend(comms)
        return comms

    yield make_some
    for comm in made:
        comm.close()


class Gpu(Protocol):
    """A GPU as the tests see it; its buffers are one-dimensional arrays in its memory."""

    def put(self, host: Host) -> Any:
        """A buffer with a copy of `host`, ready on every stream."""

    def part(self, buffer: Any, begin: int, end: int) -> Any:
        """An array of these elements of the buffer."""

    def get(self, buffer: Any) -> Host:
        """The content once everything enqueued so far is done."""

    def stream(self) -> Any:
        """A new stream, as the argument stream= takes it."""

    def hold(self, stream: Any) -> Callable[[], None]:
        """Keeps the stream busy, until the returned function is called or for half a second at least."""

    def write(self, stream: Any, buffer: Any, host: Host) -> None:
        """Fills the buffer in stream order."""

    def read(self, stream: Any, buffer: Any) -> Callable[[], Host]:
        """Copies the content in stream order; the function waits for it."""


class Cpu:
    """The same for CPU arrays, whose results are what a GPU must give."""

    def put(self, host: Host) -> Any:
        return host.copy()

    def part(self, buffer: Any, begin: int, end: int) -> Any:
        return buffer[begin:end]

    def get(self, buffer: Any) -> Host:
        return buffer  # type: ignore[no-any-return]


def numpy_dtype(name: str) -> np.dtype[Any]:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def data(seed: int, count: int, dtype: str) -> Host:
    """Ordinary numbers with a few of every special kind; integers of all sizes, which wrap when they are added."""
    generator = np.random.default_rng([seed, count])
    if dtype in INTEGER_DTYPES and dtype != "bool":
        return np.frombuffer(generator.bytes(count * np.dtype(dtype).itemsize), dtype).copy()
    made = generator.normal(scale=100, size=count)
    if dtype not in SUM_DTYPES:
        return made.astype(dtype) if dtype != "bool" else made > 0
    for index in range(0, count, 37):
        made[index] = SPECIAL[(index // 37 + seed) % len(SPECIAL)]
    with np.errstate(over="ignore"):
        return made.astype(np.float32).astype(numpy_dtype(dtype))


def run_collective(
    place: Gpu | Cpu,
    comms: Sequence[dcomm.Communicator],
    name: str,
    dtype: str,
    count: int,
    *,
    root: int = 0,
    in_place: bool = False,
    shift: int = 0,
    **kwargs: Any,
) -> list[list[Host]]:
    """Every rank's buffers after the call: what it read and what it wrote, with the elements around them."""
    n = len(comms)
    in_count = n * count if name in ("reduce_scatter", "scatter", "all_to_all") else count
    out_count = n * count if name in ("all_gather", "gather", "all_to_all") else count

    def body(comm: dcomm.Communicator) -> list[Any]:
        rank = comm.rank
        mine = slice(shift + rank * count, shift + (rank + 1) * count)
        source = data(1000 + rank, in_count + 2 * shift, dtype)
        target = np.ones(out_count + 2 * shift, numpy_dtype(dtype))
        if in_place and name in ("all_gather", "gather"):
            target[mine] = source[shift : shift + count]
        buffers = [place.put(source), place.put(target)]
        x = place.part(buffers[0], shift, shift + in_count)
        out = place.part(buffers[1], shift, shift + out_count)
        if in_place and name in ("all_gather", "gather") and (name == "all_gather" or rank == root):
            x = place.part(buffers[1], mine.start, mine.stop)
        if in_place and name in ("reduce_scatter", "scatter"):
            out = place.part(buffers[0], mine.start, mine.stop)
        kwargs_here = {**kwargs, ROOTED[name]: root} if name in ROOTED else dict(kwargs)
        if name != "broadcast" and not (in_place and name in ("all_reduce", "reduce")):
            kwargs_here["out"] = out
        if name in ("reduce", "gather") and rank != root:
            kwargs_here.pop("out", None)
        if name == "scatter" and rank != root:
            x = None
        getattr(comm, name)(x, **kwargs_here)
        return buffers

    results = values(comms, body)
    return [[place.get(buffer) for buffer in buffers] for buffers in results]


def check_collective(gpu: Gpu, comms: Sequence[dcomm.Communicator], name: str, dtype: str, **kwargs: Any) -> None:
    """The GPU's buffers have the CPU's bits: counts, in and out of place, aligned and not."""
    hosts = dcomm.init_threads(len(comms))
    for turn, count in enumerate(COUNTS):
        root = turn % len(comms)
        for in_place in (False, True):
            shape = {"root": root, "in_place": in_place, "shift": turn % 4}
            found = run_collective(gpu, comms, name, dtype, count, **shape, **kwargs)
            host_kwargs = dict(kwargs)
            if name == "all_reduce" and host_kwargs.get("algo", "auto") == "auto":
                host_kwargs["algo"] = "two_shot"  # the canonical bits; the host's "auto" may be another
            expected = run_collective(Cpu(), hosts, name, dtype, count, **shape, **host_kwargs)
            for rank, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
                for what, a, b in zip(("in", "out"), ours, theirs, strict=True):
                    assert a.tobytes() == b.tobytes(), (name, dtype, count, in_place, rank, what, kwargs)
    for comm in hosts:
        comm.close()


def check_messages(gpu: Gpu, comms: Sequence[dcomm.Communicator], dtype: str) -> None:
    """Between all pairs of ranks, of all lengths, with and without tags."""

    def body(comm: dcomm.Communicator) -> None:
        n = len(comms)
        for turn, count in enumerate(COUNTS):
            for source in range(n):
                for target in range(n):
                    sent = data(source * n + target, count, dtype)
                    if comm.rank == source != target:
                        buffer = gpu.put(sent)
                        comm.send(buffer, target, tag=turn)
                        assert gpu.get(buffer).tobytes() == sent.tobytes()  # and it lives until it was read
                    elif comm.rank == target != source:
                        buffer = gpu.put(np.ones(count, numpy_dtype(dtype)))
                        assert comm.recv(buffer, source, tag=turn) is buffer
                        assert gpu.get(buffer).tobytes() == sent.tobytes()

    values(comms, body)


def check_stream_order(gpu: Gpu, comms: Sequence[dcomm.Communicator]) -> None:
    """A rank's input is written late, on its own stream: the call returns at once, and its result comes after that."""
    n, count = len(comms), 5000
    barrier = threading.Barrier(n)

    def body(comm: dcomm.Communicator) -> None:
        stream = gpu.stream()
        buffer = gpu.put(np.full(count, -1, np.float32))
        comm.all_reduce(buffer, stream=stream)  # whatever is made at the first call
        barrier.wait(30)
        release = gpu.hold(stream) if comm.rank == 0 else None
        gpu.write(stream, buffer, np.full(count, comm.rank + 1, np.float32))
        start = time.perf_counter()
        comm.all_reduce(buffer, stream=stream)
        after_first = gpu.read(stream, buffer)
        comm.all_reduce(buffer, stream=stream)
        after_second = gpu.read(stream, buffer)
        assert time.perf_counter() - start < 0.3
        barrier.wait(30)
        if release is not None:
            time.sleep(0.1)  # a kernel that does not wait for this stream runs now
            release()
        total = n * (n + 1) / 2
        assert (after_first() == total).all()
        assert (after_second() == n * total).all()

    values(comms, body)


def check_barrier(gpu: Gpu, comms: Sequence[dcomm.Communicator]) -> None:
    """What one rank's stream did before it is seen by the others' after it."""
    shared = gpu.put(np.zeros(10, np.float32))

    def body(comm: dcomm.Communicator) -> None:
        stream = gpu.stream()
        release = gpu.hold(stream) if comm.rank == 0 else None
        if comm.rank == 0:
            gpu.write(stream, shared, np.full(10, 5, np.float32))
        comm.barrier(stream=stream)
        seen = gpu.read(stream, shared)
        if release is not None:
            time.sleep(0.1)  # streams that do not wait for this one go on now
            release()
        assert (seen() == 5).all()

    values(comms, body)


def check_mismatch(gpu: Gpu, comms: Sequence[dcomm.Communicator]) -> None:
    """It raises on all ranks, with both sides, and they go on."""

    def body(comm: dcomm.Communicator) -> None:
        comm.all_gather(gpu.put(np.zeros(10 + comm.rank // 2, np.float32)), out=gpu.put(np.zeros(
            len(comms) * (10 + comm.rank // 2), np.float32)))  # fmt: skip

    for outcome in outcomes(comms, body):
        assert isinstance(outcome, dcomm.MismatchError)
        assert "10 x float32" in str(outcome)
        assert "11 x float32" in str(outcome)

    def roots(comm: dcomm.Communicator) -> None:
        with pytest.raises(dcomm.MismatchError, match=r"broadcast.*rank 0.*broadcast.*rank 1"):
            comm.broadcast(gpu.put(np.zeros(4, np.float32)), min(comm.rank, 1))

    values(comms, roots)
    check_collective(gpu, comms, "all_gather", "float32")


def check_missing_rank(gpu: Gpu, comms: Sequence[dcomm.Communicator]) -> None:
    """The others name it when their deadline has passed; the communicators are then broken."""
    gone = threading.Event()

    def body(comm: dcomm.Communicator) -> None:
        x = gpu.put(np.zeros(8, np.float32))
        if comm.rank == 1:
            gone.wait(30)
            return
        try:
            comm.broadcast(x, timeout=0.3)
        finally:
            if comm.rank == 0:
                time.sleep(0.5)  # the others' deadlines pass too
                gone.set()

    results = outcomes(comms, body)
    assert results[1] is None
    for rank in {*range(len(comms))} - {1}:
        assert isinstance(results[rank], dcomm.CollectiveTimeoutError)
        assert "rank 1" in str(results[rank])
        with pytest.raises(dcomm.CollectiveTimeoutError, match="rank 1"):
            comms[rank].broadcast(gpu.put(np.zeros(8, np.float32)))


def check_message_errors(gpu: Gpu, make: Callable[[], list[dcomm.Communicator]]) -> None:
    """Other lengths, both sending first, a peer that leaves."""
    x = [gpu.put(np.zeros(8, np.float32)) for _ in range(2)]
    longer = gpu.put(np.zeros(9, np.float32))
    bodies: list[tuple[Callable[[dcomm.Communicator], Any], str]] = [
        (
            lambda c: c.send(x[0], 1) if c.rank == 0 else c.recv(longer, 0),
            r"send.8 x float32.*recv.9 x float32|recv.9 x float32.*send.8 x float32",
        ),
        (lambda c: c.send(x[c.rank], 1 - c.rank), "each waits for the other"),
        (lambda c: c.send(x[0], 1, tag=1) if c.rank == 0 else c.recv(x[1], 0, tag=2), "tag 1.*tag 2|tag 2.*tag 1"),
    ]
    for body, text in bodies:
        for outcome in outcomes(make()[:2], body):
            with pytest.raises(dcomm.MismatchError, match=text):
                assert isinstance(outcome, BaseException)
                raise outcome

    def leave(comm: dcomm.Communicator) -> None:
        if comm.rank == 1:
            time.sleep(0.05)
            return comm.close()
        with pytest.raises(dcomm.PeerLostError, match="rank 1 left"):
            comm.recv(x[0], 1)
        return None

    values(make()[:2], leave)


def check_abort(gpu: Gpu, comms: Sequence[dcomm.Communicator]) -> None:
    """It ends a rank that waits for the others, and later calls."""

    def body(comm: dcomm.Communicator) -> None:
        x = gpu.put(np.zeros(8, np.float32))
        if comm.rank == 1:
            time.sleep(0.1)
            comm.abort()
        with pytest.raises(dcomm.AbortedError, match="aborted on rank 1"):
            comm.all_reduce(x)

    values(comms, body)


def check_group(gpu: Gpu, comms: Sequence[dcomm.Communicator]) -> None:
    """One thread plays all ranks: several operations, in any order of ranks, messages both ways."""
    n, count = len(comms), 3000
    hosts = [data(rank, count, "float32") for rank in range(n)]
    buffers = [gpu.put(host) for host in hosts]
    gathered = [gpu.put(np.zeros(n * count, np.float32)) for _ in range(n)]
    passed = [gpu.put(np.zeros(count, np.float32)) for _ in range(n)]
    with dcomm.group(comms):
        for comm in reversed(comms):
            comm.all_gather(buffers[comm.rank], out=gathered[comm.rank])
            assert comm.all_reduce(buffers[comm.rank], "avg") is buffers[comm.rank]
    with dcomm.group(comms):
        for comm in comms:
            comm.send(buffers[comm.rank], (comm.rank + 1) % n)
            comm.recv(passed[comm.rank], (comm.rank - 1) % n)
    mean = run_threads(n, lambda comm: comm.all_reduce(hosts[comm.rank].copy(), "avg", algo="two_shot"))[0]
    for rank in range(n):
        assert gpu.get(gathered[rank]).tobytes() == np.concatenate(hosts).tobytes()
        assert gpu.get(buffers[rank]).tobytes() == mean.tobytes()
        assert gpu.get(passed[rank]).tobytes() == mean.tobytes()


def check_group_errors(gpu: Gpu, comms: Sequence[dcomm.Communicator]) -> None:
    """Typed, without a launch for what is incomplete, and the communicators go on."""
    x = [gpu.put(np.ones(8, np.float32)) for _ in comms]
    with (
        pytest.raises(dcomm.MismatchError, match=r"rank 0 called all_reduce.*rank 1 called nothing more"),
        dcomm.group(comms),
    ):
        comms[0].all_reduce(x[0])
    with pytest.raises(dcomm.MismatchError, match=r"8 x float32.*7 x float32"), dcomm.group(comms):
        for comm in comms:
            comm.all_reduce(gpu.part(x[comm.rank], 0, 7 if comm.rank == 1 else 8))
    with pytest.raises(ZeroDivisionError), dcomm.group(comms):
        comms[0].all_reduce(x[0])
        raise ZeroDivisionError
    on_host = np.ones(8, np.float32)
    host_calls: list[Callable[[], Any]] = [
        lambda: comms[0].all_reduce(on_host),
        lambda: comms[0].all_reduce(on_host, async_op=True),
        lambda: comms[0].all_reduce(dcomm.Bucket([on_host])),
        lambda: comms[0].broadcast(on_host),
        lambda: comms[0].send(on_host, 1),
        lambda: comms[0].recv(on_host, 1),
        lambda: comms[0].barrier(),
        lambda: comms[0].split(0),
        lambda: comms[0].empty(8),
        lambda: comms[0].register(on_host),
    ]
    for call in host_calls:
        with pytest.raises(ValueError, match=r"inside dcomm.group only CUDA arrays"), dcomm.group(comms):
            call()
    with pytest.raises(ValueError, match="already inside a group"), dcomm.group(comms), dcomm.group(comms):
        pass
    others = dcomm.init_threads(len(comms))
    with pytest.raises(ValueError, match="not ranks of one group of threads"):
        dcomm.group([comms[0], *others[1:]])
    with pytest.raises(ValueError, match=r"got ranks \[0\]: expected each of"):
        dcomm.group(comms[:1])
    with pytest.raises(TypeError, match="expected the communicators of all ranks"):
        dcomm.group([])
    check_group(gpu, comms)
