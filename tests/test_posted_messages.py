"""Queued messages side by side: matching in the order of the calls, receives of any rank, deadlines, storms."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
from message_storm import Storm
from rank_threads import run_threads, thread_outcomes

import dcomm


def one(value: float = 0) -> Any:
    return np.full(1, float(value))


def test_receives_wait_side_by_side() -> None:
    """Of two ranks, and of two tags of one rank: the later receive is served first, and the sender needs it to be."""

    def body(comm: dcomm.Communicator) -> None:
        if comm.rank == 0:
            a, b, c = one(), one(), one()
            of_1 = comm.recv(a, 1, tag=1, async_op=True)
            of_2 = comm.recv(b, 2, async_op=True)
            other_tag = comm.recv(c, 1, tag=2, async_op=True)
            of_2.wait(timeout=30)
            assert not of_1.done()
            comm.send(b, 1, tag=7)  # only now rank 1 begins
            other_tag.wait(timeout=30)
            assert not of_1.done()
            comm.send(c, 1, tag=8)
            of_1.wait(timeout=30)
            assert (a[0], b[0], c[0]) == (1, 2, 3)
        elif comm.rank == 1:
            assert comm.recv(one(), 0, tag=7)[0] == 2
            comm.send(one(3), 0, tag=2)
            assert comm.recv(one(), 0, tag=8)[0] == 3
            comm.send(one(1), 0, tag=1)
        else:
            comm.send(one(2), 0)

    run_threads(3, body)


def test_a_receive_does_not_wait_behind_a_blocked_send() -> None:
    def body(comm: dcomm.Communicator) -> None:
        if comm.rank == 0:
            x = np.ones(4 << 20)
            large: Any = comm.send(x, 1, async_op=True)
            small = one()
            assert comm.recv(small, 2, async_op=True).wait(timeout=30)[0] == 5
            comm.send(small, 2, tag=1)  # nor does a send to another rank
            assert not large.done()
            late.set()
            large.wait(timeout=30)
        elif comm.rank == 1:
            late.wait(30)
            y = np.zeros(4 << 20)
            assert comm.recv(y, 0)[-1] == 1
        else:
            comm.send(one(5), 0)
            assert comm.recv(one(), 0, tag=1)[0] == 5

    late = threading.Event()
    run_threads(3, body)


def test_earlier_receives_come_first() -> None:
    """Receives of a rank and of any rank stand in one line."""
    comms = dcomm.init_threads(3)
    arrays = [one() for _ in range(4)]
    works = [
        comms[0].recv(arrays[0], 2, async_op=True),
        comms[0].recv_any(arrays[1], async_op=True),
        comms[0].recv(arrays[2], 1, async_op=True),
        comms[0].recv_any(arrays[3], async_op=True),
    ]
    comms[1].send(one(1), 0)
    assert works[1].wait(timeout=30) == 1
    comms[1].send(one(2), 0)
    works[2].wait(timeout=30)
    assert not works[0].done()
    comms[2].send(one(3), 0)
    works[0].wait(timeout=30)
    assert not works[3].done()
    comms[2].send(one(4), 0)
    assert works[3].wait(timeout=30) == 2
    assert [array[0] for array in arrays] == [3, 1, 2, 4]


def test_a_synchronous_message_beside_queued_ones() -> None:
    comms = dcomm.init_threads(3)
    a, b = one(), one()
    first = comms[0].recv(a, 1, async_op=True)
    comms[1].send(one(1), 2)  # somebody else's
    comms[2].send(one(2), 0)
    assert comms[0].recv(b, 2, timeout=30)[0] == 2
    comms[0].send(b, 1, timeout=30)
    assert comms[1].recv(one(), 0)[0] == 2
    comms[1].send(one(3), 0)
    comms[1].send(one(4), 0)
    assert comms[0].recv(b, 1)[0] == 4, "the queued receive was first"
    first.wait(timeout=30)
    assert a[0] == 3
    assert comms[2].recv_any(b) == 1


def test_any_source_gives_the_rank() -> None:
    def body(comm: dcomm.Communicator) -> None:
        peers = [peer for peer in range(comm.world_size) if peer != comm.rank]
        for round_number in range(30):
            for peer in peers:
                comm.send(np.array([comm.rank, round_number, peer]), peer, tag=round_number, async_op=True)
            seen = []
            for i in range(len(peers)):
                y = np.zeros(6, np.int64)[::2] if i % 2 else np.zeros(3, np.int64)  # also not contiguous
                if i == 0:
                    source = comm.recv_any(y, tag=round_number)
                else:
                    source = comm.recv_any(y, tag=round_number, async_op=True).wait(timeout=30)
                assert isinstance(source, int)
                assert y.tolist() == [source, round_number, comm.rank]
                seen.append(source)
            assert sorted(seen) == peers
        comm.barrier()

    run_threads(4, body)


def test_no_source_is_passed_over() -> None:
    comms = dcomm.init_threads(4)
    for i in range(50):
        comms[1].send(one(i), 0, async_op=True)
    comms[1].send(one(), 0, tag=1, async_op=True)
    comms[0].recv(one(), 1, tag=1)  # so the 50 before it lie in the stash
    comms[2].send(one(), 0)  # these in slots
    comms[3].send(one(), 0)
    assert [comms[0].recv_any(one()) for _ in range(3)] == [1, 2, 3]
    assert [comms[0].recv_any(one()) for _ in range(10)] == [1] * 10
    comms[3].send(one(), 0)
    assert [comms[0].recv_any(one()) for _ in range(2)] == [3, 1]


def test_another_tag_does_not_disturb_any_source() -> None:
    comms = dcomm.init_threads(3)
    y = one()
    work = comms[0].recv_any(y, tag=5, async_op=True)
    for _ in range(20):
        comms[1].send(np.zeros(3, np.int32), 0, tag=4)  # of another dtype, too
    time.sleep(0.05)
    assert not work.done()
    comms[2].send(one(9), 0, tag=5)
    assert work.wait(timeout=30) == 2
    assert y[0] == 9
    for _ in range(20):
        assert comms[0].recv_any(np.zeros(3, np.int32), tag=4) == 1


def test_every_receive_has_its_own_deadline() -> None:
    """The later one, of another rank, ends first, and with it the communicator, everywhere."""
    comms = dcomm.init_threads(3)
    start = time.monotonic()
    slow = comms[0].recv(one(), 1, async_op=True, timeout=60)
    soon = comms[0].recv(one(), 2, tag=3, async_op=True, timeout=0.3)
    with pytest.raises(dcomm.CollectiveTimeoutError, match=r"recv\(count=1, .*src=2, tag=3\).*no answer from rank 2"):
        soon.wait(timeout=30)
    assert 0.29 < time.monotonic() - start < 10
    with pytest.raises(dcomm.CollectiveTimeoutError):
        slow.wait(timeout=30)
    for comm in comms:
        with pytest.raises(dcomm.CollectiveTimeoutError):
            comm.barrier()


def test_a_send_behind_another_does_not_wait_yet() -> None:
    """Its time begins when the one before it, to the same rank, is through; and what moves is not late."""
    comms = dcomm.init_threads(2)
    large = [np.ones(2 << 20) for _ in range(2)]
    first: Any = comms[0].send(large[0], 1, async_op=True, timeout=30)
    second: Any = comms[0].send(large[1], 1, async_op=True, timeout=1.5)
    time.sleep(2)
    assert not second.done()
    for _ in range(2):
        comms[1].recv(np.zeros(2 << 20), 0)
    first.wait(timeout=30)
    second.wait(timeout=30)


def test_any_source_times_out() -> None:
    def body(comm: dcomm.Communicator) -> None:
        if comm.rank == 0:
            comm.recv_any(one(), tag=6, timeout=0.2)
        comm.barrier(timeout=30)

    errors = thread_outcomes(3, body)
    assert all(isinstance(error, dcomm.CollectiveTimeoutError) for error in errors), errors
    for error in errors:
        assert "no rank sent rank 0 the message that it waited for within 0." in str(error)
    assert "recv_any(count=1, dtype=float64, tag=6) on rank 0 of 3" in str(errors[0])


def test_any_source_and_peers_that_leave() -> None:
    comms = dcomm.init_threads(3)
    comms[1].send(one(1), 0)
    comms[1].close()
    y = one()
    assert comms[0].recv_any(y, timeout=30) == 1  # sent before
    work = comms[0].recv_any(y, async_op=True, timeout=30)
    time.sleep(0.05)
    assert not work.done(), "rank 2 is still there"
    comms[2].send(one(2), 0)
    assert work.wait(timeout=30) == 2
    work = comms[0].recv_any(y, async_op=True, timeout=30)
    comms[2].close()
    with pytest.raises(dcomm.PeerLostError, match=r"recv_any.*rank 2 closed its communicator"):
        work.wait(timeout=30)


def test_any_source_mismatch_names_both_sides() -> None:
    comms = dcomm.init_threads(3)
    comms[2].send(np.zeros(3, np.float32), 0, tag=1)
    with pytest.raises(
        dcomm.MismatchError,
        match="recv_any: rank 2 sent 3 elements of float32 with tag 1 to rank 0, which expects 4 elements of float32",
    ):
        comms[0].recv_any(np.zeros(4, np.float32), tag=1)
    with pytest.raises(dcomm.MismatchError, match="rank 0 received a message of rank 2"):
        comms[1].barrier()


def test_abort_ends_everything_that_is_queued() -> None:
    comms = dcomm.init_threads(3)
    works = [comms[0].recv(one(), 1, async_op=True), comms[0].recv_any(one(), async_op=True)]
    works += [comms[0].send(np.zeros(1 << 20), 2, async_op=True), comms[0].barrier(async_op=True)]
    works += [comms[0].recv_any(one(), async_op=True)]
    time.sleep(0.05)
    start = time.monotonic()
    comms[1].abort()
    for work in works:
        with pytest.raises(dcomm.AbortedError):
            work.wait(timeout=30)
    assert time.monotonic() - start < 5


def test_bad_arguments_of_recv_any() -> None:
    comms = dcomm.init_threads(2)
    frozen = one()
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="x is read-only"):
        comms[0].recv_any(frozen)
    with pytest.raises(ValueError, match="tag=-1"):
        comms[0].recv_any(one(), tag=-1)
    with pytest.raises(TypeError, match="expected"):
        comms[0].recv_any([1.0])
    with pytest.raises(ValueError, match="recv_any: this communicator has one rank"):
        dcomm.init_threads(1)[0].recv_any(one())
    with pytest.raises(ValueError, match="src=-1"):
        comms[0].recv(one(), -1)


def test_empty_messages_of_any_rank() -> None:
    comms = dcomm.init_threads(3)
    comms[2].send(np.zeros(0), 0)
    assert comms[0].recv_any(np.zeros(0)) == 2
    work = comms[0].recv_any(np.zeros((3, 0)), async_op=True)
    comms[1].send(np.zeros(0), 0)
    assert work.wait(timeout=30) == 1


def test_a_collective_waits_for_the_messages_before_it() -> None:
    """And messages behind a collective wait for it."""

    def body(comm: dcomm.Communicator) -> None:
        right, left = (comm.rank + 1) % 3, (comm.rank - 1) % 3
        for _ in range(20):
            x, y = np.full(2000, comm.rank + 1.0), np.zeros(2000)
            works: list[Any] = [comm.recv_any(y, tag=1, async_op=True), comm.send(x, right, tag=1, async_op=True)]
            works.append(comm.all_reduce(y, async_op=True))  # of what was received
            z = np.zeros(2000)
            works += [comm.send(y, right, tag=2, async_op=True), comm.recv(z, left, tag=2, async_op=True)]
            for work in works:
                work.wait(timeout=30)
            assert (y == 6).all()
            assert (z == 6).all()

    run_threads(3, body)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_storm(world_size: int, seed: int) -> None:
    """Random messages, sent and received in random orders, with and without a named source, in flight together."""
    storm = Storm(world_size, seed)
    run_threads(world_size, storm.run, timeout=120)
