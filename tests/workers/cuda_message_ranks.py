"""Rank processes of test_cuda_process_messages.py: send and recv of CUDA arrays on an emulated GPU in each process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from cuda_cases import MOVE_DTYPES, data
from emulated_gpu import EmulatedGpu
from emulated_process import emulated, numbers
from numpy.typing import NDArray
from rank_main import error_of, mark

import dcomm

SLOTS_BYTES = 2 * 4096  # of a pair: as test_cuda_process_messages.py sets channels and slots


def finish(gpu: EmulatedGpu, comm: dcomm.Communicator) -> None:
    comm._core.synchronize_cuda(0)
    gpu.streams[0].synchronize()


def open_all(gpu: EmulatedGpu, comm: dcomm.Communicator) -> None:
    """The first call of CUDA arrays is one of all ranks."""
    comm.all_reduce(gpu.array(np.ones(4, np.float32)))
    finish(gpu, comm)


def exchange_all(rank: int, world_size: int, library: str) -> int:
    """Between all pairs, of every dtype and many lengths, with collectives in between; the last ones queue up."""
    n = world_size
    with emulated(library, rank, n) as (gpu, comm):
        open_all(gpu, comm)
        kept = []  # until it is sent
        for turn, dtype in enumerate(MOVE_DTYPES):
            count = (0, 1, 7, 1000, 9001)[turn % 5]
            for source in range(n):
                for target in range(n):
                    sent = data(source * n + target, count, dtype)
                    if rank == source != target:
                        comm.send(gpu._wrap(sent), target, tag=turn)
                        kept.append(sent)
                    elif rank == target != source:
                        got = np.ones_like(sent)
                        buffer = gpu._wrap(got)
                        assert comm.recv(buffer, source, tag=turn) is buffer
                        finish(gpu, comm)
                        assert got.tobytes() == sent.tobytes(), (dtype, count)
            x = numbers(rank, 100)
            comm.all_reduce(gpu.array(x))
            finish(gpu, comm)
            assert (x == np.sum([numbers(r, 100) for r in range(n)], axis=0)).all()
        # Nobody waits on the host: 30 messages to the next rank are under way.
        right, left = (rank + 1) % n, (rank - 1) % n
        outgoing = [numbers(rank + i, 300 + i) for i in range(30)]
        incoming = [np.zeros_like(x) for x in outgoing]
        for mine, theirs in zip(outgoing, incoming, strict=True):
            for act in ("send", "recv") if rank % 2 == 0 else ("recv", "send"):
                if act == "send":
                    comm.send(gpu.array(mine), right)
                else:
                    comm.recv(gpu.array(theirs), left)
        finish(gpu, comm)
        for i, theirs in enumerate(incoming):
            assert (theirs == numbers(left + i, 300 + i)).all()
        comm.barrier()
    return int(gpu.library.emulated_num_alive())


def beside_collectives(rank: int, world_size: int, library: str) -> float:
    """Rank 1 takes rank 0's message late; ranks 2 and 3 go on with collectives of their own meanwhile."""
    with emulated(library, rank, world_size) as (gpu, comm):
        open_all(gpu, comm)
        part = comm.split(color=rank // 2)
        assert part is not None
        open_all(gpu, part)
        comm.barrier()
        start = time.monotonic()
        x = numbers(0, 20_000)
        if rank == 0:
            comm.send(gpu.array(x), 1)
        elif rank == 1:
            time.sleep(1.5)
            x[:] = 0
            comm.recv(gpu.array(x), 0)
        else:
            for _ in range(10):
                y = numbers(rank, 500)
                part.all_reduce(gpu.array(y))
                finish(gpu, part)
                assert (y == numbers(2, 500) + numbers(3, 500)).all()
        finish(gpu, comm)
        seconds = time.monotonic() - start
        assert (x == numbers(0, 20_000)).all()
        comm.barrier()
        part.close()
    return seconds


def differ(rank: int, world_size: int, library: str, name: str, count: int) -> dict[str, Any]:
    """Rank 0 sends what rank 1 does not expect; then all go on to a collective."""
    with emulated(library, rank, world_size) as (gpu, comm):
        open_all(gpu, comm)
        comm.barrier()
        right = numbers(0, 10)
        changed = np.ones(count + (name == "count"), np.int32 if name == "dtype" else np.float32)
        sent = np.ones(count, np.float32)
        for _ in range(3):  # messages that are right come first
            if rank == 0:
                comm.send(gpu.array(right), 1)
            elif rank == 1:
                comm.recv(gpu.array(right), 0)

        def go_on() -> None:
            if rank == 0:
                comm.send(gpu.array(sent), 1, tag=4)
            elif rank == 1:
                comm.recv(gpu.array(changed), 0, tag=5 if name == "tag" else 4)
            time.sleep(0.3)
            comm.all_reduce(gpu.array(np.ones(10, np.float32)))
            comm._core.synchronize_cuda(0)

        return error_of(go_on)


def both_first(rank: int, world_size: int, library: str, call: str, count: int) -> dict[str, Any]:
    """Ranks 0 and 1 both call send (or recv) first: floats that fit the slots, or not."""
    with emulated(library, rank, world_size) as (gpu, comm):
        open_all(gpu, comm)
        mine, theirs = numbers(rank, count), np.zeros(count, np.float32)

        def exchange() -> None:
            peer = 1 - rank
            send: Callable[[], Any] = lambda: comm.send(gpu.array(mine), peer, timeout=1)  # noqa: E731
            recv: Callable[[], Any] = lambda: comm.recv(gpu.array(theirs), peer, timeout=1)  # noqa: E731
            for each in (send, recv) if call == "send" else (recv, send):
                each()
            comm._core.synchronize_cuda(0)

        error = error_of(exchange)
        if error["error"] is None:
            assert (theirs == numbers(1 - rank, count)).all()
            comm.barrier()
        return error


def alone(rank: int, world_size: int, library: str, call: str) -> dict[str, Any]:
    """Rank 0 sends to (or receives from) rank 1, which never calls."""
    with emulated(library, rank, world_size) as (gpu, comm):
        open_all(gpu, comm)
        if rank != 0:
            time.sleep(3)
            return {}

        def wait() -> None:
            x = gpu.array(np.ones(SLOTS_BYTES, np.float32))
            if call == "send":
                comm.send(x, 1, tag=3, timeout=0.5)
            else:
                comm.recv(x, 1, tag=3, timeout=0.5)
            comm._core.synchronize_cuda(0)

        return error_of(wait)


def ends(rank: int, world_size: int, library: str, how: str) -> dict[str, Any]:
    """Rank 1 is killed, aborts or closes while rank 0 waits in a message for it."""
    with emulated(library, rank, world_size) as (gpu, comm):
        open_all(gpu, comm)
        if rank == 1:
            mark("ready")
            time.sleep(0.5 if how != "killed" else 60)
            if how == "abort":
                comm.abort()
                time.sleep(0.5)
            return {"at_ns": time.monotonic_ns()}

        def wait() -> None:
            comm.recv(gpu.array(np.ones(10, np.float32)), 1, timeout=30)
            mark("ready")
            comm._core.synchronize_cuda(30_000_000_000)

        return error_of(wait)


def leaves_at_once(rank: int, world_size: int, library: str, turns: int) -> int:
    """Ranks close as soon as they have launched their side; what fits the slots is received after its sender left."""
    for turn in range(turns):
        count = (500, 20_000)[turn // 2 % 2]
        x: NDArray[Any] = numbers(0, count) if rank == 0 else np.zeros(count, np.float32)
        with emulated(library, rank, world_size) as (gpu, comm):
            open_all(gpu, comm)
            if rank == 0:
                comm.send(gpu.array(x), 1)
            elif rank == 1:
                if turn % 2 == 0:
                    time.sleep(0.05)
                comm.recv(gpu.array(x), 0)
        gpu.streams[0].synchronize()
        assert rank > 1 or (x == numbers(0, count)).all()
    return turns


def bad_peers(rank: int, world_size: int, library: str) -> list[str]:
    """No other rank: refused, and the communicator goes on."""
    found = []
    with emulated(library, rank, world_size) as (gpu, comm):
        open_all(gpu, comm)
        for peer in (rank, world_size):
            for call in (comm.send, comm.recv):
                try:
                    call(gpu.array(np.ones(3, np.float32)), peer)
                except ValueError as error:
                    found.append(str(error))
        open_all(gpu, comm)
        comm.barrier()
    return found
