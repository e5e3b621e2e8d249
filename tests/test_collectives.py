"""Every collective but all_reduce: results, shapes, libraries, layouts, in place, asynchronous; and stats()."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rank_processes import WORKERS, process_values
from rank_threads import run_threads

import dcomm

WORLD_SIZES = [1, 2, 3, 4, 5, 8]
LIBRARIES = ["numpy", "torch"]
Convert = Callable[[NDArray[Any]], Any]


def converter(library: str) -> Convert:
    if library == "numpy":
        return lambda array: array
    torch = pytest.importorskip("torch")
    return torch.from_numpy  # type: ignore[no-any-return]


def data(rank: int, *shape: int) -> NDArray[np.float64]:
    return np.random.default_rng([rank, *shape]).integers(-50, 50, shape).astype(np.float64)


def call(comm: dcomm.Communicator, name: str, async_op: bool, *args: Any, **kwargs: Any) -> Any:
    result = getattr(comm, name)(*args, async_op=async_op, **kwargs)
    return result.wait(timeout=30) if async_op else result


@pytest.mark.parametrize("async_op", [False, True])
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("n", WORLD_SIZES)
def test_results_and_new_arrays(n: int, library: str, async_op: bool) -> None:
    convert = converter(library)

    def body(comm: dcomm.Communicator) -> None:
        rank = comm.rank
        for block in ((0,), (1,), (7,), (3, 5), (2000, 3)):
            whole = (n * block[0], *block[1:])
            total = sum(data(peer, *whole) for peer in range(n))
            x = convert(data(rank, *whole))
            got = call(comm, "reduce_scatter", async_op, x)
            assert type(got) is type(x)
            assert tuple(got.shape) == block
            np.testing.assert_array_equal(got, total[rank * block[0] : (rank + 1) * block[0]])
            np.testing.assert_array_equal(x, data(rank, *whole))

            x = convert(data(rank, *block))
            everything = np.concatenate([data(peer, *block) for peer in range(n)])
            got = call(comm, "all_gather", async_op, x)
            assert type(got) is type(x)
            np.testing.assert_array_equal(got, everything)
            for root in {0, n - 1}:
                got = call(comm, "gather", async_op, x, dst=root)
                assert (got is None) == (rank != root)
                if rank == root:
                    np.testing.assert_array_equal(got, everything)
                if rank == root:
                    got = call(comm, "scatter", async_op, convert(data(n, *whole)), src=root)
                else:
                    out = convert(np.empty(block))
                    got = call(comm, "scatter", async_op, src=root, out=out)
                    assert got is out
                np.testing.assert_array_equal(got, data(n, *whole)[rank * block[0] : (rank + 1) * block[0]])
                y = convert(data(rank, *block))
                got = call(comm, "reduce", async_op, y, dst=root)
                assert got is (y if rank == root else None)
                wanted = sum(data(peer, *block) for peer in range(n)) if rank == root else data(rank, *block)
                np.testing.assert_array_equal(y, wanted)
                y = convert(data(rank, *block))
                assert call(comm, "broadcast", async_op, y, np.int64(root)) is y
                np.testing.assert_array_equal(y, data(root, *block))

            got = call(comm, "all_to_all", async_op, convert(data(rank, *whole)))
            mine = slice(rank * block[0], (rank + 1) * block[0])
            np.testing.assert_array_equal(got, np.concatenate([data(peer, *whole)[mine] for peer in range(n)]))

    run_threads(n, body)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_all_to_all_with_counts(n: int, library: str) -> None:
    convert = converter(library)

    def body(comm: dcomm.Communicator) -> None:
        for seed in range(12):
            rng = np.random.default_rng(seed)
            counts = rng.integers(0, (3, 40, 30_000)[seed % 3], (n, n)) * rng.integers(0, 2, (n, n))
            sent = [
                [data(100 * source + target, counts[source, target], 2) for target in range(n)] for source in range(n)
            ]
            x = convert(np.concatenate(sent[comm.rank]))
            send, recv = counts[comm.rank].tolist(), counts[:, comm.rank].tolist()
            wanted = np.concatenate([sent[source][comm.rank] for source in range(n)])
            got = comm.all_to_all(x, send_counts=send, recv_counts=recv)
            np.testing.assert_array_equal(got, wanted)
            out = convert(np.empty((sum(recv), 4)))[:, ::2]
            assert comm.all_to_all(x, send_counts=send, recv_counts=tuple(recv), out=out) is out
            np.testing.assert_array_equal(out, wanted)

    run_threads(n, body)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("n", [1, 2, 4])
def test_own_block_in_place_and_stacked_shapes(n: int, library: str) -> None:
    convert = converter(library)

    def body(comm: dcomm.Communicator) -> None:
        rank = comm.rank
        rows = slice(1000 * rank, 1000 * (rank + 1))
        room = convert(np.zeros(1000 * n))
        room[rows] = rank + 1.0
        comm.all_gather(room[rows], out=room)
        np.testing.assert_array_equal(room, np.repeat(np.arange(n) + 1.0, 1000))
        comm.reduce_scatter(room, out=room[rows])
        assert (np.asarray(room[rows]) == n * (rank + 1)).all()
        if rank == 0:
            comm.gather(room[rows], out=room)
            assert np.asarray(room).reshape(n, 1000)[:, 0].tolist() == [n * (r + 1) for r in range(n)]
            comm.scatter(room, out=room[rows])
        else:
            comm.gather(room[rows])
            comm.scatter(out=room[rows])
        assert (np.asarray(room[rows]) == n * (rank + 1)).all()
        stacked = comm.all_gather(convert(np.full((2, 3), rank)), out=convert(np.zeros((n, 2, 3), int)))
        assert np.asarray(stacked)[:, 1, 2].tolist() == list(range(n))
        row = comm.reduce_scatter(convert(np.ones((n, 5))), out=convert(np.zeros(5)))
        assert np.asarray(row).tolist() == [n] * 5
        scalar = comm.all_gather(convert(np.array(float(rank))))
        assert np.asarray(scalar).tolist() == list(range(n))

    run_threads(n, body)


@pytest.mark.parametrize("async_op", [False, True])
@pytest.mark.parametrize("library", LIBRARIES)
def test_strided_arrays_in_and_out(library: str, async_op: bool) -> None:
    convert = converter(library)

    def strided(array: NDArray[Any]) -> Any:
        room = convert(np.full((2 * array.shape[1], array.shape[0]), 99.0))
        view = room[::2].T
        view[...] = convert(array)
        return view

    def body(comm: dcomm.Communicator) -> None:
        n, rank = comm.world_size, comm.rank
        x = strided(data(rank, 2 * n, 3))
        total = sum(data(peer, 2 * n, 3) for peer in range(n))
        mine = slice(2 * rank, 2 * rank + 2)
        out = strided(np.zeros((2, 3)))
        assert call(comm, "reduce_scatter", async_op, x, out=out) is out
        np.testing.assert_array_equal(out, total[mine])
        out = strided(np.zeros((2 * n * n, 3)))
        assert call(comm, "all_gather", async_op, x, out=out) is out
        np.testing.assert_array_equal(out, np.concatenate([data(peer, 2 * n, 3) for peer in range(n)]))
        out = strided(np.zeros((2 * n, 3)))
        call(comm, "all_to_all", async_op, x, out=out)
        np.testing.assert_array_equal(out, np.concatenate([data(peer, 2 * n, 3)[mine] for peer in range(n)]))
        kept = convert(data(rank, 2 * n, 3))
        np.testing.assert_array_equal(x, kept)
        got = call(comm, "reduce", async_op, x, "max", dst=1)
        if rank == 1:
            assert got is x
            np.testing.assert_array_equal(x, np.max([data(peer, 2 * n, 3) for peer in range(n)], axis=0))
        else:
            np.testing.assert_array_equal(x, kept)

    run_threads(3, body)


@pytest.mark.parametrize("dtype", ["float16", "int8", "uint8", "bool", "int64", "complex64", "complex128"])
def test_moves_keep_every_bit(dtype: str) -> None:
    def body(comm: dcomm.Communicator) -> None:
        def noise(rank: int) -> NDArray[Any]:
            raw = np.random.default_rng(rank).integers(0, 256, 240 * np.dtype(dtype).itemsize, np.uint8)
            return (raw % 2 == 1) if dtype == "bool" else raw.view(dtype)

        x = noise(comm.rank)
        for got in (comm.all_gather(x), comm.gather(x, dst=1)):
            if got is not None:
                assert got.tobytes() == b"".join(noise(rank).tobytes() for rank in range(3))
        assert comm.all_to_all(x).tobytes() == b"".join(
            noise(rank)[80 * comm.rank : 80 * comm.rank + 80].tobytes() for rank in range(3)
        )

    run_threads(3, body)


def test_bfloat16_of_ml_dtypes_and_torch() -> None:
    torch = pytest.importorskip("torch")
    ml_dtypes = pytest.importorskip("ml_dtypes")

    def body(comm: dcomm.Communicator) -> None:
        x = np.full((4, 2), comm.rank + 1.0).astype(ml_dtypes.bfloat16)
        assert comm.all_reduce(x).astype(float).tolist() == [[3.0, 3.0]] * 4
        got = comm.reduce_scatter(x)
        assert got.dtype == x.dtype
        assert got.astype(float).tolist() == [[6.0, 6.0]] * 2
        y = torch.full((2,), comm.rank + 1.0, dtype=torch.bfloat16)
        assert comm.all_gather(y).tolist() == [1.0, 1.0, 2.0, 2.0]
        assert comm.all_reduce(y, dcomm.premul_sum(0.5)).tolist() == [1.5, 1.5]

    run_threads(2, body)


def test_operations_of_torch_distributed() -> None:
    torch = pytest.importorskip("torch")
    members = torch.distributed.ReduceOp
    named = {
        members.SUM: 9, members.PRODUCT: 18, members.MIN: 3, members.MAX: 6,
        members.BAND: 2, members.BOR: 7, members.BXOR: 5,
    }  # fmt: skip

    def body(comm: dcomm.Communicator) -> None:
        for op, wanted in named.items():
            assert comm.all_reduce(torch.tensor([3 * (comm.rank + 1)]), op).tolist() == [wanted], op
        assert comm.all_reduce(torch.tensor([3.0 * comm.rank]), members.AVG).tolist() == [1.5]

    run_threads(2, body)


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_premul_sum_takes_each_ranks_own_factor(n: int) -> None:
    def body(comm: dcomm.Communicator) -> None:
        op = dcomm.premul_sum(comm.rank - 0.5)
        assert op == dcomm.PremulSum(comm.rank - 0.5)
        wanted = sum(4.0 * (rank - 0.5) for rank in range(n))
        for dtype in ("float32", "float64", "float16"):
            for algo in ("one_shot", "two_shot", "ring", "tree"):
                x = np.full(70, 4, dtype)
                assert (comm.all_reduce(x, op, algo=algo) == wanted).all(), (dtype, algo)
        assert (comm.all_reduce(np.full(70, 4, np.float32), op, wire_dtype="bf16") == wanted).all()
        assert (comm.reduce_scatter(np.full(2 * n, 4.0), op) == wanted).all()
        assert comm.reduce(np.full(2, 4.0), op, dst=n - 1) is None or comm.rank == n - 1

    run_threads(n, body)


def test_lazily_conjugated_and_complex_tensors() -> None:
    torch = pytest.importorskip("torch")

    def body(comm: dcomm.Communicator) -> list[complex]:
        x = torch.tensor([1 + 2j, 3j])
        comm.all_reduce(torch.zeros(1, dtype=x.dtype))  # the type and dtype are known from now on: the short way
        y = x.conj()
        assert y.is_conj()
        comm.all_reduce(y)
        return y.tolist()  # type: ignore[no-any-return]

    assert run_threads(2, body) == [[2 - 4j, -6j]] * 2


def chunk_counts(count: int, num_chunks: int) -> list[int]:
    """As csrc/schedule/partition.h: equal multiples of 16, the last ones take what is left."""
    length = 16 * math.ceil(math.ceil(count / num_chunks) / 16)
    return [max(0, min(length, count - index * length)) for index in range(num_chunks)]


def tree_parent(node: int, n: int) -> int | None:
    """Nodes 1 to n in order: a node's level is its lowest set bit."""
    level = node & -node
    parent = (node ^ level) | (level << 1)
    return (parent if parent <= n else node ^ level) or None


def tree_elements(rank: int, n: int, count: int) -> int:
    """What a rank of the double binary tree sends: each half's sum to its parent, the result to its children."""
    nodes = (rank + 1, n - rank if n % 2 == 0 else rank or n)  # the second tree is mirrored, or turned by one
    parents = [tree_parent(node, n) for node in range(1, n + 1)]
    halves = chunk_counts(count, 2)
    return sum(
        half * ((parents[node - 1] is not None) + parents.count(node)) for node, half in zip(nodes, halves, strict=True)
    )


@pytest.mark.parametrize("wire", [None, "float16"])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8])
def test_sent_bytes_are_the_formulas(n: int, wire: str | None) -> None:
    itemsize = 2 if wire else 4

    def body(comm: dcomm.Communicator) -> None:
        def sent(run: Callable[[], Any]) -> int:
            before = comm.stats()["num_sent_bytes"]
            run()
            return comm.stats()["num_sent_bytes"] - before  # type: ignore[no-any-return]

        rank = comm.rank
        for count in (0, 1, 2, 100, 16 * n, 5000, 100_003):
            x = np.ones(count, np.float32)

            def elements(algo: str, x: Any = x) -> float:
                return sent(lambda: comm.all_reduce(x, algo=algo, wire_dtype=wire)) / itemsize

            chunks = chunk_counts(count, n)
            mine = chunks[rank]
            assert elements("one_shot") == (n - 1) * count
            assert elements("two_shot") == count - mine + (n - 1) * mine
            if n > 1:
                # terms and results of every chunk but one pass through each rank
                assert elements("ring") == 2 * count - chunks[rank] - chunks[(rank + 1) % n]
            assert elements("tree") == (tree_elements(rank, n, count) if n > 1 else 0)
            if count == 16 * n:
                assert elements("ring") * n == elements("two_shot") * n == 2 * (n - 1) * count
            if wire is None:
                block = np.ones(count, np.float32)
                whole = np.ones(n * count, np.float32)
                assert sent(lambda: comm.reduce_scatter(whole)) == 4 * (n - 1) * count  # noqa: B023
                assert sent(lambda: comm.all_gather(block)) == 4 * (n - 1) * count  # noqa: B023
                assert sent(lambda: comm.all_to_all(whole)) == 4 * (n - 1) * count  # noqa: B023
                assert sent(lambda: comm.reduce(block)) == 4 * count * (rank != 0)  # noqa: B023
                assert sent(lambda: comm.gather(block)) == 4 * count * (rank != 0)  # noqa: B023
                out = {} if rank == 0 else {"out": block}
                x_of_root = whole if rank == 0 else None
                wanted = 4 * (n - 1) * count * (rank == 0)
                assert sent(lambda: comm.scatter(x_of_root, **out)) == wanted  # noqa: B023
        assert sent(comm.barrier) == 0

    run_threads(n, body)


def test_operations_and_array_bytes_are_counted() -> None:
    def body(comm: dcomm.Communicator) -> None:
        for name, kwargs in (("reduce_scatter", {}), ("all_gather", {}), ("all_to_all", {}), ("all_reduce", {})):
            before = comm.stats()
            getattr(comm, name)(np.ones(6, np.float64), **kwargs)
            after = comm.stats()
            assert after["num_operations"] - before["num_operations"] == 1
            assert after["num_bytes"] - before["num_bytes"] == (144 if name == "all_gather" else 48), name
        assert sorted(comm.stats()) == ["num_bytes", "num_direct", "num_operations", "num_sent_bytes", "wait_us"]

    run_threads(3, body)


@pytest.mark.parametrize("late", [0, 2])
def test_wait_time_names_the_rank_that_is_late(late: int) -> None:
    def body(comm: dcomm.Communicator) -> dict[int, float]:
        comm.barrier()
        before = comm.stats()["wait_us"]
        assert sorted(before) == [peer for peer in range(3) if peer != comm.rank]
        comm._core._inject_delay(0.05 if comm.rank == late else 0.0)
        for _ in range(4):
            comm.all_reduce(np.ones(10, np.float32), algo="two_shot")
        return {peer: wait - before[peer] for peer, wait in comm.stats()["wait_us"].items()}

    for rank, waits in enumerate(run_threads(3, body)):
        print(rank, waits)
        if rank == late:
            assert max(waits.values()) < 100_000
        else:
            assert 120_000 < waits[late] < 2_000_000
            assert waits[late] > 5 * min(waits.values())


def test_leaving_the_with_block_closes() -> None:
    assert (
        process_values(2, WORKERS / "process_ranks.py", "with_block")
        == [{"sum": 2.0, "inside": False, "after": True}] * 2
    )


def test_deterministic_must_be_the_same_on_all_ranks() -> None:
    args = [{"deterministic": flag} for flag in (True, True, False)]
    start = time.monotonic()
    for value in process_values(3, WORKERS / "process_ranks.py", "init_and_report", args):
        assert value["error"] == "ValueError"
        assert value["text"] == (
            "deterministic differs: rank 0 has True, rank 2 has False; pass the same deterministic= (or "
            "DCOMM_DETERMINISTIC) on all ranks"
        )
    assert time.monotonic() - start < 40


@pytest.mark.parametrize("n", [2, 4])
def test_all_to_all_counts_that_disagree_name_both_numbers(n: int) -> None:
    for rank, value in enumerate(process_values(n, WORKERS / "process_ranks.py", "counts_disagree")):
        assert value["error"] == "MismatchError", (rank, value)
        assert value["seconds"] < 5
        if rank == 0:
            assert "rank 1 sends 14 elements to rank 0, which expects 10: send_counts[0] on rank 1" in value["text"]
            assert "recv_counts[1] on rank 0" in value["text"]
        print(rank, value["text"])
