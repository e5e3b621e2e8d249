"""comm.empty: arrays that all ranks reach, reduced where they lie; threads and processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rank_processes import WORKERS, Ranks, process_values
from rank_threads import outcomes, run_threads, thread_outcomes

import dcomm

SCRIPT = WORKERS / "window_ranks.py"
COUNT = 5003
FLOATS = ("float32", "float64", "float16", "complex64", "complex128")
INTEGERS = ("int8", "uint8", "int32", "int64", "bool")
OPS = {
    **dict.fromkeys(FLOATS[:3], ("sum", "avg", "prod", "min", "max")),
    **dict.fromkeys(FLOATS[3:], ("sum", "avg")),
    **dict.fromkeys(INTEGERS, ("sum", "prod", "min", "max", "band", "bor", "bxor")),
}


def random_array(rank: int, dtype: str, count: int = COUNT) -> NDArray[Any]:
    random = np.random.default_rng([rank, count, len(dtype)])
    if dtype in INTEGERS:
        return random.integers(0, 2 if dtype == "bool" else 100, count).astype(dtype)
    return (random.standard_normal(count) * 10).astype(dtype)


def same_bits(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return a.tobytes() == b.tobytes()


def sent_bytes(comm: dcomm.Communicator) -> int:
    return int(comm.stats()["num_sent_bytes"])


def direct_bytes(count: int, item_bytes: int, rank: int, world_size: int) -> int:
    """What a rank writes to the others: its chunk, a multiple of 16 elements but for the last ones."""
    chunk = (-(-count // world_size) + 15) // 16 * 16
    return max(0, min(chunk, count - rank * chunk)) * item_bytes * (world_size - 1)


@pytest.mark.parametrize("world_size", [2, 3, 4, 8])
def test_bits_of_two_shot_for_every_dtype_and_op(world_size: int) -> None:
    def body(comm: dcomm.Communicator) -> None:
        memory = comm.empty(4 * COUNT * 16, np.uint8)
        for number, (dtype, ops) in enumerate(OPS.items()):
            item_bytes = np.dtype(dtype).itemsize
            for step, op in enumerate(ops):
                expected = random_array(comm.rank, dtype)
                x = memory[64 * number + item_bytes * step :][: COUNT * item_bytes].view(dtype)
                out = memory[2 * COUNT * 16 :][: COUNT * item_bytes].view(dtype)
                x[:] = expected
                before = sent_bytes(comm)
                if step % 2:
                    assert comm.all_reduce(x, op, out=out, algo="direct") is out
                    assert same_bits(x, expected)
                else:
                    assert comm.all_reduce(x, op, algo="direct") is x
                    out = x
                components = 2 if dtype.startswith("complex") else 1
                sent = direct_bytes(COUNT * components, item_bytes // components, comm.rank, world_size)
                assert sent_bytes(comm) - before == sent
                comm.all_reduce(expected, op, algo="two_shot")
                assert same_bits(out, expected), (dtype, op)

    run_threads(world_size, body)


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16", "int64"])
def test_torch_tensors(name: str) -> None:
    torch = pytest.importorskip("torch")
    dtype = getattr(torch, name)

    def body(comm: dcomm.Communicator) -> None:
        x = comm.empty((3, 1001), dtype)
        assert (x.dtype, x.shape, x.is_contiguous(), bool((x == 0).all())) == (dtype, (3, 1001), True, True)
        x.copy_(torch.arange(3003).reshape(3, 1001) % 11 + comm.rank)
        expected = x.clone()
        comm.all_reduce(x[1:], algo="direct")
        comm.all_reduce(expected[1:], algo="two_shot")
        assert torch.equal(x, expected)
        assert comm.empty((), dtype).shape == ()
        assert comm.empty((0, 4), dtype).shape == (0, 4)

    run_threads(3, body)


def test_shapes_and_zeros() -> None:
    def body(comm: dcomm.Communicator) -> None:
        x = comm.empty((2, 0, 3))
        assert (x.shape, x.dtype) == ((2, 0, 3), np.float32)
        assert comm.all_reduce(x) is x
        assert comm.all_reduce(x, algo="direct") is x
        assert comm.empty((), np.float64).shape == ()
        y = comm.empty(100_000, "int32", timeout=20)
        assert y.ctypes.data % 4096 == 0
        assert y.flags.c_contiguous
        assert not y.any()

    run_threads(2, body)
    (alone,) = dcomm.init_threads(1)
    with alone:
        x = alone.empty(10_000)
        x[:] = 3
        assert alone.all_reduce(x, "avg", algo="direct")[-1] == 3


def test_bad_arguments() -> None:
    (comm,) = dcomm.init_threads(1)
    with comm:
        with pytest.raises(TypeError, match=r"shape='abc': expected an integer"):
            comm.empty("abc")
        with pytest.raises(ValueError, match=r"shape=\(2, -1\): expected dimensions of at least 0"):
            comm.empty((2, -1))
        for dtype in ("float128", "datetime64[s]", object, ">f4", None.__class__):
            with pytest.raises(TypeError, match="expected one of float32, float16, bfloat16"):
                comm.empty(3, dtype)
        with pytest.raises(ValueError, match="timeout=-1"):
            comm.empty(3, timeout=-1)


def test_bfloat16_by_name_needs_a_library_that_has_it() -> None:
    """In a process of its own: ml_dtypes, where it is imported, teaches NumPy the name."""
    script = "import dcomm; dcomm.init_threads(1)[0].empty(3, 'bfloat16')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "NumPy has no bfloat16: pass torch.bfloat16" in done.stderr


def test_auto_takes_direct_where_it_pays_and_only_there() -> None:
    def body(comm: dcomm.Communicator) -> None:
        x, out = comm.empty(100_000), comm.empty(100_000)
        own = np.ones(100_000, np.float32)
        direct = direct_bytes(100_000, 4, comm.rank, 2)

        def sent(call: Any) -> int:
            before = sent_bytes(comm)
            call()
            return sent_bytes(comm) - before

        assert sent(lambda: comm.all_reduce(x)) == direct
        assert sent(lambda: comm.all_reduce(x, "avg", out=out, timeout=20)) == direct
        assert sent(lambda: comm.all_reduce(x, async_op=True).wait()) == direct
        assert sent(lambda: comm.all_reduce(own)) == 2 * direct
        assert sent(lambda: comm.all_reduce(x, out=own)) == 2 * direct
        assert sent(lambda: comm.all_reduce(own, out=x)) == 2 * direct
        assert sent(lambda: comm.all_reduce(x, "avg", wire_dtype="fp16")) == direct  # two_shot, in half of the bytes
        assert sent(lambda: comm.all_reduce(x, algo="two_shot")) == 2 * direct
        assert sent(lambda: comm.all_reduce(x, dcomm.premul_sum(0.5))) == 2 * direct
        assert sent(lambda: comm.all_reduce(x[:512])) == 512 * 4  # one_shot
        assert sent(lambda: comm.all_reduce(x[::2])) == direct  # a copy of it, by two_shot
        child = comm.split(0)
        assert child is not None
        child.all_reduce(x)
        assert child.stats()["num_sent_bytes"] >= 2 * direct  # the array is not the child's
        with pytest.raises(
            ValueError, match=r"memory that the other ranks do not reach.*make the array with comm\.empty"
        ):
            child.all_reduce(x, algo="direct")
        for call in (
            lambda: comm.all_reduce(own, algo="direct"),
            lambda: comm.all_reduce(x[::2], algo="direct"),
            lambda: comm.all_reduce(x, out=own, algo="direct"),
        ):
            with pytest.raises(ValueError, match="memory that the other ranks do not reach"):
                call()
        with pytest.raises(ValueError, match="algo='direct' with another wire_dtype"):
            comm.all_reduce(x, algo="direct", wire_dtype="fp16")
        with pytest.raises(ValueError, match="algo='direct' with premul_sum"):
            comm.all_reduce(x, dcomm.premul_sum(2), algo="direct")
        comm.barrier()

    run_threads(2, body)


@pytest.mark.parametrize("forced", ["direct", "two_shot"])
def test_environment_override(forced: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCOMM_ALGO", forced)

    def body(comm: dcomm.Communicator) -> None:
        x, own = comm.empty(64), np.ones(100_000, np.float32)
        x[:] = 1
        before = sent_bytes(comm)
        comm.all_reduce(x)
        assert sent_bytes(comm) - before == (1 if forced == "direct" else 2) * 32 * 4  # however small it is
        comm.all_reduce(own)
        assert own[-1] == x[-1] == 2

    run_threads(2, body)


def test_deterministic_communicators_use_it() -> None:
    comms = dcomm.init_threads(2, deterministic=True)

    def body(comm: dcomm.Communicator) -> int:
        x = comm.empty(100_000)
        before = sent_bytes(comm)
        comm.all_reduce(x)
        return sent_bytes(comm) - before

    results = outcomes(comms, body)
    assert results == [direct_bytes(100_000, 4, rank, 2) for rank in range(2)]
    for comm in comms:
        comm.close()


def mismatched(comm: dcomm.Communicator, what: str) -> None:
    x, other = comm.empty(50_000), comm.empty(50_000)
    odd = comm.rank == 1
    if what == "other memory":
        comm.all_reduce(np.zeros(50_000, np.float32) if odd else x, timeout=20)
    elif what == "other array":
        comm.all_reduce(other if odd else x, timeout=20)
    elif what == "other part":
        comm.all_reduce(x[100:40_100] if odd else x[:40_000], timeout=20)
    else:
        comm.all_reduce(x, out=None if odd else other, timeout=20)


@pytest.mark.parametrize(
    ("what", "texts"),
    [
        ("other memory", ["rank 1 called all_reduce(count=50000", "algo=two_shot", "x=shared array 1"]),
        ("other array", ["x=shared array 1", "x=shared array 2"]),
        ("other part", ["x=shared array 1)", "x=shared array 1 from byte 400 on"]),
        ("other out", ["x=shared array 1, out=shared array 2"]),
    ],
)
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_that_pass_other_memory_all_raise(world_size: int, what: str, texts: list[str]) -> None:
    for error in thread_outcomes(world_size, lambda comm: mismatched(comm, what)):
        assert isinstance(error, dcomm.MismatchError), error
        for text in [*texts, "so every rank must pass the same part of the same one"]:
            assert text in str(error), error


def test_small_messages_may_lie_anywhere() -> None:
    def body(comm: dcomm.Communicator) -> float:
        x = comm.empty(100) if comm.rank == 0 else comm.empty(100).copy()
        x[:] = 1
        return float(comm.all_reduce(x)[-1])

    assert run_threads(3, body) == [3, 3, 3]


def test_different_sizes_raise_on_all_and_leave_the_communicator_usable() -> None:
    def body(comm: dcomm.Communicator) -> float:
        with pytest.raises(
            dcomm.MismatchError, match=r"rank 0 has an array of 40 bytes, rank 2 one of 80.*still usable"
        ):
            comm.empty(20 if comm.rank == 2 else 10)
        x = comm.empty(10_000)
        x[:] = comm.rank
        return float(comm.all_reduce(x, algo="direct")[-1])

    assert run_threads(3, body) == [3, 3, 3]


def test_operation_keeps_a_dropped_array() -> None:
    def body(comm: dcomm.Communicator) -> None:
        for step in range(20):
            x = comm.empty(200_000)
            x[:] = comm.rank + step
            work = comm.all_reduce(x, async_op=True)
            del x
            if step % 2:
                work = None
            if work is not None:
                assert work.wait(30)[-1] == 1 + 2 * step
        comm.barrier()

    run_threads(2, body)


def test_arrays_outlive_their_communicator() -> None:
    def body(comm: dcomm.Communicator) -> NDArray[Any]:
        x: NDArray[Any] = comm.empty(5000)
        x[:] = comm.rank + 1
        comm.all_reduce(x)
        comm.close()
        with pytest.raises(dcomm.AbortedError):
            comm.empty(3)
        return x

    for x in run_threads(2, body):
        assert (x == 3).all()
        x += 1


@pytest.mark.parametrize("world_size", [2, 3, 4, 8])
def test_processes(world_size: int) -> None:
    values = process_values(world_size, SCRIPT, "reduce_everything")
    assert len({str(value) for value in values}) == 1


@pytest.mark.parametrize("env", [{}, {"DCOMM_FORCE_SHM": "1"}])
def test_processes_free_what_is_dropped(env: dict[str, str]) -> None:
    for value in process_values(2, SCRIPT, "allocate_and_drop", {"rounds": 100}, env=env):
        assert value["before"] == value["after"], value
        assert value["kept"] == [value["before"][0], value["before"][1] + 2], value
    assert not [name for name in os.listdir("/dev/shm") if "dcomm" in name]


def test_processes_fork() -> None:
    for value in process_values(2, SCRIPT, "fork_child"):
        assert value == {"child": 0, "sum": 3.0, "seen": 7.0}


def test_processes_drop_on_one_rank() -> None:
    assert process_values(3, SCRIPT, "drop_on_one_rank") == [3.0, 3.0, 3.0]


def test_processes_drop_while_an_operation_runs() -> None:
    assert process_values(2, SCRIPT, "drop_while_running") == [{"kept": 2, "left": 0}] * 2


def test_processes_memory_runs_out() -> None:
    for value in process_values(2, SCRIPT, "no_memory"):
        assert value["error"] == "SharedMemoryError", value
        assert value["sum"] == 2


@pytest.mark.parametrize("function", ["die_in_between", "die_registered"])
def test_rank_dies_during_direct(function: str) -> None:
    with Ranks(3, SCRIPT, function) as ranks:
        for rank in range(3):
            ranks.wait_for_mark(rank, "running")
        ranks.send(1, signal.SIGKILL)
        for result in ranks.finish(40):
            if result.rank == 1:
                continue
            assert result.returncode == 0, result
            assert result.value["error"] == "PeerLostError", result
            assert "rank 1" in result.value["text"]
            assert result.value["readable"], result


@pytest.mark.parametrize(("world_size", "env"), [(2, {}), (3, {}), (2, {"DCOMM_FORCE_SHM": "1"})])
def test_registered_arrays(world_size: int, env: dict[str, str]) -> None:
    values = process_values(world_size, SCRIPT, "register_everything", env=env)
    assert all(value == values[0] for value in values), values
    assert values[0]["mappings"] == 0
    reached = values[0]["reached"]
    assert reached[:3] == [0, 0, 0]  # no whole page: registered, and staged as ever
    assert 4 * 100_003 - 3 * 4096 <= reached[4] <= 4 * 100_003


def test_memory_of_a_registered_array_is_never_reused_while_shared() -> None:
    values = process_values(2, SCRIPT, "register_then_free")
    assert [value["mappings"] for value in values] == [0, 0]
    assert values[1]["reused"] > 0  # or the test would show nothing


def test_registered_tensor_keeps_its_memory() -> None:
    pytest.importorskip("torch")
    for value in process_values(2, SCRIPT, "register_torch"):
        assert "not resizable" in value["resize"]
        assert (value["total"], value["fresh"]) == (3.0, True)


def test_fork_of_a_registered_array() -> None:
    for value in process_values(2, SCRIPT, "register_and_fork"):
        assert value == {"child": 0, "unchanged": True, "sum": 6.0}


def test_what_cannot_be_registered(tmp_path: Path) -> None:
    values = process_values(2, SCRIPT, "refuse_to_register", {"folder": str(tmp_path)})
    for rank, value in enumerate(values):
        assert value["sum"] == 2
        errors = value["errors"]
        assert "rank 1 one of 200004" in errors["count"]
        assert "MismatchError" in errors["count"]
        for name in ("empty", "twice"):
            assert (
                "ValueError: register: the array's memory is shared with other processes, or registered" in errors[name]
            )
        wanted = ["mapped from a file", "rank 0 refused its array; its own error says why"][rank]
        assert wanted in errors["file"] or "shared with other processes" in errors["file"]


def test_registered_arrays_of_threads_take_the_ordinary_way() -> None:
    def body(comm: dcomm.Communicator) -> None:
        x = np.full(100_000, 1.0, np.float32)
        with comm.register(x) as registration:
            assert registration.reach_bytes == 0
            assert comm.all_reduce(x)[-1] == 2
            with pytest.raises(dcomm.MismatchError, match="still usable"):
                comm.register(np.zeros(10 + comm.rank))
        for bad, text in ((x[::2], "x is not contiguous"), (np.broadcast_to(x, (2, 100_000)), "x is")):
            with pytest.raises(ValueError, match=text):
                comm.register(bad)

    run_threads(2, body)
