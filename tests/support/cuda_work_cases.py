"""What asynchronous operations of CUDA arrays must do: bodies for an emulated GPU and, in tests/gpu, for a real one."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from cuda_cases import Gpu
from rank_threads import values

import dcomm

F32 = np.float32


def total_of(n: int, value: float = 1.0) -> float:
    return sum(value + rank for rank in range(n))


def check_wait(gpu: Gpu, comms: Sequence[dcomm.Communicator]) -> None:
    """The caller's stream goes on beside the operation; whoever waits for the Work sees the result."""
    n, count = len(comms), 5000
    barrier = threading.Barrier(n)

    def body(comm: dcomm.Communicator) -> None:
        ours, late, side = gpu.stream(), gpu.stream(), gpu.stream()
        x, other = gpu.put(np.zeros(count, F32)), gpu.put(np.zeros(8, F32))
        comm.all_reduce(x, stream=ours)  # whatever is made at the first call
        barrier.wait(30)
        release = gpu.hold(late)
        gpu.write(late, x, np.full(count, comm.rank + 1, F32))
        start = time.perf_counter()
        work = comm.all_reduce(x, stream=late, async_op=True)
        assert isinstance(work, dcomm.Work)
        # The operation waits for `late`; `ours`, which does not, has nothing to do with it.
        gpu.write(ours, other, np.full(8, 7, F32))
        assert (gpu.read(ours, other)() == 7).all()
        assert not work.done()
        assert not work.is_completed()
        assert work.exception() is None
        assert work.wait(stream=side) is x  # blocks neither the host nor the GPU
        seen = gpu.read(side, x)
        assert time.perf_counter() - start < 0.3
        time.sleep(0.05)  # a wait that is none sees the old content now
        barrier.wait(30)
        release()
        assert (seen() == total_of(n)).all()
        assert work.synchronize(30) is x
        assert work.done()
        assert work.exception() is None
        assert work.result() is x

    values(comms, body)


def check_call_stream_does_not_wait(gpu: Gpu, comms: Sequence[dcomm.Communicator]) -> None:
    """Two ranks of one operation: one asynchronous, whose stream goes on though another rank's is held; one not."""
    n = len(comms)
    held, launched = threading.Event(), threading.Barrier(n)
    release: list[Any] = []

    def body(comm: dcomm.Communicator) -> None:
        stream = gpu.stream()
        x, other = gpu.put(np.full(600, comm.rank + 1, F32)), gpu.put(np.zeros(8, F32))
        if comm.rank == 0:
            release.append(gpu.hold(stream))
            held.set()
        held.wait(30)
        work = comm.all_reduce(x, stream=stream, async_op=comm.rank != 0)
        launched.wait(30)
        if comm.rank != 0:
            gpu.write(stream, other, np.full(8, 3, F32))
            assert (gpu.read(stream, other)() == 3).all()  # while rank 0's part is not there yet
            assert not work.done()
        launched.wait(30)
        if comm.rank == 0:
            release[0]()
        else:
            work.wait(stream=stream)
        assert (gpu.read(stream, x)() == total_of(n)).all()

    values(comms, body)


def check_two_streams(gpu: Gpu, comms: Sequence[dcomm.Communicator], turns: int = 40) -> None:
    """Operations of one communicator on two streams in turn, held now and then: in call order, and none waits for ever.

    The second stream's input is the first one's result, which it waits for on the GPU alone.
    """
    n = len(comms)
    meet = threading.Barrier(n)

    def body(comm: dcomm.Communicator) -> None:
        first, second = gpu.stream(), gpu.stream()
        x, y = gpu.put(np.zeros(900, F32)), gpu.put(np.zeros(900, F32))
        for turn in range(turns):
            gpu.write(first, x, np.full(900, turn + comm.rank, F32))
            release = gpu.hold(first) if turn % 8 == comm.rank else None
            one = comm.all_reduce(x, out=y, stream=first, async_op=True)
            one.wait(stream=second)
            two = comm.all_reduce(y, "avg", stream=second, async_op=True)
            if release is not None:
                release()
            two.wait(stream=first)
            seen = gpu.read(first, y)
            meet.wait(30)
            assert (seen() == total_of(n, turn)).all(), turn

    values(comms, body)


def check_dropped_at_once(gpu: Gpu, comms: Sequence[dcomm.Communicator], turns: int = 1000) -> None:
    """The caller drops the Work and the input at once, and takes memory of that size again: every sum is right."""
    n, count = len(comms), 2048
    outs = [[gpu.put(np.zeros(count, F32)) for _ in range(20)] for _ in comms]  # more than are ahead of what is read

    def body(comm: dcomm.Communicator) -> None:
        late, readers = gpu.stream(), gpu.stream()
        reads = []
        for turn in range(turns):
            out = outs[comm.rank][turn % 20]
            release = gpu.hold(late) if turn % 100 == 0 else None
            x = gpu.put(np.full(count, turn + comm.rank, F32))
            work = comm.all_reduce(x, out=out, stream=late, async_op=True)
            del x
            for _ in range(3):
                gpu.put(np.full(count, -1e6, F32))  # would take the memory
            if turn % 4 == 3 or release is not None:
                work.wait(stream=readers)
                reads.append((turn, gpu.read(readers, out)))
            del work
            if release is not None:
                release()
            if len(reads) == 4:
                for when, read in reads:
                    assert (read() == total_of(n, when)).all(), when
                reads.clear()
                late.synchronize()
        for when, read in reads:
            assert (read() == total_of(n, when)).all(), when

    values(comms, body)


def check_every_collective(gpu: Gpu, comms: Sequence[dcomm.Communicator]) -> None:
    """async_op of each of them, and of messages and the barrier: the result of wait(), and its content."""
    n, count = len(comms), 300

    def body(comm: dcomm.Communicator) -> None:
        stream, rank = gpu.stream(), comm.rank

        kept = []  # a wait of the call's stream lets go of the arrays: their memory has to last in stream order

        def ones(blocks: int = 1, value: float = 1.0) -> Any:
            kept.append(gpu.put(np.full(blocks * count, value, F32)))
            return kept[-1]

        def finish(work: Any, expected: Any, value: float) -> None:
            assert work.wait(stream=stream) is expected
            if expected is not None:
                assert (gpu.read(stream, expected)() == value).all()

        now: dict[str, Any] = {"async_op": True, "stream": stream}
        x, all_blocks, block = ones(), ones(n), ones()
        finish(comm.all_reduce(x, **now), x, n)
        finish(comm.reduce_scatter(all_blocks, out=block, **now), block, n)
        finish(comm.all_gather(ones(), out=all_blocks, **now), all_blocks, 1)
        finish(comm.all_to_all(all_blocks, out=(got := ones(n, 0)), **now), got, 1)
        finish(comm.broadcast(x := ones(1, rank), src=n - 1, **now), x, n - 1)
        finish(comm.reduce(x := ones(), **now), x if rank == 0 else None, n)
        finish(comm.gather(ones(), out=got if rank == 0 else None, **now), got if rank == 0 else None, 1)
        finish(comm.scatter(got if rank == 0 else None, out=block, **now), block, 1)
        finish(comm.barrier(**now), None, 0)
        if n > 1 and rank < 2:
            x = ones(1, 5 + rank)
            work = comm.send(x, 1, **now) if rank == 0 else comm.recv(x, 0, **now)
            finish(work, x if rank == 1 else None, 5)
        gpu.read(stream, block)()  # `kept` ends with this function, also on a rank that waited for nothing else

    values(comms, body)


def check_no_rank_waits_for_another(gpu: Gpu, comms: Sequence[dcomm.Communicator]) -> None:
    """One thread, no dcomm.group: asynchronous calls return at once; what streams are given later holds up nothing."""
    n = len(comms)
    streams = [gpu.stream() for _ in comms]
    x, y = ([gpu.put(np.full(700, rank + 1, F32)) for rank in range(n)] for _ in range(2))
    works, releases = [], []
    for comm, stream in zip(comms, streams, strict=True):
        rank = comm.rank
        works.append(comm.all_reduce(x[rank], stream=stream, async_op=True))
        works.append(comm.all_reduce(y[rank], "avg", stream=stream, async_op=True))
        if rank < n - 1:
            assert not works[-1].done()
            assert works[-1].exception() is None
        releases.append(gpu.hold(stream))
    for work in works:
        work.synchronize(30)
    for release in releases:
        release()
    for stream, mine in zip(streams, x, strict=True):
        assert (gpu.read(stream, mine)() == total_of(n)).all()
    for stream, mine in zip(streams, y, strict=True):
        assert (gpu.read(stream, mine)() == total_of(n) / n).all()


def check_behind_the_stream_at_the_call(gpu: Gpu, comms: Sequence[dcomm.Communicator]) -> None:
    """Whoever calls first, and whoever launches: each rank's part begins where its stream was at its call."""
    n = len(comms)
    for first in range(n):
        streams = [gpu.stream() for _ in comms]
        x = [gpu.put(np.zeros(700, F32)) for _ in comms]
        releases, works = [], []
        for rank in (*range(first, n), *range(first)):
            releases.append(gpu.hold(streams[rank]))
            gpu.write(streams[rank], x[rank], np.full(700, rank + 1, F32))
            works.append(comms[rank].all_reduce(x[rank], stream=streams[rank], async_op=True))
            gpu.write(streams[rank], gpu.put(np.zeros(8, F32)), np.ones(8, F32))
        reader = gpu.stream()
        for work in works:
            work.wait(stream=reader)
        seen = [gpu.read(reader, mine) for mine in x]
        for release in releases:
            release()
        assert all((read() == total_of(n)).all() for read in seen)


def check_asynchronous_and_synchronous_ranks(gpu: Gpu, comms: Sequence[dcomm.Communicator], turns: int = 30) -> None:
    """Of each operation some ranks' calls return at once and some wait; several may be open; all in call order."""
    n = len(comms)

    def body(comm: dcomm.Communicator) -> None:
        stream = gpu.stream()
        x = [gpu.put(np.full(300, turn + comm.rank, F32)) for turn in range(turns)]
        works = []
        for turn in range(turns):
            is_async = (turn + comm.rank) % 3 != 0
            work = comm.all_reduce(x[turn], stream=stream, async_op=is_async)
            if is_async:
                works.append(work)
        for work in works:
            work.wait(stream=stream)
        for turn in range(turns):
            assert (gpu.read(stream, x[turn])() == total_of(n, turn)).all(), turn

    values(comms, body)


def check_messages_cross(gpu: Gpu, comms: Sequence[dcomm.Communicator]) -> None:
    """Both ranks send first, asynchronously: no dead end."""

    def body(comm: dcomm.Communicator) -> None:
        stream = gpu.stream()
        mine, theirs = gpu.put(np.full(400, comm.rank + 1, F32)), gpu.put(np.zeros(400, F32))
        sent = comm.send(mine, 1 - comm.rank, stream=stream, async_op=True)
        comm.recv(theirs, 1 - comm.rank, stream=stream, async_op=True).wait(stream=stream)
        sent.wait(stream=stream)
        assert (gpu.read(stream, theirs)() == 2 - comm.rank).all()

    values(comms, body)


def check_group_works(gpu: Gpu, comms: Sequence[dcomm.Communicator]) -> None:
    """dcomm.group: a Work may be waited for once the last rank has called; of what was not launched it says so."""
    n = len(comms)
    stream = gpu.stream()
    x = [gpu.put(np.full(500, rank + 1, F32)) for rank in range(n)]
    with dcomm.group(comms):
        works = []
        for comm in comms:
            works.append(comm.all_reduce(x[comm.rank], stream=stream, async_op=True))
            if comm is not comms[-1]:
                assert not works[-1].done()
                with pytest.raises(ValueError, match=r"not launched yet: inside dcomm\.group"):
                    works[-1].wait()
                with pytest.raises(ValueError, match=r"not launched yet: inside dcomm\.group"):
                    works[-1].synchronize()
        works[0].wait(stream=stream)
    for rank, work in enumerate(works):
        assert work.synchronize(30) is x[rank]
        assert (gpu.get(x[rank]) == total_of(n)).all()
    with pytest.raises(dcomm.MismatchError), dcomm.group(comms):
        lost = comms[0].all_reduce(x[0], stream=stream, async_op=True)
    assert lost.done()
    assert isinstance(lost.exception(), dcomm.MismatchError)
    for wait in (lost.wait, lost.synchronize):
        with pytest.raises(dcomm.MismatchError, match=r"was not started: its dcomm\.group ended"):
            wait()
    check_wait(gpu, comms)


def check_deadline_and_await(gpu: Gpu, comms: Sequence[dcomm.Communicator]) -> None:
    """synchronize(timeout) raises while the operation is still running, and it goes on; await leaves the loop free."""
    (comm,) = comms
    stream = gpu.stream()
    x = gpu.put(np.ones(400, F32))
    comm.all_reduce(x, stream=stream)
    release = gpu.hold(stream)
    work = comm.all_reduce(x, stream=stream, async_op=True)
    for wait in (work.synchronize, work.wait):
        with pytest.raises(dcomm.CollectiveTimeoutError, match=r"still running on the GPU.*after 0\.05 s; wait again"):
            wait(0.05)
    with pytest.raises(ValueError, match="timeout=0"):
        work.synchronize(0)

    async def both() -> tuple[Any, int]:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while not work.done():
                turns += 1
                if turns == 3:
                    release()
                await asyncio.sleep(0.001)

        counting = asyncio.create_task(count())
        result = await work
        await counting
        return result, turns

    result, turns = asyncio.run(both())
    assert result is x
    assert turns >= 3
