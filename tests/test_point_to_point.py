"""send and recv among threads: order, tags, no deadlock from order, mismatches, errors."""

from __future__ import annotations

import itertools
import threading
import time
from typing import Any

import numpy as np
import pytest
from rank_threads import outcomes, run_threads, thread_outcomes

import dcomm
from dcomm import arrays


def numbers(count: int, seed: int, dtype: str = "float32") -> Any:
    """Bytes that no copying loop would produce by accident; also NaNs of every kind."""
    nbytes = count * np.dtype(dtype).itemsize
    return np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8).view(dtype)


def same_bytes(a: Any, b: Any) -> bool:
    return bool(np.array_equal(np.ascontiguousarray(a).view(np.uint8), np.ascontiguousarray(b).view(np.uint8)))


@pytest.mark.parametrize("count", [0, 1, 3, 1000, 16_384, 16_385, 1_000_003])
def test_a_message_arrives_bit_for_bit(count: int) -> None:
    def body(comm: dcomm.Communicator) -> None:
        x = numbers(count, 7)
        if comm.rank == 0:
            assert comm.send(x, 1) is None
        else:
            y = np.zeros(count, np.float32)
            assert comm.recv(y, 0) is y
            assert same_bytes(x, y)

    run_threads(2, body)


def test_every_dtype_keeps_its_bits() -> None:
    names = [name for name in arrays.DTYPE_CODES if name not in ("bfloat16", "bool")]

    def body(comm: dcomm.Communicator) -> None:
        for tag, name in enumerate(names):
            x = numbers(1000, tag, name)
            if comm.rank == 0:
                comm.send(x, 1, tag=tag)
            else:
                assert same_bytes(comm.recv(np.zeros(1000, name), 0, tag=tag), x), name

    assert len(names) >= 5
    run_threads(2, body)


def test_torch_tensors_and_strided_arrays() -> None:
    torch = pytest.importorskip("torch")

    def body(comm: dcomm.Communicator) -> None:
        t = torch.arange(24, dtype=torch.bfloat16).reshape(4, 6)
        a = np.arange(24.0).reshape(4, 6)
        if comm.rank == 0:
            comm.send(t, 1)
            comm.send(t.t(), 1, async_op=True)
            comm.send(a[:, ::2], 1, tag=5)
            work = comm.send(a.T, 1, tag=6, async_op=True)
            work.wait()
        else:
            got = torch.zeros(4, 6, dtype=torch.bfloat16)
            assert comm.recv(got, 0) is got
            assert torch.equal(got, t)
            wide = torch.zeros(6, 8, dtype=torch.bfloat16)
            comm.recv(wide[:, ::2], 0)
            assert torch.equal(wide[:, ::2], t.t())
            assert (wide[:, 1::2] == 0).all()
            other = np.zeros((3, 4))
            comm.recv(other.T, 0, tag=5)
            assert (a[:, ::2] == other.T).all()
            work = comm.recv(a, 0, tag=6, async_op=True)  # as many elements, of another shape
            assert work.wait() is a
            assert (a.ravel() == np.arange(24.0).reshape(4, 6).T.ravel()).all()

    run_threads(2, body)


def test_tags_in_any_order() -> None:
    """All orders in which 4 messages of 2 sizes can be asked for."""
    sizes = (10, 100_000, 0, 40_000)
    for order in itertools.permutations(range(4)):

        def body(comm: dcomm.Communicator, order: tuple[int, ...] = order) -> None:
            if comm.rank == 0:
                works = [comm.send(numbers(sizes[tag], tag), 1, tag=tag, async_op=True) for tag in range(4)]
                for work in works:
                    assert work is not None
                    work.wait()
            else:
                for tag in order:
                    y = comm.recv(np.zeros(sizes[tag], np.float32), 0, tag=tag)
                    assert same_bytes(y, numbers(sizes[tag], tag))

        run_threads(2, body)


def test_one_tag_keeps_the_order() -> None:
    def body(comm: dcomm.Communicator) -> None:
        if comm.rank == 0:
            for i in range(100):
                comm.send(np.array([i]), 1, tag=i % 3)
        else:
            seen = [[int(comm.recv(np.zeros(1, np.int64), 0, tag=tag)[0]) for _ in range(33)] for tag in (2, 1, 0)]
            assert seen == [list(range(tag, 99, 3)) for tag in (2, 1, 0)]
            assert comm.recv(np.zeros(1, np.int64), 0, tag=0)[0] == 99

    run_threads(2, body)


def test_both_send_first() -> None:
    count = 16 << 20  # 64 MiB

    def body(comm: dcomm.Communicator) -> None:
        peer = 1 - comm.rank
        comm.send(np.full(count, float(comm.rank), np.float32), peer)
        y = np.zeros(count, np.float32)
        comm.recv(y, peer)
        assert (y == peer).all()

    run_threads(2, body, timeout=120)


def test_all_send_to_all_first() -> None:
    def body(comm: dcomm.Communicator) -> None:
        others = [peer for peer in range(comm.world_size) if peer != comm.rank]
        for peer in others:
            comm.send(numbers(300_000, 10 * comm.rank + peer), peer)
        for peer in reversed(others):
            y = comm.recv(np.zeros(300_000, np.float32), peer)
            assert same_bytes(y, numbers(300_000, 10 * peer + comm.rank))

    run_threads(4, body)


@pytest.mark.parametrize("recv_first", [True, False])
def test_queued_recv_does_not_hold_up_sends(recv_first: bool) -> None:
    def body(comm: dcomm.Communicator) -> None:
        peer = 1 - comm.rank
        for count in (1, 200_000):
            x, y = np.full(count, comm.rank, np.int64), np.zeros(count, np.int64)
            order = [lambda: comm.recv(y, peer, async_op=True), lambda: comm.send(x, peer, async_op=True)]  # noqa: B023
            works = [start() for start in (order if recv_first else reversed(order))]
            for work in works:
                work.wait(timeout=30)
            assert (y == peer).all()

    run_threads(2, body)


def test_many_queued_recvs_then_many_sends() -> None:
    def body(comm: dcomm.Communicator) -> None:
        peers = [peer for peer in range(comm.world_size) if peer != comm.rank]
        results = {peer: np.zeros(5000) for peer in peers}
        works = [comm.recv(results[peer], peer, async_op=True) for peer in peers]
        works += [comm.send(np.full(5000, 10.0 * comm.rank + peer), peer, async_op=True) for peer in peers]
        for work in works:
            work.wait(timeout=30)
        assert all((results[peer] == 10 * peer + comm.rank).all() for peer in peers)

    run_threads(3, body)


def test_ring_shift() -> None:
    def body(comm: dcomm.Communicator) -> None:
        n = comm.world_size
        right, left = (comm.rank + 1) % n, (comm.rank - 1) % n
        x = numbers(50_000, comm.rank)
        for step in range(1, n + 1):
            y = np.zeros_like(x)
            works = [comm.recv(y, left, tag=step, async_op=True), comm.send(x, right, tag=step, async_op=True)]
            for work in works:
                work.wait(timeout=30)
            assert same_bytes(y, numbers(50_000, (comm.rank - step) % n))
            x = y

    run_threads(4, body)


def test_interleaved_with_collectives() -> None:
    def body(comm: dcomm.Communicator) -> None:
        n = comm.world_size
        for step in range(40):
            x = np.full(3000, float(comm.rank + step))
            if comm.rank == step % n:
                for peer in range(n):
                    if peer != comm.rank:
                        comm.send(x, peer, tag=step, async_op=step % 2 == 0)
            assert (comm.all_reduce(np.ones(3000)) == n).all()
            y = np.zeros(3000)
            if comm.rank != step % n:
                comm.recv(y, step % n, tag=step)
                assert (y == step % n + step).all()
            if step % 5 == 0:
                comm.barrier()

    run_threads(3, body)


def test_pipeline_of_small_messages() -> None:
    def body(comm: dcomm.Communicator) -> float:
        start = time.monotonic()
        total = 0.0
        for i in range(1000):
            x = np.array([float(i)])
            if comm.rank > 0:
                comm.recv(x, comm.rank - 1)
                x += 1
            if comm.rank + 1 < comm.world_size:
                comm.send(x, comm.rank + 1)
            total += x[0]
        print(f"rank {comm.rank}: {1e3 * (time.monotonic() - start):.1f} ms")
        return total

    expected = sum(range(1000))
    assert run_threads(3, body) == [expected, expected + 1000, expected + 2000]


def test_stats_count_messages() -> None:
    def body(comm: dcomm.Communicator) -> dict[str, Any]:
        before = comm.stats()
        if comm.rank == 0:
            comm.send(np.zeros(1000, np.float32), 1)
        else:
            time.sleep(0.05)
            comm.recv(np.zeros(1000, np.float32), 0)
        after = comm.stats()
        return {name: after[name] - before[name] for name in ("num_operations", "num_bytes", "num_sent_bytes")}

    sent, received = run_threads(2, body)
    assert sent == {"num_operations": 1, "num_bytes": 4000, "num_sent_bytes": 4000}
    assert received == {"num_operations": 1, "num_bytes": 4000, "num_sent_bytes": 0}


def test_waiting_is_counted() -> None:
    def body(comm: dcomm.Communicator) -> dict[int, float]:
        if comm.rank == 0:
            time.sleep(0.2)
            comm.send(np.zeros(1), 1)
        else:
            comm.recv(np.zeros(1), 0)
        waited: dict[int, float] = comm.stats()["wait_us"]
        return waited

    waited = run_threads(2, body)[1]
    assert waited[0] > 100_000
    assert waited.get(1, 0) == 0


@pytest.mark.parametrize(
    ("received", "what"),
    [
        (np.zeros(12, np.float32), "12 elements of float32 with tag 3"),
        (np.zeros(10, np.int32), "10 elements of int32 with tag 3"),
        (np.zeros(0, np.float64), "0 elements of float64 with tag 3"),
    ],
)
def test_mismatch_names_both_sides_and_breaks_all(received: Any, what: str) -> None:
    def body(comm: dcomm.Communicator) -> None:
        if comm.rank == 0:
            comm.send(np.ones(10, np.float32), 1, tag=3)
        elif comm.rank == 1:
            comm.recv(received, 0, tag=3)
        comm.barrier(timeout=20)

    errors = thread_outcomes(3, body)
    assert all(isinstance(error, dcomm.MismatchError) for error in errors), errors
    text = str(errors[1])
    assert "rank 0 sent 10 elements of float32 with tag 3 to rank 1" in text
    assert f"which expects {what}" in text
    for error in (errors[0], errors[2]):
        assert "rank 1 received a message of rank 0 that it did not expect" in str(error)


def test_sender_learns_of_a_mismatch() -> None:
    comms = dcomm.init_threads(2)
    comms[0].send(np.ones(1), 1)
    with pytest.raises(dcomm.MismatchError):
        comms[1].recv(np.ones(2), 0)
    with pytest.raises(dcomm.MismatchError):  # although a slot is free
        comms[0].send(np.ones(1), 1)
    with pytest.raises(dcomm.MismatchError):
        comms[0].all_reduce(np.ones(1))


def test_bad_arguments() -> None:
    comms = dcomm.init_threads(2)
    x = np.ones(3)
    for call in (comms[0].send, comms[0].recv):
        with pytest.raises(ValueError, match="rank 0 is this rank itself; copy the array, or pass another rank"):
            call(x, 0)
        for peer in (2, -1):
            with pytest.raises(ValueError, match=r"expected a (whole number|rank) from 0 to"):
                call(x, peer)
        with pytest.raises(TypeError, match="expected a whole number"):
            call(x, 1.0)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="tag='a': expected a whole number"):
            call(x, 1, tag="a")  # type: ignore[arg-type]
        for tag in (-1, 2**31):
            with pytest.raises(ValueError, match=r"tag=.*: expected a whole number from 0 to 2147483647"):
                call(x, 1, tag=tag)
        with pytest.raises(ValueError, match="timeout=0"):
            call(x, 1, timeout=0)
        with pytest.raises(TypeError, match="expected"):
            call([1.0], 1)
    frozen = np.ones(3)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="x is read-only"):
        comms[1].recv(frozen, 0)
    comms[0].send(frozen, 1)  # reading is fine, and nothing is broken
    assert (comms[1].recv(np.zeros(3), 0) == 1).all()
    with pytest.raises(ValueError, match="rank 0 is this rank itself"):
        dcomm.init_threads(1)[0].send(x, 0)


def test_recv_times_out_and_breaks_both() -> None:
    def body(comm: dcomm.Communicator) -> None:
        if comm.rank == 0:
            start = time.monotonic()
            with pytest.raises(dcomm.CollectiveTimeoutError) as caught:
                comm.recv(np.zeros(4, np.float32), 1, tag=9, timeout=0.3)
            assert 0.29 < time.monotonic() - start < 2
            text = str(caught.value)
            assert (
                "recv(count=4, dtype=float32, src=1, tag=9) on rank 0 of 2, called at test_point_to_point.py:" in text
            )
            assert ": no answer from rank 1" in text
        else:
            time.sleep(0.6)
        comm.barrier(timeout=20)

    errors = thread_outcomes(2, body)
    assert all(isinstance(error, dcomm.CollectiveTimeoutError) for error in errors), errors


def test_send_times_out_where_nobody_receives() -> None:
    comms = dcomm.init_threads(2)
    comms[0].send(np.ones(3), 1)  # fits the slots
    with pytest.raises(
        dcomm.CollectiveTimeoutError, match=r"send\(count=1000000, .*dst=1, tag=0\) .*no answer from rank 1"
    ):
        comms[0].send(np.ones(1_000_000), 1, timeout=0.2)


def test_a_peer_that_leaves() -> None:
    """What it sent before is still received; then it is lost. A third rank's leaving disturbs nobody."""
    comms = dcomm.init_threads(3)

    def body(comm: dcomm.Communicator) -> None:
        if comm.rank == 0:
            comm.send(np.full(5, 7.0), 1, tag=1)
        if comm.rank == 1:
            time.sleep(0.2)
            assert comm.recv(np.zeros(5), 0, tag=1)[0] == 7
            comm.recv(np.zeros(5), 0, tag=1, timeout=20)
        comm.close()

    errors = outcomes(comms, body)
    assert errors[0] is None
    assert errors[2] is None
    assert isinstance(errors[1], dcomm.PeerLostError)
    assert "recv(count=5, dtype=float64, src=0, tag=1)" in str(errors[1])
    assert "rank 0 closed its communicator" in str(errors[1])


def test_send_to_a_rank_that_has_left() -> None:
    comms = dcomm.init_threads(2)
    comms[1].close()
    with pytest.raises(dcomm.PeerLostError, match="rank 1 closed its communicator"):
        comms[0].send(np.ones(1), 1)


def test_abort_ends_waits_and_queued_messages() -> None:
    comms = dcomm.init_threads(2)
    works = [comms[0].recv(np.zeros(3), 1, async_op=True) for _ in range(3)]
    works.append(comms[0].send(np.zeros(1_000_000), 1, async_op=True))
    threading.Timer(0.1, comms[1].abort).start()
    for work in works:
        with pytest.raises(dcomm.AbortedError):
            work.wait(timeout=20)


def test_dropped_handles_keep_their_arrays() -> None:
    def body(comm: dcomm.Communicator) -> None:
        peer = 1 - comm.rank
        for i in range(100):
            comm.send(np.full(10_000, float(i)), peer, async_op=True)
        for i in range(100):
            assert (comm.recv(np.zeros(10_000), peer) == i).all()

    run_threads(2, body)


def test_collectives_behind_messages_keep_their_order() -> None:
    def body(comm: dcomm.Communicator) -> None:
        peer = 1 - comm.rank
        x, y = np.full(1000, comm.rank + 1.0), np.zeros(1000)
        works = [
            comm.recv(y, peer, async_op=True),
            comm.send(x, peer, async_op=True),
            comm.all_reduce(y, async_op=True),  # of what was received
            comm.send(y, peer, tag=1, async_op=True),
        ]
        z = comm.recv(np.zeros(1000), peer, tag=1)
        for work in works:
            work.wait(timeout=20)
        assert (y == 3).all()
        assert (z == 3).all()

    run_threads(2, body)


def test_closing_with_unreceived_messages() -> None:
    comms = dcomm.init_threads(2)
    for comm in comms:
        comm.send(np.ones(10), 1 - comm.rank)
    for comm in comms:
        comm.close()
    with pytest.raises(dcomm.AbortedError, match="closed"):
        comms[0].recv(np.ones(10), 1)
