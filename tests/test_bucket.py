"""Buckets: many arrays as one message, with every option of all_reduce; pack, unpack and the bucket plan."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
from rank_threads import run_threads, thread_outcomes

import dcomm
from dcomm import _core

ROOT = Path(__file__).resolve().parents[1]
COUNTS = [1, 0, 333, 64, 7, 0, 2000, 16, 1]
TOTAL = sum(COUNTS)


def whole_input(rank: int) -> reference.Array:
    return np.random.default_rng([3, rank]).standard_normal(TOTAL).astype(np.float32)


def cut(whole: reference.Array, counts: list[int]) -> list[reference.Array]:
    """Copies of the parts, at odd addresses."""
    parts = []
    for part in np.split(whole, np.cumsum(counts)[:-1]):
        memory = np.zeros(part.size + 1, np.float32)
        parts.append(memory[1:])
        parts[-1][:] = part
    return parts


def joined(bucket: Any) -> reference.Array:
    return np.concatenate([np.asarray(part).reshape(-1) for part in bucket])


@pytest.mark.parametrize("algo", ["two_shot", "ring"])
@pytest.mark.parametrize("wire", [None, "float16", "bfloat16"])
def test_bits_are_those_of_one_array(algo: str, wire: str | None) -> None:
    inputs = [whole_input(rank) for rank in range(3)]
    expected = reference.all_reduce(inputs, "avg", algo, wire)

    def body(comm: dcomm.Communicator) -> list[bytes]:
        # Every rank may cut the message differently.
        counts = COUNTS if comm.rank != 1 else [TOTAL]
        in_place = dcomm.Bucket(cut(inputs[comm.rank], counts))
        assert comm.all_reduce(in_place, "avg", algo=algo, wire_dtype=wire) is in_place
        source, target = dcomm.Bucket(cut(inputs[comm.rank], counts)), dcomm.Bucket(cut(np.zeros(TOTAL), COUNTS[::-1]))
        assert comm.all_reduce(source, "avg", out=target, algo=algo, wire_dtype=wire) is target
        np.testing.assert_array_equal(joined(source), inputs[comm.rank])
        flat = np.zeros(TOTAL, np.float32)
        comm.all_reduce(source, "avg", out=flat, algo=algo, wire_dtype=wire)
        again = dcomm.Bucket(cut(np.zeros(TOTAL), COUNTS))
        comm.all_reduce(inputs[comm.rank].copy(), "avg", out=again, algo=algo, wire_dtype=wire)
        return [joined(result).tobytes() for result in (in_place, target, [flat], again)]

    for results in run_threads(3, body):
        assert results == [expected.tobytes()] * 4


@pytest.mark.parametrize("world_size", [1, 2])
def test_every_algorithm_and_one_rank(world_size: int) -> None:
    def body(comm: dcomm.Communicator) -> list[list[float]]:
        found = []
        for algo in ("auto", "one_shot", "two_shot", "ring", "tree"):
            parts = [np.full(3, comm.rank + 1, np.int64), np.arange(2), np.zeros((0, 4), np.int64)]
            found.append(joined(comm.all_reduce_coalesced(parts, "max", algo=algo)).tolist())
        return found

    assert run_threads(world_size, body) == [[[world_size] * 3 + [0, 1]] * 5] * world_size


def test_thousand_arrays_of_one_element_asynchronously() -> None:
    def body(comm: dcomm.Communicator) -> None:
        arrays = [np.full(1, number + comm.rank, np.float32) for number in range(1000)]
        bucket = dcomm.Bucket(arrays)
        works = [comm.all_reduce(bucket, async_op=True), comm.all_reduce(bucket, "avg", async_op=True, timeout=20)]
        assert [work.wait() for work in works] == [bucket, bucket]
        np.testing.assert_array_equal(joined(arrays), 2 * np.arange(1000) + 1)

    run_threads(2, body)


def test_bucket_keeps_its_arrays() -> None:
    bucket = dcomm.Bucket(np.full(2, number, np.float64) for number in range(3))
    gc.collect()
    assert joined(bucket).tolist() == [0, 0, 1, 1, 2, 2]
    assert (bucket.count, bucket.nbytes, bucket.dtype, len(bucket)) == (6, 48, "float64", 3)
    assert repr(bucket) == "dcomm.Bucket(3 arrays, 6 elements of float64)"
    with pytest.raises(AttributeError):
        bucket.count = 7  # type: ignore[misc]


def test_asynchronous_operation_keeps_the_bucket() -> None:
    def body(comm: dcomm.Communicator) -> bool:
        comm._core._inject_delay(0.05)
        array = np.ones(1000, np.float32)
        kept = weakref.ref(array)
        comm.all_reduce(dcomm.Bucket([array]), async_op=True)
        del array
        gc.collect()
        alive = kept() is not None
        comm.barrier()
        return alive

    assert run_threads(2, body) == [True, True]


def test_only_the_total_must_agree() -> None:
    def body(comm: dcomm.Communicator) -> None:
        comm.all_reduce(dcomm.Bucket([np.zeros(4 + comm.rank, np.float32), np.zeros(4, np.float32)]))

    for error in thread_outcomes(2, body):
        assert isinstance(error, dcomm.MismatchError)
        assert "8" in str(error) and "9" in str(error)

    def mixed(comm: dcomm.Communicator) -> Any:
        if comm.rank == 0:
            return comm.all_reduce(np.ones(5, np.float32)).tolist()
        return joined(comm.all_reduce_coalesced([np.ones(2, np.float32), np.ones(3, np.float32)])).tolist()

    assert run_threads(2, mixed) == [[2.0] * 5] * 2


def test_refusals() -> None:
    comm = dcomm.init_threads(1)[0]
    ones = np.ones(8, np.float32)
    with pytest.raises(ValueError, match=r"array 1 of the bucket is not contiguous.*\.contiguous\(\)"):
        dcomm.Bucket([ones, ones[::2]])
    with pytest.raises(ValueError, match=r"array 2 of the bucket is int32, array 0 float32.*a Bucket for each dtype"):
        dcomm.Bucket([ones, ones.copy(), np.ones(1, np.int32)])
    with pytest.raises(TypeError, match="expected a NumPy array"):
        dcomm.Bucket([ones, 3])
    with pytest.raises(ValueError, match="share memory"):
        comm.all_reduce(dcomm.Bucket([ones, ones[4:]]))
    assert joined([comm.all_reduce(dcomm.Bucket([ones, ones]), out=np.empty(16, np.float32))]).tolist() == [1.0] * 16
    with pytest.raises(ValueError, match="overlap in part"):
        comm.all_reduce(dcomm.Bucket([ones[:4]]), out=dcomm.Bucket([ones[2:6]]))
    with pytest.raises(ValueError, match="out has 7 elements of float32: expected 8 of float32"):
        comm.all_reduce(dcomm.Bucket([ones]), out=np.empty(7, np.float32))
    fixed = np.ones(3, np.float32)
    fixed.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        comm.all_reduce(dcomm.Bucket([fixed]))
    assert comm.all_reduce(dcomm.Bucket([fixed]), out=np.zeros(3, np.float32)).tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="stream"):
        comm.all_reduce(dcomm.Bucket([ones]), stream=0)
    with pytest.raises(ValueError, match="op="):
        comm.all_reduce(dcomm.Bucket([ones]), "mean")
    assert dcomm.Bucket([]).count == 0
    comm.all_reduce(dcomm.Bucket([]))
    comm.close()


def test_pack_and_unpack() -> None:
    values = np.random.default_rng(5).standard_normal(TOTAL).astype(np.float32) * 100
    parts = cut(values, COUNTS)
    half = np.empty(TOTAL, np.float16)
    assert dcomm.pack(parts, half, scale=0.25) is half
    np.testing.assert_array_equal(half, (values * np.float32(0.25)).astype(np.float16))
    bucket = dcomm.Bucket(parts)
    assert dcomm.unpack(half, bucket, scale=3.0) is bucket
    np.testing.assert_array_equal(joined(bucket), half.astype(np.float32) * np.float32(3))
    halves = [np.empty(TOTAL - 5, np.float16), np.empty(5, np.float16)]
    dcomm.unpack(values, halves)
    np.testing.assert_array_equal(joined(halves), values.astype(np.float16))
    with pytest.raises(ValueError, match=f"out has 3 elements: expected {TOTAL}"):
        dcomm.pack(parts, np.empty(3, np.float32))
    with pytest.raises(ValueError, match="float32 to be stored as float64"):
        dcomm.pack(parts, np.empty(TOTAL))
    with pytest.raises(ValueError, match=r"scale=2.*only floats and complex"):
        dcomm.pack([np.ones(3, np.int32)], np.empty(3, np.int32), scale=2)
    with pytest.raises(ValueError, match="share memory"):
        dcomm.pack([values[:5]], values[4:9])
    with pytest.raises(ValueError, match=r"buffer is not contiguous"):
        dcomm.unpack(np.zeros((8, 2), np.float32)[:, 0], [np.zeros(8, np.float32)])


def test_tensors() -> None:
    torch = pytest.importorskip("torch")

    def body(comm: dcomm.Communicator) -> None:
        model = torch.nn.Linear(3, 2)
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, comm.rank + 1)
        gradients = [parameter.grad for parameter in model.parameters()]
        bucket = dcomm.Bucket([*gradients, np.ones(2, np.float32)])
        comm.all_reduce(bucket, "avg", wire_dtype="bf16")
        assert all((gradient == 1.5).all() for gradient in gradients)
        assert dcomm.Bucket(list(model.parameters())).count == 8
        wide = torch.ones(5, dtype=torch.bfloat16)
        comm.all_reduce_coalesced([wide, wide.clone()], "sum")
        assert wide.tolist() == [2.0] * 5

    run_threads(2, body)
    moved = torch.zeros(4)
    bucket = dcomm.Bucket([torch.zeros(1), moved])
    moved.data = torch.ones(4)
    comm = dcomm.init_threads(1)[0]
    with pytest.raises(ValueError, match="tensor 1 of the bucket has other storage"):
        comm.all_reduce(bucket)
    with pytest.raises(ValueError, match=r"\.contiguous\(\)"):
        dcomm.Bucket([torch.zeros(4, 4).t()])
    packed = torch.empty(4, dtype=torch.float16)
    dcomm.pack([torch.ones(3), torch.full((1,), 7.0)], packed, scale=0.5)
    assert packed.tolist() == [0.5, 0.5, 0.5, 3.5]
    comm.close()


def test_plan() -> None:
    counts, dtypes, order = [16, 17, 1, 33, 8], [0, 0, 1, 0, 0], [4, 3, 2, 1, 0]
    plan = _core.plan_buckets(counts, dtypes, order, bucket_bytes=256, first_bucket_bytes=128)
    assert plan == [(0, 16, [(4, 0)]), (0, 48, [(3, 0)]), (1, 32, [(2, 0)]), (0, 48, [(1, 0), (0, 32)])]
    with pytest.raises(ValueError, match="both are at least 1"):
        _core.plan_buckets([1], [0], [0], 0, 1)
    with pytest.raises(ValueError, match="count -1"):
        _core.plan_buckets([-1], [0], [0], 1, 1)
    with pytest.raises(ValueError, match="dtype code 11"):
        _core.plan_buckets([1], [11], [0], 1, 1)
    with pytest.raises(ValueError, match="order names array 0 twice"):
        _core.plan_buckets([1, 1], [0, 0], [0, 0], 1, 1)


def run_benchmark(tmp_path: Path, *arguments: str, corrupt: str = "0") -> tuple[int, dict[str, Any]]:
    target = tmp_path / "bucket.json"
    few = ["--tensors", "12", "--max-seconds", "1", "--calls", "1", "--compare", "none", "--json", str(target)]
    command = [sys.executable, str(ROOT / "benchmarks" / "bucket.py"), *few, *arguments]
    environment = {**os.environ, "DCOMM_BENCH_CORRUPT": corrupt}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert target.exists(), done.stdout + done.stderr
    return done.returncode, json.loads(target.read_text(encoding="utf-8"))


def test_benchmark_checks_every_element(tmp_path: Path) -> None:
    status, found = run_benchmark(tmp_path)
    assert status == 0 and found["num_wrong"] == 0
    assert [row["wire"] for row in found["rows"]] == ["none", "float16"]
    assert all(row["fused"] > 0 and row["over_packed"] > 0 for row in found["rows"])
    status, found = run_benchmark(tmp_path, corrupt="40")
    assert status == 1 and found["num_wrong"] > 0
