"""Rank processes of test_cuda_window_processes.py: arrays of comm.empty(device="cuda") on an emulated GPU in each."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from emulated_gpu import EmulatedGpu
from emulated_process import IPC, VMM, emulated, open_descriptors
from numpy.typing import NDArray
from rank_main import error_of, mark

import dcomm

COUNT = 3001
DTYPES: tuple[Any, ...] = (np.float32, np.float16, ml_dtypes.bfloat16)


def numbers(rank: int, dtype: Any, count: int = COUNT) -> NDArray[Any]:
    return (np.random.default_rng([rank, count]).standard_normal(count) * 10).astype(dtype)


def settle(gpu: EmulatedGpu, comm: dcomm.Communicator) -> None:
    comm._core.synchronize_cuda(0)
    gpu.streams[0].synchronize()


def bits(rank: int, world_size: int, library: str, **emulation: Any) -> int:
    """In place, into another such array, into any array: the bits of CPU arrays. What is left at the end."""
    with emulated(library, rank, world_size, **emulation) as (gpu, comm):
        first = comm.empty(10, device="cuda")  # before anything else of the GPU was used
        del first
        for dtype in DTYPES:
            memory = comm.empty(COUNT + 64, dtype, device="cuda")
            other = comm.empty(COUNT + 64, dtype, device="cuda")
            for turn, op in enumerate(("sum", "avg", "sum", "sum")):
                expected = numbers(rank, dtype)
                x = memory[turn : turn + COUNT]
                gpu.memory_of(x)[:] = expected
                own = gpu.put(np.zeros(COUNT, dtype))
                out: Any = (x, other[16 : 16 + COUNT], own, own)[turn]
                before = gpu.num_direct
                comm.all_reduce(x, op, out=out, algo="auto" if turn == 3 else "direct")
                settle(gpu, comm)
                assert gpu.num_direct - before == (turn != 3)
                result = own.host.view(dtype) if turn > 1 else gpu.memory_of(out)
                if turn > 0:
                    assert gpu.memory_of(x).tobytes() == expected.tobytes()
                comm.all_reduce(expected, op, algo="two_shot")
                assert result.tobytes() == expected.tobytes(), (dtype, turn)
            del x, out, memory, other
        large = comm.empty(200_000, device="cuda")
        before, plain = gpu.num_direct, gpu.array(np.zeros(200_000, np.float32))
        comm.all_reduce(large)
        comm.all_reduce(large, out=plain)
        comm.all_reduce(plain, out=large)
        settle(gpu, comm)
        assert gpu.num_direct - before == {1: 0, 2: 2}.get(world_size, 1)
        comm.barrier()
    del large
    return int(gpu.library.emulated_num_alive())


def loans(rank: int, world_size: int, library: str, turns: int) -> int:
    """Each rank fills its array, reduces it and reads the result at its own pace, many times."""
    random = np.random.default_rng(rank)
    with emulated(library, rank, world_size) as (gpu, comm):
        x, out = comm.empty(COUNT, device="cuda"), gpu.array(np.zeros(COUNT, np.float32))
        memory = gpu.memory_of(x)
        for turn in range(turns):
            if random.random() < 0.5:
                time.sleep(random.random() * 0.01)
            memory[:] = (turn + 1) * (rank + 1)
            comm.all_reduce(x, out=x if turn % 2 else out, algo="direct")
            settle(gpu, comm)
            result = memory if turn % 2 else out.host
            assert (result == (turn + 1) * world_size * (world_size + 1) // 2).all(), turn
            if turn % 2 == 0:
                assert (memory == (turn + 1) * (rank + 1)).all()
        comm.barrier()
    return turns


def disagree(rank: int, world_size: int, library: str, name: str) -> dict[str, Any]:
    """Rank 1 means other memory: all raise, and nothing of it was touched."""
    with emulated(library, rank, world_size) as (gpu, comm):
        x, y = comm.empty(1000, device="cuda"), comm.empty(1000, device="cuda")
        gpu.memory_of(x)[:] = rank + 1
        gpu.memory_of(y)[:] = rank + 1
        for _ in range(3):
            comm.all_reduce(gpu.array(np.ones(10, np.float32)))
        odd = rank == 1
        own = gpu.array(np.zeros(900, np.float32))
        calls: dict[str, Callable[[], Any]] = {
            "part": lambda: comm.all_reduce(x[4:904] if odd else x[:900], algo="direct"),
            "array": lambda: comm.all_reduce(y if odd else x, algo="direct"),
            "out": lambda: comm.all_reduce(x[:900], out=own if odd else y[:900], algo="direct"),
            "algo": lambda: comm.all_reduce(x, algo="two_shot" if odd else "direct"),
            "collective": lambda: comm.broadcast(x, src=1) if odd else comm.all_reduce(x, algo="direct"),
        }

        def go_on() -> None:
            calls[name]()
            time.sleep(0.3)
            comm._core.synchronize_cuda(0)

        error = error_of(go_on)
        assert (gpu.memory_of(y) == rank + 1).all()
        if name not in ("algo", "collective"):
            assert (gpu.memory_of(x) == rank + 1).all()
        return error


def making_fails(rank: int, world_size: int, library: str, num_calls: int, keeps: bool) -> list[dict[str, Any]]:
    """On rank 1 each call of the driver fails in turn. All raise; nothing is left behind; at last it works."""
    errors = []
    with emulated(library, rank, world_size) as (gpu, comm):
        comm.all_reduce(gpu.array(np.ones(10, np.float32)))  # the communicator's own windows
        settle(gpu, comm)
        alive, descriptors = gpu.library.emulated_num_alive(), open_descriptors()
        for call in range(num_calls):
            if rank == 1:
                gpu.library.emulated_process(VMM | IPC, -1, call)
            errors.append(error_of(lambda: comm.empty(1000, device="cuda")))
            assert keeps or gpu.library.emulated_num_alive() == alive, errors[-1]
            assert keeps or open_descriptors() == descriptors, errors[-1]
        gpu.library.emulated_process(VMM | IPC, -1, -1)
        x = comm.empty(1000, device="cuda")
        gpu.memory_of(x)[:] = 1
        comm.all_reduce(x, algo="direct")
        settle(gpu, comm)
        assert (gpu.memory_of(x) == world_size).all()
        comm.barrier()
    return errors


def drops(rank: int, world_size: int, library: str) -> list[int]:
    """Rank 0 lets go of its array as soon as it has launched; the others, who come late, still find it all there."""
    left = []
    with emulated(library, rank, world_size) as (gpu, comm):
        comm.all_reduce(gpu.array(np.ones(10, np.float32)))
        settle(gpu, comm)
        for _turn in range(3):
            alive = gpu.library.emulated_num_alive()
            x, out = comm.empty(COUNT, device="cuda"), gpu.array(np.zeros(COUNT, np.float32))
            gpu.memory_of(x)[:] = rank + 1
            comm.barrier()
            if rank > 0:
                time.sleep(0.3)
            comm.all_reduce(x, out=out, algo="direct")
            del x  # waits for the kernel
            assert (out.host == world_size * (world_size + 1) // 2).all()
            left.append(gpu.library.emulated_num_alive() - alive)
            comm.barrier()
    return left


def killed(rank: int, world_size: int, library: str) -> dict[str, Any]:
    """Rank 1 is killed while the others wait for its array; theirs stay usable and can be dropped."""
    with emulated(library, rank, world_size) as (gpu, comm):
        x = comm.empty(COUNT, device="cuda")
        gpu.memory_of(x)[:] = 5
        comm.barrier()
        mark("ready")
        if rank == 1:
            time.sleep(60)

        def wait() -> None:
            comm.all_reduce(x, algo="direct", timeout=30)
            comm._core.synchronize_cuda(30_000_000_000)

        error = error_of(wait)
        assert (gpu.memory_of(x) == 5).all()
        return error


def forks(rank: int, world_size: int, library: str) -> int:
    """A forked child that drops its copy leaves the parent's memory alone."""
    with emulated(library, rank, world_size) as (gpu, comm):
        x = comm.empty(COUNT, device="cuda")
        child = os.fork()
        if child == 0:
            del x
            os._exit(0)
        _, status = os.waitpid(child, 0)
        gpu.memory_of(x)[:] = 1
        comm.all_reduce(x, algo="direct")
        settle(gpu, comm)
        assert (gpu.memory_of(x) == world_size).all()
        comm.barrier()
        return status
