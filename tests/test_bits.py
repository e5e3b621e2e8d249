"""The same bits: on every rank, for every split of a tensor, window and instruction set, and as decisions 1 to 4 say.

tests/support/reference.py is written from those decisions, without a look at the kernels.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import reference
from numpy.typing import NDArray
from rank_threads import run_threads

import dcomm

WORLD_SIZES = list(range(2, 9))
ALGOS = ["two_shot", "ring"]
COUNT = 3001


def rough(rank: int, count: int = COUNT, seed: int = 0) -> NDArray[np.float32]:
    """float32 values of all magnitudes from subnormal to 1e30, whose sum depends on the order of summation."""
    rng = np.random.default_rng([seed, rank])
    x = rng.standard_normal(count).astype(np.float32)
    some = rng.integers(0, count, count // 8)
    x[some] *= np.float32(10.0) ** rng.integers(-38, 30, some.size).astype(np.float32)
    x[rng.integers(0, count, count // 50)] = 0.0
    x[rng.integers(0, count, count // 50)] = -0.0
    return x


def sha(x: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(x)).hexdigest()


def splits(count: int, seed: int) -> list[slice]:
    cuts = sorted(np.random.default_rng(seed).integers(0, count + 1, 1 + seed % 6).tolist())
    return [slice(begin, end) for begin, end in zip([0, *cuts], [*cuts, count], strict=True)]


def assert_same_bits(x: NDArray[Any], y: NDArray[Any]) -> None:
    unsigned = np.dtype(f"u{x.itemsize}")
    np.testing.assert_array_equal(x.view(unsigned), y.view(unsigned))


def test_the_data_can_tell_orders_apart() -> None:
    terms = [rough(rank) for rank in range(5)]
    sequential = sum(terms[1:], terms[0])
    assert sha(reference.two_shot(terms, "sum")) != sha(sequential)
    assert sha(reference.two_shot(terms, "sum")) != sha(reference.ring(terms, "sum"))


@pytest.mark.parametrize("wire", [None, "float16", "bfloat16"])
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_two_shot_gives_one_sha_for_any_split(world_size: int, wire: str | None) -> None:
    def body(comm: dcomm.Communicator) -> set[str]:
        found = set()
        for op in ("sum", "avg"):
            for seed in range(8):  # 0: whole; 1 to 7: random splits
                x = np.clip(rough(comm.rank), -1e3, 1e3)
                for part in [slice(None)] if seed == 0 else splits(COUNT, seed):
                    comm.all_reduce(x[part], op, algo="two_shot", wire_dtype=wire)
                found.add(f"{op} {sha(x)}")
        return found

    results = run_threads(world_size, body)
    assert len(set.union(*results)) == 2  # one for sum, one for avg


@pytest.mark.parametrize("algo", ALGOS)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_one_sha_for_any_window_and_run(world_size: int, algo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = set()
    for window in ("65536", "300000", "8388608"):
        monkeypatch.setenv("DCOMM_WINDOW_BYTES", window)

        def body(comm: dcomm.Communicator) -> list[str]:
            results = []
            for count in (17, 40_009):
                x = rough(comm.rank, count)
                comm.all_reduce(x, algo=algo)
                results.append(sha(x))
            return results

        found |= {tuple(shas) for shas in run_threads(world_size, body)}
    assert len(found) == 1


@pytest.mark.parametrize("op", ["sum", "avg"])
@pytest.mark.parametrize("wire", [None, "float16", "bfloat16"])
@pytest.mark.parametrize("algo", ALGOS)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_float32_is_the_reference(world_size: int, algo: str, wire: str | None, op: str) -> None:
    limit = np.float32(3e38 if wire is None else 6e4 / world_size)
    inputs = [np.clip(rough(rank), -limit, limit) for rank in range(world_size)]
    for count in (1, 16, 100, COUNT):
        wanted = reference.all_reduce([x[:count] for x in inputs], op, algo, wire)

        def body(comm: dcomm.Communicator, count: int = count) -> NDArray[np.float32]:
            x = inputs[comm.rank][:count].copy()
            return comm.all_reduce(x, op, algo=algo, wire_dtype=wire)  # type: ignore[no-any-return]

        for result in run_threads(world_size, body):
            assert_same_bits(result, wanted)


@pytest.mark.parametrize("op", ["sum", "avg"])
@pytest.mark.parametrize("algo", ALGOS)
@pytest.mark.parametrize("world_size", [2, 3, 5, 8])
def test_other_float_arrays_are_the_reference(world_size: int, algo: str, op: str) -> None:
    wide = [rough(rank).astype(np.float64) * np.pi for rank in range(world_size)]
    half = [reference.to_float16(np.clip(rough(rank), -7e3, 7e3)) for rank in range(world_size)]

    def body(comm: dcomm.Communicator) -> tuple[NDArray[Any], NDArray[Any]]:
        first = wide[comm.rank].copy()
        second = half[comm.rank].astype(np.float16)
        comm.all_reduce(first, op, algo=algo)
        comm.all_reduce(second, op, algo=algo)
        return first, second

    if algo == "ring":
        wanted_half = reference.ring(half, op, "float16")
    else:
        wanted_half = reference.two_shot(half, op, dtype="float16")
    for result_wide, result_half in run_threads(world_size, body):
        assert_same_bits(result_wide, reference.all_reduce(wide, op, algo))
        assert_same_bits(result_half, wanted_half.astype(np.float16))


@pytest.mark.parametrize("op", ["sum", "avg"])
@pytest.mark.parametrize("algo", ALGOS)
@pytest.mark.parametrize("world_size", [2, 3, 5, 8])
def test_bfloat16_arrays_are_the_reference(world_size: int, algo: str, op: str) -> None:
    torch = pytest.importorskip("torch")
    inputs = [reference.to_bfloat16(rough(rank)) for rank in range(world_size)]

    def body(comm: dcomm.Communicator) -> NDArray[np.float32]:
        x = torch.from_numpy(inputs[comm.rank].copy()).to(torch.bfloat16)
        comm.all_reduce(x, op, algo=algo)
        return x.float().numpy()  # type: ignore[no-any-return]

    if algo == "ring":
        wanted = reference.ring(inputs, op, "bfloat16")
    else:
        wanted = reference.two_shot(inputs, op, dtype="bfloat16")
    for result in run_threads(world_size, body):
        assert_same_bits(result, wanted)


def supported_isas(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found = []
    for isa in ("scalar", "avx2", "avx512"):
        monkeypatch.setenv("DCOMM_ISA", isa)
        try:
            comm = dcomm.init_threads(1)[0]
        except ValueError:
            continue
        assert comm._core.isa == isa
        comm.close()
        found.append(isa)
    monkeypatch.delenv("DCOMM_ISA")
    return found


@pytest.mark.parametrize("wire", [None, "float16", "bfloat16"])
@pytest.mark.parametrize("algo", ALGOS)
def test_every_instruction_set_gives_the_same_bits(
    algo: str, wire: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    isas = supported_isas(monkeypatch)
    assert "scalar" in isas
    found = {}
    for isa in isas:
        monkeypatch.setenv("DCOMM_ISA", isa)

        def body(comm: dcomm.Communicator) -> str:
            x = rough(comm.rank)
            x[::97] = np.nan
            x[1::101] = np.inf if comm.rank else -np.inf
            comm.all_reduce(x, "avg", algo=algo, wire_dtype=wire)
            return sha(x)

        found[isa] = set(run_threads(5, body))
    print(f"instruction sets compared: {', '.join(isas)}")
    assert len(set.union(*found.values())) == 1, found


@pytest.mark.parametrize("algo", ALGOS)
def test_nan_and_infinity_reach_every_rank_as_one_bit_pattern(algo: str) -> None:
    odd_nan = np.array([0xFFC12345], np.uint32).view(np.float32)[0]

    def body(comm: dcomm.Communicator) -> NDArray[np.float32]:
        x = np.ones(100, np.float32)
        if comm.rank == comm.world_size - 1:
            x[[3, 99]] = odd_nan
            x[5] = np.inf
        x[7] = np.inf if comm.rank else -np.inf
        return comm.all_reduce(x, algo=algo)  # type: ignore[no-any-return]

    for world_size in (2, 3, 8):
        for x in run_threads(world_size, body):
            bits = x.view(np.uint32)
            assert [hex(bits[i]) for i in (3, 99, 7)] == ["0x7fc00000"] * 3
            assert x[5] == np.inf
            assert (np.delete(x, [3, 5, 7, 99]) == world_size).all()
