"""bucket_bytes="auto": measured in the first steps, one verdict for all ranks, no change of bits."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from rank_threads import run_threads  # noqa: E402
from synchronizer_cases import same_bits, seeded  # noqa: E402
from torch import nn  # noqa: E402

import dcomm  # noqa: E402
from dcomm.torch import GradientSynchronizer, bucket_trial  # noqa: E402
from dcomm.torch.bucket_trial import MIB, ROUNDS, choose  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Three candidates, in units of 1 KiB, so that a small model shows all of them."""
    sizes = [size >> 10 for size in bucket_trial.CANDIDATES[:4] if size != 8 * MIB]
    monkeypatch.setattr(bucket_trial, "CANDIDATES", tuple(sizes))
    monkeypatch.setattr("dcomm.torch.synchronizer.CANDIDATES", tuple(sizes))
    return sizes


def deep() -> nn.Module:
    """31 KiB of gradients in 16 tensors."""
    return nn.Sequential(*[nn.Linear(31, 31) for _ in range(8)])


class Clock(threading.local):
    """Of each rank, which is a thread: seconds pass when a test says so."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(bucket_trial, "time", clock)
    return clock


def let_exchange_take(clock: Clock, sync: GradientSynchronizer, best: int, ms: float = 4) -> None:
    """With buckets of `best` bytes 1 ms, else `ms`; now and then something else takes much longer."""
    finish = sync._reducer.finish
    steps = iter(range(1000))

    def slower() -> None:
        finish()
        if sync._trial is not None:
            clock.now += 1e-3 if sync._trial.bucket_bytes == best else ms * 1e-3
            clock.now += 50e-3 * (next(steps) % 7 == 0)

    sync._reducer.finish = slower  # type: ignore[method-assign]


def train(
    comm: dcomm.Communicator, steps: int, clock: Clock | None = None, best: int = 0, **settings: Any
) -> tuple[list[torch.Tensor], GradientSynchronizer, list[Any]]:
    model = seeded(deep)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []
    sync = GradientSynchronizer(model, comm, **settings)
    if clock is not None:
        let_exchange_take(clock, sync, best)
    for step in range(steps):
        x = torch.randn(4, 31, generator=torch.Generator().manual_seed(100 * step + comm.rank))
        model(x).square().mean().backward()
        sync.finish()
        seen.append((sync.bucket_bytes, sync.num_buckets))
        optimizer.step()
        optimizer.zero_grad()
    sync.close()
    return [p.detach() for p in model.parameters()], sync, seen


@pytest.mark.parametrize("settings", [{}, {"overlap": True}, {"deterministic": True}, {"wire_dtype": "fp16"}])
def test_all_ranks_take_what_rank_0_found(
    settings: dict[str, Any], small_sizes: list[int], clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="dcomm")
    best = small_sizes[2]
    num_trials = ROUNDS * len(small_sizes)

    def body(comm: dcomm.Communicator) -> tuple[list[torch.Tensor], list[Any], Any]:
        weights, sync, seen = train(comm, num_trials + 4, clock, best, **settings)
        assert len(sync._buckets.groups(best)) == seen[-1][1] == sync.num_buckets
        return weights, seen, sync.state_dict()

    results = run_threads(3, body)
    fixed = run_threads(3, lambda comm: train(comm, num_trials + 4, bucket_bytes=3000, **settings)[0])
    for weights, seen, state in results:
        assert seen == results[0][1]
        assert [chosen for chosen, _ in seen] == [None] * num_trials + [best] * 4
        assert len({count for _, count in seen[:num_trials]}) == len(small_sizes)  # each was really tried
        assert state["bucket_bytes"] == best
        assert same_bits([weights, fixed[0]])  # that depend on no bucket size
    lines = [record.getMessage() for record in caplog.records if "bucket_bytes" in record.getMessage()]
    assert len(lines) == 1, lines
    assert "median of 5 steps each" in lines[0]


def test_what_was_found_is_remembered(small_sizes: list[int]) -> None:
    def body(comm: dcomm.Communicator) -> None:
        model = seeded(deep)
        sync = GradientSynchronizer(model, comm)
        sync.load_state_dict({"world_size": 7, "bucket_bytes": small_sizes[1], "residuals": None})
        for _ in range(3):
            model(torch.ones(2, 31)).sum().backward()
            sync.finish()
            assert (sync.bucket_bytes, sync._trial) == (small_sizes[1], None)
        again = GradientSynchronizer(seeded(deep), comm, bucket_bytes=small_sizes[0])
        again.load_state_dict(sync.state_dict())
        assert again.bucket_bytes == small_sizes[0]  # given, so it holds

    run_threads(2, body)


def test_where_all_sizes_are_one_nothing_is_measured(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="dcomm")

    def body(comm: dcomm.Communicator) -> None:
        model = seeded(deep)
        sync = GradientSynchronizer(model, comm)
        assert sync.bucket_bytes is None
        counts = []
        for _ in range(3):
            before = comm.stats()["num_operations"]
            model(torch.ones(2, 31)).sum().backward()
            sync.finish()
            counts.append(comm.stats()["num_operations"] - before)
        assert sync.bucket_bytes == MIB
        assert counts[1:] == [2, 2]  # one bucket, one message to agree

    run_threads(2, body)
    assert not caplog.records


def test_residuals_stay_when_buckets_are_cut_anew(small_sizes: list[int]) -> None:
    def body(comm: dcomm.Communicator, size: Any) -> list[torch.Tensor]:
        _, sync, _ = train(comm, 18, bucket_bytes=size, wire_dtype="bf16", error_feedback=True)
        return list(sync.state_dict()["residuals"].values())

    for measured, fixed in zip(
        *(run_threads(2, lambda comm, size=size: body(comm, size)) for size in ("auto", 3000)), strict=True
    ):
        assert same_bits([measured, fixed])
        assert max(float(one.abs().max()) for one in measured) > 0


@pytest.mark.parametrize(("overlap", "expected"), [(True, 0), (False, 2)])
def test_whose_time_counts(overlap: bool, expected: int, clock: Clock, small_sizes: list[int]) -> None:
    """Beside backward the slowest rank's; else that of the rank which came last and so waited for none."""
    exchange, late = (6, 5, 4), (1, 9, 9)

    def body(comm: dcomm.Communicator) -> int | None:
        sync = GradientSynchronizer(seeded(deep), comm, overlap=overlap)
        place = 0

        def slower(finish: Any = sync._reducer.finish) -> None:
            finish()
            clock.now += exchange[place] + late[place] * (comm.rank == 0 and not overlap)

        sync._reducer.finish = slower  # type: ignore[method-assign]
        sync.finish()
        while sync._trial is not None:
            place = small_sizes.index(sync._trial.bucket_bytes)
            sync._trial.begin_pass()
            clock.now += late[place] * (comm.rank == 1)
            sync.finish()
        return sync.bucket_bytes

    assert run_threads(2, body) == [small_sizes[expected]] * 2


def test_half_and_full_precision_never_share_a_message() -> None:
    def mixed() -> nn.Module:
        return nn.Sequential(*[nn.Linear(600, 600, dtype=(torch.float32, torch.float64)[i % 2]) for i in range(6)])

    def body(comm: dcomm.Communicator) -> None:
        model = mixed()
        sync = GradientSynchronizer(model, comm, bucket_bytes="auto")
        for size in bucket_trial.CANDIDATES:
            sync._cut(size)
            indices = [index for bucket in sync._buckets.buckets for index in bucket.indices]
            assert sorted(indices) == list(range(12))
            assert all(
                model[index // 2].weight.dtype is bucket.buffer.dtype
                for bucket in sync._buckets.buckets
                for index in bucket.indices
            )

    run_threads(1, body)


def test_the_smallest_of_those_that_are_as_fast() -> None:
    assert choose([1, 4, 8], [10.05, 10.0, 9.99]) == 1
    assert choose([1, 4, 8], [11.0, 10.0, 9.99]) == 4
    assert choose([1, 4, 8], [11.0, 10.5, 9.99]) == 8
