"""Bad arguments: one typed error says what was given, what was expected and what to do, before anything is sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from rank_threads import values

import dcomm

Comm = dcomm.Communicator


@pytest.fixture(scope="module")
def pair() -> Iterator[list[Comm]]:
    """One pair for all bad calls: each must leave it usable, which the last line of every test checks."""
    comms = dcomm.init_threads(2)
    yield comms
    for comm in comms:
        comm.close()


def zeros(*shape: int) -> Any:
    return np.zeros(shape or 8, np.float32)


def read_only(count: int = 8) -> Any:
    x = zeros(count)
    x.flags.writeable = False
    return x


def repeated(count: int = 8) -> Any:
    return np.lib.stride_tricks.as_strided(zeros(), (count,), (0,))


def tensor(*shape: int, **kwargs: Any) -> Any:
    torch = pytest.importorskip("torch")
    return torch.zeros(shape or (8,), **kwargs)


ROOM = np.zeros(100, np.float32)
DTYPES = "float32, float16, bfloat16, float64, int32, int64, int8, uint8, bool, complex64, complex128; convert it first"
OPS = (
    "expected one of 'sum', 'avg', 'prod', 'min', 'max', 'band', 'bor', 'bxor', the torch.distributed.ReduceOp of that "
    "name, or dcomm.premul_sum(factor)"
)
ALGOS = "expected one of 'auto', 'ring', 'two_shot', 'one_shot', 'tree', 'direct'"
WIRES = "expected None, 'float16' ('fp16'), 'bfloat16' ('bf16'), 'fp8' ('fp8_block32') or 'fp8_block128'"
UNDEFINED = (
    "avg needs floats or complex numbers, premul_sum floats, prod, min and max no complex numbers, band, bor and bxor "
    "integers or bool; convert the array, or use op='sum'"
)
NOT_ARRAY = "expected a NumPy array, a torch tensor, a CUDA array or a buffer"
STORED = "the result cannot be stored: elements of the array share memory; pass a copy, or out="
SECONDS = "expected a positive number of seconds, or None for the default"
NEW = "pass such an array, or out=None for a new one"
LIBRARIES = "x is a NumPy array and out a torch tensor: expected both of one library; convert one of them"
ONLY_F32 = "only float32 arrays can travel as float16, bfloat16 or fp8; pass wire_dtype=None"

# All are made on rank 0 of 2; the text is the whole message.
Row = tuple[str, Callable[[Comm], Any], type[Exception], str]
ALL_REDUCE: list[Row] = [
    ("op", lambda c: c.all_reduce(zeros(), "mean"), ValueError, f"op='mean': {OPS}"),
    ("op type", lambda c: c.all_reduce(zeros(), ["sum"]), ValueError, f"op=['sum']: {OPS}"),
    ("op None", lambda c: c.all_reduce(zeros(), None), ValueError, f"op=None: {OPS}"),
    ("op without factor", lambda c: c.all_reduce(zeros(), "premul_sum"), ValueError, f"op='premul_sum': {OPS}"),
    ("algo", lambda c: c.all_reduce(zeros(), algo="star"), ValueError, f"algo='star': {ALGOS}"),
    ("algo type", lambda c: c.all_reduce(zeros(), algo=[1]), ValueError, f"algo=[1]: {ALGOS}"),
    ("algo inside", lambda c: c.all_reduce(zeros(), algo="flat"), ValueError, f"algo='flat': {ALGOS}"),
    ("wire", lambda c: c.all_reduce(zeros(), wire_dtype="int8"), ValueError, f"wire_dtype='int8': {WIRES}"),
    ("wire type", lambda c: c.all_reduce(zeros(), wire_dtype=[1]), ValueError, f"wire_dtype=[1]: {WIRES}"),
    ("wire of f64", lambda c: c.all_reduce(np.zeros(3), wire_dtype="fp16"), ValueError,
     f"wire_dtype=float16 with a float64 array: {ONLY_F32}"),
    ("wire f64", lambda c: c.all_reduce(zeros(), wire_dtype="float64"), ValueError,
     f"wire_dtype=float64 with a float32 array: {ONLY_F32}"),
    ("avg of ints", lambda c: c.all_reduce(np.zeros(3, np.int32), "avg"), ValueError,
     f"op='avg' is not defined for int32 arrays: {UNDEFINED}"),
    ("max of complex", lambda c: c.all_reduce(np.zeros(3, complex), "max"), ValueError,
     f"op='max' is not defined for complex128 arrays: {UNDEFINED}"),
    ("bor of floats", lambda c: c.all_reduce(zeros(), "bor"), ValueError,
     f"op='bor' is not defined for float32 arrays: {UNDEFINED}"),
    ("premul of bool", lambda c: c.all_reduce(np.zeros(3, bool), dcomm.premul_sum(2)), ValueError,
     f"op='premul_sum' is not defined for bool arrays: {UNDEFINED}"),
    ("int16", lambda c: c.all_reduce(np.zeros(3, np.int16)), TypeError,
     f"got an array of int16: expected one of {DTYPES}"),
    ("uint64", lambda c: c.all_reduce(np.zeros(3, np.uint64)), TypeError,
     f"got an array of uint64: expected one of {DTYPES}"),
    ("text", lambda c: c.all_reduce(np.array(["a"])), TypeError, f"got an array of <U1: expected one of {DTYPES}"),
    ("byte order", lambda c: c.all_reduce(np.zeros(3, ">f4")), TypeError,
     f"got an array of >f4: expected one of {DTYPES}"),
    ("list", lambda c: c.all_reduce([1.0, 2.0]), TypeError, f"got builtins.list: {NOT_ARRAY}"),
    ("None", lambda c: c.all_reduce(None), TypeError, f"got builtins.NoneType: {NOT_ARRAY}"),
    ("out count", lambda c: c.all_reduce(zeros(), out=zeros(9)), ValueError,
     "out has 9 elements of float32: expected 8 of float32, as x has; pass such an array"),
    ("out dtype", lambda c: c.all_reduce(zeros(), out=np.zeros(8)), ValueError,
     "out has 8 elements of float64: expected 8 of float32, as x has; pass such an array"),
    ("out shape", lambda c: c.all_reduce(zeros(2, 4), out=zeros(4, 2)), ValueError,
     "out has shape (4, 2): expected (2, 4), as x has; pass such an array"),
    ("out type", lambda c: c.all_reduce(zeros(), out=[0.0] * 8), TypeError, f"got builtins.list: {NOT_ARRAY}"),
    ("out library", lambda c: c.all_reduce(zeros(), out=tensor()), TypeError, LIBRARIES),
    ("x read-only", lambda c: c.all_reduce(read_only()), ValueError,
     "x is read-only: pass out=, or a writable array"),
    ("out read-only", lambda c: c.all_reduce(zeros(), out=read_only()), ValueError,
     "out is read-only: pass a writable array"),
    ("overlap", lambda c: c.all_reduce(ROOM[:50], out=ROOM[49:99]), ValueError,
     "x and out overlap in part: pass the same array or disjoint ones"),
    ("overlap below", lambda c: c.all_reduce(ROOM[1:51], out=ROOM[:50]), ValueError,
     "x and out overlap in part: pass the same array or disjoint ones"),
    ("repeats", lambda c: c.all_reduce(zeros(), out=repeated()), ValueError, STORED),
    ("stream", lambda c: c.all_reduce(zeros(), stream=0), ValueError,
     "stream=0 with a CPU array: stream= is for CUDA arrays; leave it out"),
    ("timeout 0", lambda c: c.all_reduce(zeros(), timeout=0), ValueError, f"timeout=0: {SECONDS}"),
    ("async timeout", lambda c: c.all_reduce(zeros(), async_op=True, timeout=0), ValueError, f"timeout=0: {SECONDS}"),
    ("sparse", lambda c: c.all_reduce(tensor().to_sparse()), TypeError,
     "got a torch.sparse_coo tensor: dcomm handles dense tensors; convert it with .to_dense()"),
    ("meta", lambda c: c.all_reduce(tensor(device="meta")), TypeError,
     "got a tensor on meta: dcomm handles cpu and cuda tensors; move it with .cpu()"),
    ("expanded", lambda c: c.all_reduce(tensor(1).expand(4)), ValueError, STORED),
]  # fmt: skip
SHARED = "expected a first dimension that 2 ranks share evenly; pad x"
BLOCK = f"a block of x for each of 2 ranks; {NEW}"
EACH = f"x of each of 2 ranks; {NEW}"
OTHER: list[Row] = [
    ("rs op", lambda c: c.reduce_scatter(zeros(), "mean"), ValueError, f"op='mean': {OPS}"),
    ("rs op of dtype", lambda c: c.reduce_scatter(np.zeros(4, int), "avg"), ValueError,
     f"op='avg' is not defined for int64 arrays: {UNDEFINED}"),
    ("rs shape", lambda c: c.reduce_scatter(zeros(7, 2)), ValueError, f"reduce_scatter: x has shape (7, 2): {SHARED}"),
    ("rs 0-d", lambda c: c.reduce_scatter(np.float32(1) * zeros(1)[0:1].reshape(())), ValueError,
     f"reduce_scatter: x has shape (): {SHARED}"),
    ("rs list", lambda c: c.reduce_scatter([1.0]), TypeError, f"got builtins.list: {NOT_ARRAY}"),
    ("rs dtype", lambda c: c.reduce_scatter(np.zeros(4, np.uint16)), TypeError,
     f"got an array of uint16: expected one of {DTYPES}"),
    ("rs out count", lambda c: c.reduce_scatter(zeros(), out=zeros()), ValueError,
     f"out has 8 elements of float32: expected 4 of float32, {BLOCK}"),
    ("rs out dtype", lambda c: c.reduce_scatter(zeros(), out=np.zeros(4)), ValueError,
     f"out has 4 elements of float64: expected 4 of float32, {BLOCK}"),
    ("rs out shape", lambda c: c.reduce_scatter(zeros(8, 2), out=zeros(8)), ValueError,
     f"out has shape (8,): expected (4, 2), {BLOCK}"),
    ("rs out library", lambda c: c.reduce_scatter(zeros(), out=tensor(4)), TypeError, LIBRARIES),
    ("rs out read-only", lambda c: c.reduce_scatter(zeros(), out=read_only(4)), ValueError,
     "out is read-only: pass a writable array"),
    ("rs out repeats", lambda c: c.reduce_scatter(zeros(), out=repeated(4)), ValueError, STORED),
    ("rs overlap", lambda c: c.reduce_scatter(ROOM[:8], out=ROOM[4:8]), ValueError,
     "x and out overlap: pass disjoint arrays, or x's block 0 as out"),
    ("rs timeout", lambda c: c.reduce_scatter(zeros(), timeout=-1), ValueError, f"timeout=-1: {SECONDS}"),
    ("ag list", lambda c: c.all_gather((1, 2)), TypeError, f"got builtins.tuple: {NOT_ARRAY}"),
    ("ag out count", lambda c: c.all_gather(zeros(), out=zeros()), ValueError,
     f"out has 8 elements of float32: expected 16 of float32, {EACH}"),
    ("ag out shape", lambda c: c.all_gather(zeros(2, 4), out=zeros(16)), ValueError,
     f"out has shape (16,): expected (4, 4), {EACH}"),
    ("ag out dtype", lambda c: c.all_gather(zeros(), out=np.zeros(16, np.int32)), ValueError,
     f"out has 16 elements of int32: expected 16 of float32, {EACH}"),
    ("ag overlap", lambda c: c.all_gather(ROOM[8:16], out=ROOM[:16]), ValueError,
     "x and out overlap: pass disjoint arrays, or out's block 0 as x"),
    ("ag read-only", lambda c: c.all_gather(zeros(4), out=read_only()), ValueError,
     "out is read-only: pass a writable array"),
    ("ag timeout", lambda c: c.all_gather(zeros(), timeout="1"), TypeError,
     "timeout='1': expected seconds or a datetime.timedelta"),
    ("a2a shape", lambda c: c.all_to_all(zeros(3)), ValueError, f"all_to_all: x has shape (3,): {SHARED}"),
    ("a2a one of two", lambda c: c.all_to_all(zeros(), send_counts=[4, 4]), ValueError,
     "send_counts and recv_counts go together: expected both, or neither for equal blocks; pass recv_counts as well"),
    ("a2a other of two", lambda c: c.all_to_all(zeros(), recv_counts=[4, 4]), ValueError,
     "send_counts and recv_counts go together: expected both, or neither for equal blocks; pass send_counts as well"),
    ("a2a length", lambda c: c.all_to_all(zeros(), send_counts=[4, 4, 0], recv_counts=[4, 4]), ValueError,
     "send_counts=[4, 4, 0] has 3 numbers: expected 2, one for each rank"),
    ("a2a recv length", lambda c: c.all_to_all(zeros(), send_counts=[4, 4], recv_counts=[]), ValueError,
     "recv_counts=[] has 0 numbers: expected 2, one for each rank"),
    ("a2a type", lambda c: c.all_to_all(zeros(), send_counts=8, recv_counts=[4, 4]), TypeError,
     "send_counts=8: expected 2 whole numbers, one for each rank"),
    ("a2a floats", lambda c: c.all_to_all(zeros(), send_counts=[4, 4], recv_counts=[4.0, 4]), TypeError,
     "recv_counts=[4.0, 4]: expected 2 whole numbers, one for each rank"),
    ("a2a negative", lambda c: c.all_to_all(zeros(), send_counts=[9, -1], recv_counts=[9, 0]), ValueError,
     "send_counts[1]=-1: expected a number of rows, at least 0"),
    ("a2a sum", lambda c: c.all_to_all(zeros(), send_counts=[4, 3], recv_counts=[4, 4]), ValueError,
     "send_counts=[4, 3] are 7 rows: expected the first dimension of x, which has shape (8,); pass counts that cover "
     "x"),
    ("a2a own", lambda c: c.all_to_all(zeros(), send_counts=[4, 4], recv_counts=[3, 4]), ValueError,
     "send_counts[0]=4 and recv_counts[0]=3 on rank 0: expected equal numbers for what a rank sends to itself; correct "
     "one of them"),
    ("a2a out", lambda c: c.all_to_all(zeros(), send_counts=[4, 4], recv_counts=[4, 1], out=zeros()), ValueError,
     f"out has 8 elements of float32: expected 5 of float32, the sum of recv_counts in rows; {NEW}"),
    ("a2a in place", lambda c: c.all_to_all(ROOM[:8], out=ROOM[:8]), ValueError,
     "x and out overlap: pass disjoint arrays, or out=None for a new one"),
    ("src", lambda c: c.broadcast(zeros(), 2), ValueError, "src=2: expected a rank from 0 to 1"),
    ("src < 0", lambda c: c.broadcast(zeros(), -1), ValueError, "src=-1: expected a rank from 0 to 1"),
    ("src type", lambda c: c.broadcast(zeros(), "0"), ValueError, "src='0': expected a rank from 0 to 1"),
    ("src bool", lambda c: c.broadcast(zeros(), True), ValueError, "src=True: expected a rank from 0 to 1"),
    ("broadcast dtype", lambda c: c.broadcast(np.zeros(3, np.int16)), TypeError,
     f"got an array of int16: expected one of {DTYPES}"),
    ("broadcast read-only", lambda c: c.broadcast(read_only(), 1), ValueError,
     "x is read-only: pass a writable array"),
    ("broadcast repeats", lambda c: c.broadcast(repeated(), 1), ValueError, STORED),
    ("broadcast inf", lambda c: c.broadcast(zeros(), timeout=float("inf")), ValueError, f"timeout=inf: {SECONDS}"),
    ("reduce op", lambda c: c.reduce(zeros(), "mean"), ValueError, f"op='mean': {OPS}"),
    ("reduce dst", lambda c: c.reduce(zeros(), dst=5), ValueError, "dst=5: expected a rank from 0 to 1"),
    ("reduce dst type", lambda c: c.reduce(zeros(), dst=None), ValueError, "dst=None: expected a rank from 0 to 1"),
    ("reduce out elsewhere", lambda c: c.reduce(zeros(), dst=1, out=zeros()), ValueError,
     "out on rank 0: expected out on dst=1 only; pass out=None here"),
    ("reduce out shape", lambda c: c.reduce(zeros(2, 4), out=zeros(8)), ValueError,
     "out has shape (8,): expected (2, 4), as x has; pass such an array"),
    ("reduce overlap", lambda c: c.reduce(ROOM[:50], out=ROOM[49:99]), ValueError,
     "x and out overlap in part: pass the same array or disjoint ones"),
    ("reduce read-only", lambda c: c.reduce(read_only()), ValueError,
     "x is read-only: pass out=, or a writable array"),
    ("gather dst", lambda c: c.gather(zeros(), dst=2), ValueError, "dst=2: expected a rank from 0 to 1"),
    ("gather out elsewhere", lambda c: c.gather(zeros(), dst=1, out=zeros(16)), ValueError,
     "out on rank 0: expected out on dst=1 only; pass out=None here"),
    ("gather out count", lambda c: c.gather(zeros(), out=zeros(17)), ValueError,
     "out has 17 elements of float32: expected 16 of float32, x of each of 2 ranks; pass such an array, or out=None"),
    ("gather overlap", lambda c: c.gather(ROOM[1:9], out=ROOM[:16]), ValueError,
     "x and out overlap: pass disjoint arrays, or out's block 0 as x"),
    ("scatter src", lambda c: c.scatter(zeros(), src="a"), ValueError, "src='a': expected a rank from 0 to 1"),
    ("scatter no x", lambda c: c.scatter(), ValueError, "no x on src=0: expected a block for each of 2 ranks; pass x"),
    ("scatter x elsewhere", lambda c: c.scatter(zeros(), src=1, out=zeros(4)), ValueError,
     "x on rank 0: expected x on src=1 only; pass out= only"),
    ("scatter no out", lambda c: c.scatter(src=1), ValueError,
     "no out on rank 0: only src=1 has x; pass out= for this rank's block"),
    ("scatter out read-only", lambda c: c.scatter(src=1, out=read_only()), ValueError,
     "out is read-only: pass a writable array"),
    ("scatter shape", lambda c: c.scatter(zeros(5)), ValueError, f"scatter: x has shape (5,): {SHARED}"),
    ("scatter out", lambda c: c.scatter(zeros(), out=zeros(3)), ValueError,
     f"out has 3 elements of float32: expected 4 of float32, {BLOCK}"),
    ("scatter overlap", lambda c: c.scatter(ROOM[:8], out=ROOM[1:5]), ValueError,
     "x and out overlap: pass disjoint arrays, or x's block 0 as out"),
    ("barrier timeout", lambda c: c.barrier(timeout=-2.5), ValueError, f"timeout=-2.5: {SECONDS}"),
    ("timeout nan", lambda c: c.barrier(timeout=float("nan")), ValueError, f"timeout=nan: {SECONDS}"),
    ("premul text", lambda c: dcomm.premul_sum("2"), TypeError,
     "premul_sum(factor='2'): expected a number; pass float(factor)"),
    ("premul bool", lambda c: dcomm.premul_sum(True), TypeError,
     "premul_sum(factor=True): expected a number; pass float(factor)"),
    ("premul complex", lambda c: dcomm.premul_sum(1j), TypeError,
     "premul_sum(factor=1j): expected a number; pass float(factor)"),
    ("premul nan", lambda c: dcomm.premul_sum(float("nan")), ValueError,
     "premul_sum(factor=nan): expected a finite number; scale the array itself instead"),
    ("premul inf", lambda c: dcomm.premul_sum(-np.inf), ValueError,
     "premul_sum(factor=-inf): expected a finite number; scale the array itself instead"),
]  # fmt: skip
ROWS = ALL_REDUCE + OTHER


@pytest.mark.parametrize(("call", "kind", "text"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_bad_argument(pair: list[Comm], call: Callable[[Comm], Any], kind: type[Exception], text: str) -> None:
    for _ in range(2):  # the second time the types are known
        with pytest.raises(kind) as caught:
            call(pair[0])
        assert type(caught.value) is kind
        assert str(caught.value) == text
    assert values(pair, lambda comm: comm.all_reduce(np.ones(2)).tolist(), timeout=20) == [[2.0, 2.0]] * 2


class FakeCudaTensor:
    """What dcomm looks at in a tensor, of one in device memory."""

    def __init__(self) -> None:
        torch = pytest.importorskip("torch")
        self.dtype, self.layout, self.shape = torch.float32, torch.strided, (8,)
        self.is_cpu, self.device = False, torch.device("cuda", 0)

    def data_ptr(self) -> int:
        return 4096

    def numel(self) -> int:
        return 8

    def is_contiguous(self) -> bool:
        return True

    def is_neg(self) -> bool:
        return False

    is_conj = is_neg


def test_cuda_arrays_where_only_cpu_arrays_are_served(pair: list[Comm]) -> None:
    comm, x = pair[0], FakeCudaTensor()
    with pytest.raises(dcomm.CudaError) as caught:
        comm.register(x)
    text = "got a CUDA array: register serves CPU arrays only so far; move it with .cpu()"
    assert str(caught.value) == f"{text} (see docs/errors.md#cudaerror)"
    with pytest.raises(ValueError, match="x and out are on different devices: put both on one"):
        comm.all_gather(tensor(4), out=x)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"op": dcomm.premul_sum(2)}, "premul_sum is for CPU arrays: scale the CUDA array first, and use op='sum'"),
        ({"out": tensor()}, "x and out are on different devices: put both on one"),
        ({"stream": "main"}, "stream='main': expected an integer handle, a torch.cuda.Stream or a cupy.cuda.Stream"),
    ]
    for kwargs, text in refused:
        with pytest.raises((ValueError, TypeError)) as caught:
            comm.all_reduce(x, **kwargs)
        assert str(caught.value) == text
    assert values(pair, lambda comm: comm.all_reduce(np.ones(2)).tolist(), timeout=20) == [[2.0, 2.0]] * 2


def test_an_unfit_operation_of_torch() -> None:
    torch = pytest.importorskip("torch")
    comm = dcomm.init_threads(1)[0]
    for op in (torch.distributed.ReduceOp.PREMUL_SUM, torch.float32, torch.sum):
        with pytest.raises(ValueError, match=r"or dcomm.premul_sum\(factor\)"):
            comm.all_reduce(zeros(), op)


@pytest.mark.parametrize("algo", ["ring", "tree"])
def test_a_deterministic_communicator_refuses_orders_that_depend_on_the_index(algo: str) -> None:
    text = (
        f"algo='{algo}' on a deterministic communicator: its order of summation depends on where in the array an "
        "element lies; use 'auto', 'two_shot', 'one_shot' or 'direct', or make the communicator with "
        "deterministic=False"
    )
    comms = dcomm.init_threads(2, deterministic=True)
    assert comms[0].deterministic
    for x in (zeros(), zeros(4, 2).T):
        with pytest.raises(ValueError, match="deterministic") as caught:
            comms[0].all_reduce(x, algo=algo)
        assert str(caught.value) == text
    for other in ("auto", "two_shot", "one_shot"):
        assert values(comms, lambda comm, other=other: float(comm.all_reduce(np.ones(2), algo=other)[0])) == [2.0] * 2


def test_the_variable_makes_communicators_deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not dcomm.init_threads(1)[0].deterministic
    monkeypatch.setenv("DCOMM_DETERMINISTIC", "1")
    assert dcomm.init_threads(1)[0].deterministic
    assert dcomm.init(rank=0, world_size=1).deterministic
    assert not dcomm.init_threads(1, deterministic=False)[0].deterministic
    monkeypatch.setenv("DCOMM_ALGO", "tree")
    with pytest.raises(ValueError, match="DCOMM_ALGO='tree' on a deterministic communicator: its order of summation"):
        dcomm.init_threads(2)
