"""Rank processes of test_cuda_processes.py: CUDA arrays on an emulated GPU in each process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from emulated_gpu import EmulatedGpu
from emulated_process import IPC, VMM, emulated, numbers, open_descriptors
from numpy.typing import NDArray
from rank_main import error_of, mark

import dcomm


def sum_of(world_size: int, count: int) -> NDArray[Any]:
    return np.sum([numbers(rank, count) for rank in range(world_size)], axis=0, dtype=np.float32)


def collectives(rank: int, world_size: int, library: str, **emulation: Any) -> int:
    """Each collective of CUDA arrays against the same one of CPU arrays, and back to back."""
    n = world_size
    with emulated(library, rank, n, **emulation) as (gpu, comm):

        def both(call: Callable[[Any, Any], Any], x: NDArray[Any], out: NDArray[Any]) -> None:
            mine, theirs, result = x.copy(), x.copy(), out.copy()
            call(theirs, out)
            call(gpu.array(mine), gpu.array(result))
            comm._core.synchronize_cuda(0)
            gpu.streams[0].synchronize()
            assert (result == out).all(), (result, out)

        for turn, count in enumerate((1, 300, 5000)):
            x, blocks, root = numbers(rank, count), numbers(rank, count * n), turn % n
            for algo in ("auto", "ring", "two_shot", "tree", "one_shot"):
                both(lambda x, out, algo=algo: comm.all_reduce(x, out=out, algo=algo), x, np.empty_like(x))
            for dtype in ("int8", "int64", "bool"):
                integers = (97 * blocks.astype(np.int64)).astype(dtype)
                for algo in ("auto", "ring"):
                    both(
                        lambda x, out, algo=algo: comm.all_reduce(x, out=out, algo=algo),
                        integers,
                        np.empty_like(integers),
                    )
                both(lambda x, out: comm.reduce_scatter(x, out=out), integers, np.empty(count, dtype))
            both(lambda x, out: comm.all_gather(x, out=out), x, np.empty_like(blocks))
            both(lambda x, out: comm.reduce_scatter(x, out=out), blocks, np.empty_like(x))
            both(lambda x, out: comm.all_to_all(x, out=out), blocks, np.empty_like(blocks))
            y = x.copy()
            comm.broadcast(gpu.array(y), src=root)
            comm._core.synchronize_cuda(0)
            gpu.streams[0].synchronize()
            assert (y == numbers(root, count)).all()
        many = [numbers(rank, 100) for _ in range(30)]
        for y in many:
            comm.all_reduce(gpu.array(y))
        comm._core.synchronize_cuda(0)
        gpu.streams[0].synchronize()
        for y in many:
            assert (y == sum_of(n, 100)).all()
        part = comm.split(color=rank % 2)
        assert part is not None
        y = numbers(rank, 50)
        part.all_reduce(gpu.array(y))
        part._core.synchronize_cuda(0)
        gpu.streams[0].synchronize()
        assert (y == np.sum([numbers(r, 50) for r in range(rank % 2, n, 2)], axis=0)).all()
        part.close()
        comm.barrier()
    return int(gpu.library.emulated_num_alive())


def cannot(rank: int, world_size: int, library: str, kinds: list[int]) -> dict[str, Any]:
    """No kind of window that all have; CPU arrays are still served."""
    with emulated(library, rank, world_size, kinds=kinds[rank]) as (gpu, comm):
        x = np.ones(10, np.float32)
        error = error_of(lambda: comm.all_reduce(gpu.array(x)))
        assert (comm.all_reduce(x) == world_size).all()
        return error


def driver_fails(rank: int, world_size: int, library: str, num_calls: int, keeps: bool) -> list[dict[str, Any]]:
    """On rank 1 each call of the driver fails in turn. All raise; nothing is left behind; at last it works.

    keeps: windows that others may have open stay until the process ends.
    """
    errors = []
    device = EmulatedGpu(Path(library))
    device.library.emulated_process(VMM | IPC, -1, -1)
    with device.in_use(), dcomm.init(rank=rank, world_size=world_size) as comm:
        before = open_descriptors()
        for call in range(num_calls):
            if rank == 1:
                device.library.emulated_process(VMM | IPC, -1, call)
            errors.append(error_of(lambda: comm.all_reduce(device.array(np.ones(10, np.float32)))))
            assert keeps or device.library.emulated_num_alive() == 0, errors[-1]
            assert keeps or open_descriptors() == before, errors[-1]
        if rank == 1:
            device.library.emulated_process(VMM | IPC, -1, -1)
        x = np.ones(10, np.float32)
        comm.all_reduce(device.array(x))
        comm._core.synchronize_cuda(0)
        assert (x == world_size).all()
        comm.barrier()
    assert keeps or device.library.emulated_num_alive() == 0
    return errors


def mismatch(rank: int, world_size: int, library: str, name: str) -> dict[str, Any]:
    """Rank 1 makes another call than the others, who then go on to the next."""
    with emulated(library, rank, world_size) as (gpu, comm):
        for _ in range(5):
            comm.all_reduce(gpu.array(numbers(rank, 200)))
        x, out = gpu.array(np.ones(120, np.float32)), gpu.array(np.ones(120, np.float32))
        odd = rank == 1
        calls: dict[str, Callable[[], Any]] = {
            "count": lambda: comm.all_reduce(gpu.array(np.ones(90 if odd else 120, np.float32))),
            "op": lambda: comm.all_reduce(x, op="avg" if odd else "sum"),
            "dtype": lambda: comm.broadcast(gpu.array(np.ones(60 if odd else 120, np.int64 if odd else np.int32))),
            "wire": lambda: comm.all_reduce(x, wire_dtype="float16" if odd else None),
            "algo": lambda: comm.all_reduce(x, algo="ring" if odd else "two_shot"),
            "src": lambda: comm.broadcast(x, src=1 if odd else 0),
            "collective": lambda: (
                comm.reduce_scatter(x, out=gpu.array(np.ones(120 // world_size, np.float32)))
                if odd
                else comm.all_reduce(x, out=out)
            ),
        }

        def go_on() -> None:
            calls[name]()
            time.sleep(0.3)
            comm.all_reduce(gpu.array(np.ones(10, np.float32)))
            comm._core.synchronize_cuda(0)

        return error_of(go_on)


def missing(rank: int, world_size: int, library: str) -> dict[str, Any]:
    """Rank 1 does not call. Then a new communicator works."""
    with emulated(library, rank, world_size) as (gpu, comm):
        comm.all_reduce(gpu.array(np.ones(10, np.float32)))
        comm._core.synchronize_cuda(0)
        error: dict[str, Any] = {}
        if rank != 1:

            def wait() -> None:
                comm.all_reduce(gpu.array(np.ones(10, np.float32)), timeout=0.5)
                comm._core.synchronize_cuda(0)

            error = error_of(wait)
        else:
            time.sleep(3)
    with dcomm.init(rank=rank, world_size=world_size) as comm, gpu.in_use():
        x = np.ones(10, np.float32)
        comm.all_reduce(gpu.array(x))
        comm._core.synchronize_cuda(0)
        assert (x == world_size).all()
        comm.barrier()
    return error


def ends(rank: int, world_size: int, library: str, how: str) -> dict[str, Any]:
    """Rank 1 is killed, aborts or closes while the others wait for it on the GPU."""
    with emulated(library, rank, world_size) as (gpu, comm):
        comm.all_reduce(gpu.array(np.ones(10, np.float32)))
        comm._core.synchronize_cuda(0)
        if rank == 1:
            mark("ready")
            time.sleep(0.5 if how != "killed" else 60)
            if how == "abort":
                comm.abort()
                time.sleep(0.5)
            return {"at_ns": time.monotonic_ns()}

        def wait() -> None:
            comm.all_reduce(gpu.array(np.ones(10, np.float32)), timeout=30)
            mark("ready")
            comm._core.synchronize_cuda(30_000_000_000)

        return error_of(wait)


def leaves_at_once(rank: int, world_size: int, library: str, turns: int) -> int:
    """Ranks close as soon as they have launched their part: no other rank's operation fails."""
    for turn in range(turns):
        with emulated(library, rank, world_size) as (gpu, comm):
            arrays = [numbers(rank, 700) for _ in range(2)]
            for y in arrays:
                comm.all_reduce(gpu.array(y), algo=("two_shot", "ring", "one_shot")[turn % 3])
            if rank == turn % world_size:
                time.sleep(0.02)
            else:
                comm._core.synchronize_cuda(0)
        gpu.streams[0].synchronize()
        for y in arrays:
            assert (y == sum_of(world_size, 700)).all()
    return turns


def forks(rank: int, world_size: int, library: str) -> str:
    """A forked child raises, and its end does not concern the parent's GPU."""
    with emulated(library, rank, world_size) as (gpu, comm):
        comm.all_reduce(gpu.array(np.ones(10, np.float32)))
        comm._core.synchronize_cuda(0)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                comm.all_reduce(gpu.array(np.ones(10, np.float32)))
            except dcomm.DcommError as error:
                os.write(write, type(error).__name__.encode())
            comm.close()
            os._exit(0)
        os.waitpid(child, 0)
        x = np.ones(10, np.float32)
        comm.all_reduce(gpu.array(x))
        comm._core.synchronize_cuda(0)
        assert (x == world_size).all()
        comm.barrier()
        return os.read(read, 100).decode()


def works(rank: int, world_size: int, library: str) -> str:
    """Asynchronous operations on two streams; arrays and handles dropped at once; the end of the communicator."""
    with emulated(library, rank, world_size) as (gpu, comm):
        streams = [gpu.stream(), gpu.stream()]
        outs = [np.zeros(700, np.float32) for _ in range(60)]
        placed = [gpu.array(out) for out in outs]
        for turn, out in enumerate(placed):
            release = gpu.hold(streams[turn % 2]) if turn % 20 == rank else None
            x = gpu.array(numbers(rank, 700) + np.float32(turn))
            work = comm.all_reduce(x, out=out, stream=streams[turn % 2], async_op=True)
            del x
            np.full(700, -1e6, np.float32)  # would take the memory
            work.wait(stream=streams[1 - turn % 2])
            if release is not None:
                release()
        assert work.synchronize(30) is placed[-1]
        assert work.done()
        for turn, out in enumerate(outs):
            assert (out == sum_of(world_size, 700) + np.float32(turn * world_size)).all(), turn
        y = numbers(rank, 900)
        work = comm.all_reduce(gpu.array(y), async_op=True)
    assert work.done()  # closing has waited
    assert (y == sum_of(world_size, 900)).all()
    return "ok"


def graphs(rank: int, world_size: int, library: str, turns: int) -> int:
    """Each rank captures a graph; replays between other calls, in the same order on all ranks. Wrong elements."""
    with emulated(library, rank, world_size) as (gpu, comm):
        x, y = np.zeros(300, np.float32), np.zeros(300, np.float32)
        placed = gpu.array(x), gpu.array(y)
        stream = gpu.stream()
        comm.all_reduce(placed[0], stream=stream)  # makes the windows
        with stream.capture() as graph:
            comm.all_reduce(placed[0], out=placed[1], stream=stream, async_op=True).wait(stream=stream)
            comm.all_reduce(placed[1], "avg", stream=stream)
        wrong = 0
        for turn in range(turns):
            stream.copy(x, numbers(rank, 300) + np.float32(turn))
            graph.replay(stream)
            if turn % 3 == 0:
                comm.all_reduce(placed[1], "avg", stream=stream, async_op=True).wait(stream=stream)
            stream.synchronize()
            wrong += int((y != sum_of(world_size, 300) + np.float32(turn * world_size)).sum())
        comm.barrier()
    return wrong


def work_fails(rank: int, world_size: int, library: str) -> dict[str, Any]:
    """Rank 1 does not call: the Work says so."""
    with emulated(library, rank, world_size) as (gpu, comm):
        comm.all_reduce(gpu.array(np.ones(10, np.float32)), async_op=True).synchronize()
        if rank == 1:
            time.sleep(3)
            return {}
        work = comm.all_reduce(gpu.array(np.ones(10, np.float32)), timeout=0.5, async_op=True)
        return error_of(work.synchronize)
