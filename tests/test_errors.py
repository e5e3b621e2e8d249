"""Bad arguments: a typed error that says what was given and what is expected, before anything is sent."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from rank_threads import outcomes, thread_outcomes, values

import dcomm


@pytest.fixture(scope="module")
def pair() -> Iterator[list[dcomm.Communicator]]:
    """One pair for all bad calls: each must leave it usable, which the last line of every test checks."""
    comms = dcomm.init_threads(2)
    yield comms
    for comm in comms:
        comm.close()


def zeros(*shape: int) -> Any:
    return np.zeros(shape or 8, np.float32)


def read_only() -> Any:
    x = zeros()
    x.flags.writeable = False
    return x


ROOM = np.zeros(100, np.float32)
Comm = dcomm.Communicator
BAD_CALLS: list[tuple[str, Callable[[Comm], Any], type[Exception], str]] = [
    ("op", lambda c: c.all_reduce(zeros(), "mean"), ValueError, "op='mean': expected one of 'sum', 'avg'"),
    ("op type", lambda c: c.all_reduce(zeros(), ["sum"]), ValueError, r"op=\['sum'\]: expected one of 'sum', 'avg'"),
    ("algo", lambda c: c.all_reduce(zeros(), algo="tree"), ValueError, "algo='tree': expected one of 'auto', 'ring'"),
    ("algo type", lambda c: c.all_reduce(zeros(), algo=[1]), ValueError, r"algo=\[1\]: expected one of 'auto'"),
    ("wire", lambda c: c.all_reduce(zeros(), wire_dtype="int8"), ValueError, "wire_dtype='int8': expected None, 'flo"),
    ("wire of f64", lambda c: c.all_reduce(np.zeros(3), wire_dtype="fp16"), ValueError,
     "wire_dtype=float16 with a float64 array: only float32 arrays"),
    ("wire f64", lambda c: c.all_reduce(zeros(), wire_dtype="float64"), ValueError,
     "wire_dtype=float64 with a float32 array: only float32"),
    ("avg of ints", lambda c: c.all_reduce(np.zeros(3, np.int32), "avg"), ValueError,
     "op='avg' is not defined for int32; use op='sum'"),
    ("bool", lambda c: c.all_reduce(np.zeros(3, bool)), TypeError, "got an array of bool: expected one of float32"),
    ("uint8", lambda c: c.all_reduce(np.zeros(3, np.uint8)), TypeError, "got an array of uint8: expected one of"),
    ("complex", lambda c: c.all_reduce(np.zeros(3, complex)), TypeError, "got an array of complex128: expected one"),
    ("byte order", lambda c: c.all_reduce(np.zeros(3, ">f4")), TypeError, "got an array of >f4: expected one of"),
    ("list", lambda c: c.all_reduce([1.0, 2.0]), TypeError, "got builtins.list: expected a NumPy array, a torch"),
    ("None", lambda c: c.all_reduce(None), TypeError, "got builtins.NoneType: expected a NumPy array"),
    ("bytes", lambda c: c.all_reduce(bytearray(8)), TypeError, "got an array of 'B': expected one of float32"),
    ("out count", lambda c: c.all_reduce(zeros(), out=zeros(9)), ValueError,
     "out has 9 elements of float32: expected 8 of float32, as x has"),
    ("out dtype", lambda c: c.all_reduce(zeros(), out=np.zeros(8)), ValueError,
     "out has 8 elements of float64: expected 8 of float32, as x has"),
    ("out shape", lambda c: c.all_reduce(zeros(2, 4), out=zeros(4, 2)), ValueError,
     r"out has shape \(4, 2\): expected \(2, 4\), as x has"),
    ("x read-only", lambda c: c.all_reduce(read_only()), ValueError, "x is read-only: pass out=, or a writable"),
    ("out read-only", lambda c: c.all_reduce(zeros(), out=read_only()), ValueError, "out is read-only: pass a writ"),
    ("overlap", lambda c: c.all_reduce(ROOM[:50], out=ROOM[49:99]), ValueError, "x and out overlap in part: pass the"),
    ("overlap below", lambda c: c.all_reduce(ROOM[1:51], out=ROOM[:50]), ValueError, "x and out overlap in part"),
    ("repeats", lambda c: c.all_reduce(zeros(), out=np.lib.stride_tricks.as_strided(zeros(), (8,), (0,))), ValueError,
     "elements of the array share memory; pass a copy, or out="),
    ("stream", lambda c: c.all_reduce(zeros(), stream=0), ValueError, "stream= is for CUDA arrays"),
    ("timeout 0", lambda c: c.all_reduce(zeros(), timeout=0), ValueError, "timeout=0: expected a positive number of s"),
    ("timeout < 0", lambda c: c.barrier(timeout=-2.5), ValueError, "timeout=-2.5: expected a positive number of sec"),
    ("timeout str", lambda c: c.barrier(timeout="1"), TypeError, "timeout='1': expected seconds or a datetime.timed"),
    ("timeout nan", lambda c: c.barrier(timeout=float("nan")), ValueError, "timeout=nan: expected a positive number"),
    ("timeout inf", lambda c: c.broadcast(zeros(), timeout=float("inf")), ValueError, "timeout=inf: expected a pos"),
    ("async timeout", lambda c: c.all_reduce(zeros(), async_op=True, timeout=0), ValueError, "timeout=0: expected"),
    ("src", lambda c: c.broadcast(zeros(), 2), ValueError, "src=2: expected a rank from 0 to 1"),
    ("src < 0", lambda c: c.broadcast(zeros(), -1), ValueError, "src=-1: expected a rank from 0 to 1"),
    ("src type", lambda c: c.broadcast(zeros(), "0"), ValueError, "src='0': expected a rank from 0 to 1"),
    ("broadcast dtype", lambda c: c.broadcast(np.zeros(3, bool)), TypeError, "got an array of bool: expected one of"),
    ("broadcast read-only", lambda c: c.broadcast(read_only(), 1), ValueError, "x is read-only: pass a writable"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "text"), [c[1:] for c in BAD_CALLS], ids=[c[0] for c in BAD_CALLS])
def test_bad_argument(pair: list[Comm], call: Callable[[Comm], Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text) as caught:
        call(pair[0])
    assert type(caught.value) is kind
    assert values(pair, lambda comm: comm.all_reduce(np.ones(2)).tolist(), timeout=20) == [[2.0, 2.0]] * 2


@pytest.mark.parametrize(
    ("kwargs", "kind", "text"),
    [
        ({"rank": 0}, ValueError, "rank and world_size go together"),
        ({"world_size": 2}, ValueError, "rank and world_size go together"),
        ({"rank": 2, "world_size": 2}, ValueError, "rank=2, world_size=2: expected 0 <= rank < world_size"),
        ({"rank": -1, "world_size": 2}, ValueError, "rank=-1, world_size=2: expected 0 <= rank < world_size"),
        ({"rank": 0, "world_size": 0}, ValueError, "rank=0, world_size=0: expected 0 <= rank < world_size"),
        ({"rank": "0", "world_size": 2}, TypeError, "rank='0', world_size=2: expected whole numbers"),
        ({"rank": 0, "world_size": 1, "timeout": 0}, ValueError, "timeout=0: expected a positive number of seconds"),
    ],
)
def test_bad_init(kwargs: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        dcomm.init(**kwargs)


@pytest.mark.parametrize("world_size", [0, -1, "2", 1.0])
def test_bad_init_threads(world_size: Any) -> None:
    with pytest.raises(
        ValueError, match=re.escape(f"world_size={world_size!r}: expected a whole number of at least 1")
    ):
        dcomm.init_threads(world_size)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("DCOMM_ALGO", "tree", "DCOMM_ALGO='tree': expected 'auto', 'ring' or 'two_shot'"),
        ("DCOMM_TIMEOUT_S", "0", "DCOMM_TIMEOUT_S='0': expected a number from"),
        ("DCOMM_TIMEOUT_S", "nan", "DCOMM_TIMEOUT_S='nan': expected a number from"),
        ("DCOMM_TIMEOUT_S", "5 s", "DCOMM_TIMEOUT_S='5 s': expected a number from"),
        ("DCOMM_WINDOW_BYTES", "12", "DCOMM_WINDOW_BYTES='12': expected a number from 65536"),
        ("DCOMM_WINDOW_BYTES", "8M", "DCOMM_WINDOW_BYTES='8M': expected a number from"),
        ("DCOMM_ISA", "sse9", "DCOMM_ISA: instruction set 'sse9' is unknown: expected one of scalar, avx2, avx512"),
    ],
)
def test_bad_variable(name: str, value: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=re.escape(text)):
        dcomm.init_threads(2)


def test_the_variables_are_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCOMM_TIMEOUT_S", "0.2")
    monkeypatch.setenv("DCOMM_ALGO", "ring")
    comms = dcomm.init_threads(2)
    start = time.monotonic()
    with pytest.raises(dcomm.CollectiveTimeoutError, match="algo=ring"):
        comms[0].all_reduce(zeros())
    assert time.monotonic() - start < 1.2


def test_tensors_that_are_not_dense_cpu_tensors(pair: list[Comm]) -> None:
    torch = pytest.importorskip("torch")
    for tensor, text in (
        (torch.zeros(3).to_sparse(), "got a torch.sparse_coo tensor: .*convert it with .to_dense"),
        (torch.zeros(3, device="meta"), r"got a tensor on meta: .*move it with .cpu\(\)"),
        (torch.zeros(3, dtype=torch.complex64), "got a torch tensor of complex64: expected one of float32"),
    ):
        for _ in range(2):  # the second time the type is known
            with pytest.raises(TypeError, match=text):
                pair[0].all_reduce(tensor)
    with pytest.raises(ValueError, match="elements of the array share memory"):
        pair[0].all_reduce(torch.zeros(1).expand(4))


def test_closed_communicator() -> None:
    comm = dcomm.init_threads(1)[0]
    comm.close()
    comm.close()
    assert comm.closed
    assert "closed" in repr(comm)
    for call in (comm.barrier, lambda: comm.all_reduce(zeros()), lambda: comm.broadcast(zeros(), async_op=True)):
        with pytest.raises(dcomm.AbortedError, match=r"this communicator is closed; make a new one with dcomm.init"):
            call()


def test_two_threads_in_one_communicator() -> None:
    comms = dcomm.init_threads(2)
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            comms[0].barrier(timeout=20)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    deadline = time.monotonic() + 10
    while comms[0].stats()["num_operations"] == 0 and time.monotonic() < deadline:
        time.sleep(0.001)
    for call in (comms[0].barrier, lambda: comms[0].all_reduce(zeros()), lambda: comms[0].barrier(async_op=True)):
        with pytest.raises(dcomm.ConcurrentUseError, match="another thread is using this communicator; give each"):
            call()
    comms[1].barrier()  # the first thread's call goes on unharmed
    thread.join(20)
    assert not thread.is_alive()
    assert errors == []


def test_every_later_call_raises_the_first_reason() -> None:
    def body(comm: Comm) -> list[str]:
        texts = []
        for call in (lambda: comm.all_reduce(zeros(3 + comm.rank)), comm.barrier, lambda: comm.all_reduce(zeros())):
            with pytest.raises(dcomm.MismatchError) as caught:
                call()
            texts.append(str(caught.value))
        with pytest.raises(dcomm.MismatchError):
            comm.all_reduce(zeros(), async_op=True)
        return texts

    for texts in thread_outcomes(2, body):
        assert isinstance(texts, list)
        assert "count=3" in texts[0]
        assert texts == [texts[0]] * 3


def test_abort_reaches_every_rank() -> None:
    comms = dcomm.init_threads(4)

    def body(comm: Comm) -> None:
        if comm.rank == 3:
            time.sleep(0.05)
            comm.abort()
        comm.barrier()

    results = outcomes(comms, body, timeout=10)
    assert [type(result) for result in results] == [dcomm.AbortedError] * 4
    assert all("rank 3" in str(result) for result in results)
