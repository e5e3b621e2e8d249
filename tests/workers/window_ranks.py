"""Rank processes of test_window_arrays.py."""

from __future__ import annotations

import gc
import hashlib
import os
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rank_main import error_of, mark

import dcomm


def usage() -> list[int]:
    """Descriptors, and mappings of dcomm's shared memory."""
    descriptors = len(os.listdir("/proc/self/fd"))
    with open("/proc/self/maps", encoding="ascii") as file:
        return [descriptors, sum("memfd:dcomm" in line or "/dev/shm" in line for line in file)]


def extra_mappings(expected: int) -> int:
    """Mappings beyond those expected, once that is settled: a progress thread lets go of its last operation just after
    the waiter is told."""
    deadline = time.monotonic() + 5
    while usage()[1] != expected and time.monotonic() < deadline:
        time.sleep(0.01)
    return usage()[1] - expected


def reduce_everything(rank: int, world_size: int) -> str:
    """A hash of all results; each is that of two_shot on other memory."""
    digest = hashlib.sha256()
    with dcomm.init(rank=rank, world_size=world_size) as comm:
        memory = comm.empty(4_000_000, np.uint8)
        other = comm.empty(4_000_000, np.uint8)
        random = np.random.default_rng(rank)
        for dtype in ("float32", "float16", "float64", "int32", "uint8"):
            for count, offset in ((1, 0), (1000, 8), (70_001, 16), (400_000, 48)):
                for op in ("sum", "max"):
                    data = random.integers(0, 50, count).astype(dtype)
                    x = memory[offset:][: data.nbytes].view(dtype)
                    x[:] = data
                    out = x if op == "sum" else other[: data.nbytes].view(dtype)
                    comm.all_reduce(x, op, out=None if out is x else out, algo="direct")
                    comm.all_reduce(data, op, algo="two_shot")
                    assert out.tobytes() == data.tobytes(), (dtype, count, op)
                    digest.update(out.tobytes())
    return digest.hexdigest()


def allocate_and_drop(rank: int, world_size: int, rounds: int) -> dict[str, Any]:
    with dcomm.init(rank=rank, world_size=world_size) as comm:
        comm.all_reduce(comm.empty(10_000))
        gc.collect()
        before = usage()
        for step in range(rounds):
            x = comm.empty(10_000)
            x[:] = step
            assert comm.all_reduce(x)[-1] == step * world_size
            kept = usage()
            del x
        gc.collect()
        return {"before": before, "kept": kept, "after": usage()}


def fork_child(rank: int, world_size: int) -> dict[str, Any]:
    """A child reads its parent's array, writes to it and drops it."""
    with dcomm.init(rank=rank, world_size=world_size) as comm:
        x = comm.empty(10_000)
        x[:] = 5
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.read(read, 1)
            fine = x[-1] == 6 and usage()[1] == 1  # its parent's array, and nothing of the peers'
            x[0] = 7
            del x
            gc.collect()
            os._exit(0 if fine and usage()[1] == 0 else 1)
        x[:] = 6
        os.write(write, b"x")
        _, status = os.waitpid(child, 0)
        seen = float(x[0])
        x[:] = rank + 1
        return {"child": os.waitstatus_to_exitcode(status), "sum": float(comm.all_reduce(x)[-1]), "seen": seen}


def drop_on_one_rank(rank: int, world_size: int) -> float:
    """The others go on using theirs, alone; a new array at the old address is another one."""
    with dcomm.init(rank=rank, world_size=world_size) as comm:
        for _ in range(10):
            x = comm.empty(100_000)
            x[:] = 1
            comm.all_reduce(x)
            if rank == 1:
                x = np.ones(100_000, np.float32)
                gc.collect()
            comm.barrier()
            x[:] = rank
            assert x[-1] == rank
            assert comm.all_reduce(x, algo="two_shot")[0] == sum(range(world_size))
            comm.barrier()
        return float(x[-1])


def no_memory(rank: int, world_size: int) -> dict[str, Any]:
    with dcomm.init(rank=rank, world_size=world_size) as comm:
        result = error_of(lambda: comm.empty(1 << 46, np.uint8))
        x = comm.empty(10_000)
        x[:] = 1
        return {**result, "sum": float(comm.all_reduce(x)[0])}


def die_in_between(rank: int, world_size: int) -> dict[str, Any]:
    comm = dcomm.init(rank=rank, world_size=world_size)
    x = comm.empty(2_000_000)

    def run() -> None:
        for step in range(100_000):
            comm.all_reduce(x, algo="direct", timeout=20)
            if step == 10:
                mark("running")

    result = error_of(run)
    x[:] = 1  # its memory is its own as before
    return {**result, "readable": float(x.sum()) == x.size}


def shifted(rank: int, count: int, dtype: str = "float32") -> NDArray[Any]:
    """`count` elements whose place in a page is another one on every rank."""
    item_bytes = np.dtype(dtype).itemsize
    memory = np.zeros(count * item_bytes + 8192, np.uint8)
    begin = -memory.ctypes.data % 4096 + 16 * item_bytes * (3 + 5 * rank)
    return memory[begin:][: count * item_bytes].view(dtype)


def register_everything(rank: int, world_size: int) -> dict[str, Any]:
    """Bits as without registration: in place and not, whole and in part, sync and async; and the bytes sent."""
    digest = hashlib.sha256()
    reached = []
    with dcomm.init(rank=rank, world_size=world_size) as comm:
        random = np.random.default_rng(rank)
        for dtype in ("float32", "float16", "int64"):
            for count in (0, 1, 100, 3000, 100_003):
                x, out = shifted(rank, count, dtype), shifted(rank + 1, count, dtype)
                before = random.integers(0, 50, count).astype(dtype)
                x[:] = before
                with comm.register(x) as registered, comm.register(out) as other:
                    assert x.tobytes() == before.tobytes()
                    assert registered.array is x
                    for op in ("sum", "avg", "max")[: 3 if dtype != "int64" else 1]:
                        for part in (slice(None), slice(count // 3, None)):
                            expected = before[part].copy()
                            comm.all_reduce(expected, op, algo="two_shot")
                            x[:] = before
                            comm.all_reduce(x[part], op, out=out[part])
                            assert out[part].tobytes() == expected.tobytes(), (dtype, count, op)
                            assert x.tobytes() == before.tobytes()
                            comm.all_reduce(x[part], op, async_op=True).wait(30)
                            assert x[part].tobytes() == expected.tobytes(), (dtype, count, op)
                            assert x[: part.start].tobytes() == before[: part.start].tobytes() or part.start is None
                    reached.append(registered.reach_bytes)
                    assert other.reach_bytes <= out.nbytes
                    sent = comm.stats()["num_sent_bytes"]
                    comm.all_reduce(x)
                    sent = comm.stats()["num_sent_bytes"] - sent
                    after = x.copy()
                assert registered.closed
                assert registered.array is None
                assert x.tobytes() == after.tobytes()
                digest.update(x.tobytes())
                if count == 100_003:
                    assert sent < 1.3 * x.nbytes * (world_size - 1) / world_size, (sent, x.nbytes)
        comm.barrier()  # lets go of the asynchronous operations
        mappings = extra_mappings(world_size)
    return {"hash": digest.hexdigest(), "reached": reached, "mappings": mappings}


def register_then_free(rank: int, world_size: int) -> dict[str, Any]:
    """What the allocator gets back is private: a peer's later all-reduce does not reach it."""
    with dcomm.init(rank=rank, world_size=world_size) as comm:
        seen = []
        for _ in range(20):
            x = np.full(300_000, 1.0, np.float32)  # its own mapping, or the heap: either is reused
            address = x.ctypes.data
            registration = comm.register(x)
            assert comm.all_reduce(x)[-1] == world_size
            x = np.zeros(1, np.float32)
            gc.collect()
            others = [np.full(300_000, 5.0, np.float32) for _ in range(4)]
            assert all(other.ctypes.data != address for other in others)  # the registration keeps it
            if rank == 1:
                del registration
                gc.collect()
                again = [np.full(300_000, 7.0, np.float32) for _ in range(4)]
                seen.append(any(other.ctypes.data == address for other in again))
                comm.barrier()
                comm.barrier()
                assert all((other == 7).all() for other in again)
            else:
                comm.barrier()
                array = registration.array
                array[:] = 9
                comm.barrier()
                registration.close()
            assert all((other == 5).all() for other in others)
        return {"reused": sum(seen), "mappings": extra_mappings(world_size)}


def register_torch(rank: int, world_size: int) -> dict[str, Any]:
    import torch

    with dcomm.init(rank=rank, world_size=world_size) as comm:
        x = torch.full((100_000,), rank + 1.0, dtype=torch.bfloat16)
        kept = x.data_ptr()
        registration = comm.register(x)
        try:
            x.untyped_storage().resize_(0)
        except RuntimeError as error:
            resize = str(error)
        comm.all_reduce(x)
        total = float(x[-1])
        x.set_(torch.zeros(3, dtype=torch.bfloat16))  # other memory; the registration keeps the old one
        del x
        gc.collect()
        others = [torch.zeros(100_000, dtype=torch.bfloat16) for _ in range(4)]
        fresh = all(other.data_ptr() != kept for other in others)
        registration.close()
        return {"resize": resize, "total": total, "fresh": fresh}


def register_and_fork(rank: int, world_size: int) -> dict[str, Any]:
    """What a child does with the array, and with its memory once it has freed it, stays in the child."""
    with dcomm.init(rank=rank, world_size=world_size) as comm:
        x = np.full(500_000, 3.0, np.float32)
        registration = comm.register(x)
        child = os.fork()
        if child == 0:
            fine = bool((x == 3).all())
            x[:] = 4
            registration.close()
            del registration, x
            gc.collect()
            scratch = [np.full(500_000, 6.0, np.float32) for _ in range(8)]
            fine = fine and all((other == 6).all() for other in scratch)
            grandchild = os.fork()
            if grandchild == 0:
                os._exit(0)
            _, status = os.waitpid(grandchild, 0)
            os._exit(0 if fine and status == 0 else 1)
        _, status = os.waitpid(child, 0)
        unchanged = bool((x == 3).all())
        total = float(comm.all_reduce(x)[0])
        registration.close()
        return {"child": os.waitstatus_to_exitcode(status), "unchanged": unchanged, "sum": total}


def refuse_to_register(rank: int, world_size: int, folder: str) -> dict[str, Any]:
    """Every rank raises where one has memory of another kind, and all go on."""
    with dcomm.init(rank=rank, world_size=world_size) as comm:
        errors = {}

        def note(name: str, x: Any) -> None:
            try:
                comm.register(x)
            except (ValueError, RuntimeError) as error:
                errors[name] = f"{type(error).__name__}: {error}"

        plain = np.zeros(50_000, np.float32)
        mapped = np.memmap(f"{folder}/{rank}", np.float32, "w+", shape=50_000)
        note("file", mapped if rank == 0 else plain)
        note("empty", comm.empty(50_000))
        note("count", np.zeros(50_000 + rank, np.float32))
        with comm.register(plain):
            note("twice", plain)
        plain[:] = 1
        return {"errors": errors, "sum": float(comm.all_reduce(plain)[0])}


def die_registered(rank: int, world_size: int) -> dict[str, Any]:
    comm = dcomm.init(rank=rank, world_size=world_size)
    x = np.zeros(2_000_000, np.float32)
    registration = comm.register(x)

    def run() -> None:
        for step in range(100_000):
            comm.all_reduce(x, timeout=20)
            if step == 10:
                mark("running")

    result = error_of(run)
    x[:] = 2
    registration.close()
    return {**result, "readable": float(x.sum()) == 2 * x.size}


def drop_while_running(rank: int, world_size: int) -> dict[str, Any]:
    """The core alone keeps the memory of an operation: no Python object does here."""
    with dcomm.init(rank=rank, world_size=world_size) as comm:
        before = usage()[1]
        x = comm.empty(100_000)
        x[:] = 1
        comm._core._inject_delay(0.1)
        address = x.ctypes.data
        work = comm._core.collective_async(1, address, address, x.size, 0, -1, 0, 6, 0, 1.0, None, None, 0)
        del x
        kept = usage()[1] - before
        assert work.wait_for(20)
        work.raise_if_failed()
        del work
        deadline = time.monotonic() + 5  # the progress thread lets go of it a moment later
        while usage()[1] != before and time.monotonic() < deadline:
            time.sleep(0.01)
        return {"kept": kept, "left": usage()[1] - before}


def direct_blocks(rank: int, world_size: int) -> str:
    """Each result is that of the slots; arrays lie elsewhere on every rank, and one is dropped before the others'."""
    with dcomm.init(rank=rank, world_size=world_size) as comm:
        memory = comm.empty(2_000_000, np.uint8)
        random = np.random.default_rng(rank)
        for dtype in ("float32", "float16", "float64", "int32"):
            for count in (1, 1000, 20_001):
                given = random.integers(0, 50, world_size * count).astype(dtype)
                x = memory[16 * rank :][: given.nbytes].view(dtype)
                x[:] = given
                expected = comm.reduce_scatter(given, algo="flat")
                assert comm.reduce_scatter(x, algo="direct").tobytes() == expected.tobytes(), (dtype, count)
                expected = comm.all_gather(given, algo="flat")
                assert comm.all_gather(x, algo="direct").tobytes() == expected.tobytes(), (dtype, count)
        if rank == 0:
            del memory, x
            gc.collect()
        given = np.full(50_000, rank, np.float32)
        assert comm.all_gather(given)[-1] == world_size - 1
        comm.barrier()
    return "same"


def die_in_direct_blocks(rank: int, world_size: int) -> dict[str, Any]:
    comm = dcomm.init(rank=rank, world_size=world_size)
    x = comm.empty(300_000)

    def run() -> None:
        for step in range(100_000):
            comm.all_gather(x, algo="direct", timeout=20)
            comm.reduce_scatter(x, timeout=20)
            if step == 10:
                mark("running")

    return error_of(run)


def shared_kb() -> int:
    """Of this process, touched."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssShmem"))


def reserve_and_commit(rank: int, world_size: int) -> dict[str, Any]:
    """Gigabytes of addresses, of which some get memory, on either rank at another time."""
    with dcomm.init(rank=rank, world_size=world_size) as comm:
        mappings = usage()[1]
        before = shared_kb()
        region = comm._core.reserve(4 << 30, 0)
        bytes_of = np.frombuffer(memoryview(region), np.uint8)
        value: dict[str, Any] = {"before_kb": shared_kb() - before}
        place = (rank + 1) << 25
        region.commit(place, place + (64 << 20))
        value["after_kb"] = shared_kb() - before
        x = bytes_of[place + 8192 :][: 4 * 100_000].view(np.float32)
        x[:] = rank + 1
        assert comm.all_gather(x)[-1] == world_size
        assert comm.reduce_scatter(x)[-1] == sum(range(1, world_size + 1))
        comm.all_reduce(x)  # elsewhere on every rank: through the slots
        assert x[-1] == sum(range(1, world_size + 1))
        value["direct"] = comm.stats()["num_direct"]
        try:
            region.commit(0, (4 << 30) + 4096)
        except ValueError as error:
            value["beyond"] = str(error)
        comm.barrier()
        del region, bytes_of, x
        gc.collect()
        value["left"] = extra_mappings(mappings)
    return value
