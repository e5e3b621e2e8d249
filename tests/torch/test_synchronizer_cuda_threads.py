"""GradientSynchronizer whose ranks are threads that share a GPU, here an emulated one: overlap, and no rank in the way.

Of a GPU one thread of torch's runs backward of all ranks. So a hook may not wait for another rank; here all backward
passes run in one thread, one after the other or node by node.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from emulated_gpu import EmulatedGpu  # noqa: E402
from emulated_gradients import EmulatedLauncher, gradients_on  # noqa: E402
from emulated_torch_streams import Stream, current, make_stream  # noqa: E402
from rank_threads import outcomes, values  # noqa: E402
from synchronizer_cases import SMALL, Branches, assert_close, expected, gradients, loss_of, seeded  # noqa: E402

import dcomm  # noqa: E402
from dcomm.torch import GradientSynchronizer, cuda_launching  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


@contextmanager
def ranks(world_size: int, timeout: float = 20.0, **options: Any) -> Iterator[tuple[list[Any], list[Any], list[Any]]]:
    """Communicators, models and synchronizers, of all ranks."""
    comms = dcomm.init_threads(world_size, device=0)
    for comm in comms:
        comm._core.set_timeout(int(timeout * 1e9))
    models = [seeded(Branches) for _ in comms]
    settings = {**SMALL, **options}
    syncs = values(comms, lambda comm: GradientSynchronizer(models[comm.rank], comm, **settings))
    try:
        yield comms, models, syncs
    finally:
        for sync in syncs:
            sync.close()
        for comm in comms:
            comm.close()


def in_one_thread(losses: list[torch.Tensor]) -> None:
    """Node by node, as torch's thread of a GPU does where ranks run backward at the same time."""
    torch.autograd.backward(losses)


def one_by_one(losses: list[torch.Tensor]) -> None:
    for loss in losses:
        loss.backward()


def finish_all(comms: list[Any], syncs: list[Any]) -> None:
    values(comms, lambda comm: syncs[comm.rank].finish())


@pytest.mark.parametrize("backward", [in_one_thread, one_by_one])
@pytest.mark.parametrize("world_size", [2, 3])
def test_one_thread_runs_all_backward_passes(
    emulated_gpu: EmulatedGpu, backward: Callable[[list[Any]], None], world_size: int
) -> None:
    with gradients_on(emulated_gpu), ranks(world_size) as (comms, models, syncs):
        for step in range(4):  # the second one lays the buckets out anew
            used = (0, 1) if step != 2 else (step % 2,)
            backward([loss_of(model, step, rank, used) for rank, model in enumerate(models)])
            finish_all(comms, syncs)
            for model in models:
                assert_close(gradients(model), expected(models[0], world_size, step, used))
            for model in models:
                model.zero_grad()
        withdrawn = [sum(sync._launcher.withdrawn) > 0 for sync in syncs]
        # One after the other: no bucket is launched before the last rank's backward, and a pass leaves none open.
        assert withdrawn[0] == (backward is one_by_one)


@pytest.mark.parametrize("world_size", [2, 3])
def test_buckets_are_launched_before_backward_ends(emulated_gpu: EmulatedGpu, world_size: int) -> None:
    """Not only started: when the last gradient comes, the GPU has got most buckets."""
    with gradients_on(emulated_gpu), ranks(world_size, record_events=True) as (comms, models, syncs):
        for step in range(3):
            seen: list[int] = []
            before = emulated_gpu.num_launched
            handle = models[0].first.weight.register_post_accumulate_grad_hook(
                lambda parameter, seen=seen: seen.append(emulated_gpu.num_launched)
            )
            in_one_thread([loss_of(model, step, rank) for rank, model in enumerate(models)])
            finish_all(comms, syncs)
            handle.remove()
            num_buckets = syncs[0].num_buckets
            assert num_buckets >= 3
            assert seen[0] - before >= num_buckets - 2, (seen, before, num_buckets)
            for sync in syncs:
                events = [(event.kind, event.label) for event in sync.timeline()]
                last_ready = max(index for index, (kind, _) in enumerate(events) if kind == "ready")
                assert events.index(("launched", "0")) < last_ready
            for model in models:
                assert_close(gradients(model), expected(models[0], world_size, step))
                model.zero_grad()


class LateGradients(EmulatedLauncher):
    """Gradients come from a stream of their own that is late."""

    def __init__(self, comm: dcomm.Communicator, device: torch.device) -> None:
        super().__init__(comm, device, host_follows=False)
        self.writer: Stream | None = None

    def note(self) -> None:
        if self.writer is None:
            return super().note()
        with current(self.writer):
            return super().note()


@pytest.mark.parametrize("waits", [True, False])
def test_the_current_stream_waits_and_the_host_does_not(emulated_gpu: EmulatedGpu, waits: bool) -> None:
    """Also without that wait, which must be seen: what the stream does next comes too early then."""
    with gradients_on(emulated_gpu), pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(
            "dcomm.torch.synchronizer._make_launcher", lambda comm, device, by_host: LateGradients(comm, device)
        )
        if not waits:
            monkeypatch.setattr(cuda_launching._Operation, "wait", lambda operation: None)
        with ranks(2) as (comms, models, syncs):
            writers = [make_stream(emulated_gpu) for _ in comms]
            readers = [make_stream(emulated_gpu) for _ in comms]
            words = [writer.emulated.hold() for writer in writers]

            def step(comm: dcomm.Communicator) -> list[np.ndarray]:
                sync, model = syncs[comm.rank], models[comm.rank]
                sync._launcher.writer = writers[comm.rank]
                with current(readers[comm.rank]):
                    loss_of(model, 0, comm.rank).backward()
                    sync._reducer.finish()
                    seen = [np.full_like(p.grad.numpy(), np.nan) for p in model.parameters()]
                    for parameter, copy in zip(model.parameters(), seen, strict=True):
                        readers[comm.rank].emulated.copy(copy, parameter.grad.numpy())
                return seen

            seen = values(comms, step)  # both have come through, though no gradient is there yet
            if waits:
                time.sleep(0.1)  # what does not wait for the gradients is over by now
                assert all(np.isnan(each).all() for mine in seen for each in mine)
            else:
                for reader in readers:
                    reader.synchronize()
            for word in words:
                word.fill(1)
            for reader in readers:
                reader.synchronize()
            right = [gradient.numpy() for gradient in expected(models[0], 2, 0)]
            for mine in seen:
                same = all(np.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(mine, right, strict=True))
                assert same == waits


def test_accumulation(emulated_gpu: EmulatedGpu) -> None:
    """Several passes before finish(), with and without no_sync(), in one thread."""
    with gradients_on(emulated_gpu), ranks(2) as (comms, models, syncs):
        for quiet in (True, False):
            for model in models:
                model.zero_grad()
            for part in range(2):
                losses = [loss_of(model, part, rank) for rank, model in enumerate(models)]
                if quiet and part == 0:
                    with syncs[0].no_sync(), syncs[1].no_sync():
                        in_one_thread(losses)
                else:
                    in_one_thread(losses)
            finish_all(comms, syncs)
            sums = [a + b for a, b in zip(expected(models[0], 2, 0), expected(models[0], 2, 1), strict=True)]
            for model in models:
                assert_close(gradients(model), sums)


def test_sums_of_passes_that_no_rank_met(emulated_gpu: EmulatedGpu) -> None:
    """What a pass started and took back is summed once, with what later passes add."""
    with gradients_on(emulated_gpu), ranks(2, average=False) as (comms, models, syncs):
        for part in range(2):
            loss_of(models[0], part, 0).backward()  # rank 1 has not begun
        for part in range(2):
            loss_of(models[1], part, 1).backward()
        finish_all(comms, syncs)
        sums = [
            a + b
            for a, b in zip(expected(models[0], 2, 0, factor=1.0), expected(models[0], 2, 1, factor=1.0), strict=True)
        ]
        for model in models:
            assert_close(gradients(model), sums)


# ---- Failures ----


def test_a_rank_that_never_comes(emulated_gpu: EmulatedGpu) -> None:
    with gradients_on(emulated_gpu), ranks(3, timeout=0.3) as (comms, models, syncs):
        for rank in (0, 2):
            loss_of(models[rank], 0, rank).backward()  # does not wait
        start = time.monotonic()
        found = outcomes([comms[0], comms[2]], lambda comm: syncs[comm.rank].finish())
        assert time.monotonic() - start < 10
        for error in found:
            assert isinstance(error, dcomm.CollectiveTimeoutError), error
            assert "for rank 1, which did not call it" in str(error)


def test_a_rank_that_leaves(emulated_gpu: EmulatedGpu) -> None:
    with gradients_on(emulated_gpu), ranks(2) as (comms, models, syncs):
        loss_of(models[0], 0, 0).backward()

        def body(comm: dcomm.Communicator) -> None:
            if comm.rank == 1:
                time.sleep(0.05)
                comm.close()  # its forward failed
                return
            syncs[0].finish()

        error = outcomes(comms, body)[0]
        assert isinstance(error, dcomm.PeerLostError), error
        assert "rank 1" in str(error)


def test_abort(emulated_gpu: EmulatedGpu) -> None:
    with gradients_on(emulated_gpu), ranks(2) as (comms, models, syncs):
        loss_of(models[0], 0, 0).backward()

        def body(comm: dcomm.Communicator) -> None:
            if comm.rank == 1:
                comm.abort()
            syncs[comm.rank].finish()

        assert all(isinstance(error, dcomm.AbortedError) for error in outcomes(comms, body))


def test_another_order_of_buckets(emulated_gpu: EmulatedGpu) -> None:
    """What the plan forbids: both ranks are told, whoever notices it."""
    with gradients_on(emulated_gpu), ranks(2) as (comms, models, syncs):
        buckets = syncs[1]._buckets.buckets
        assert buckets[0].buffer.numel() != buckets[-1].buffer.numel()
        buckets[0].buffer, buckets[-1].buffer = buckets[-1].buffer, buckets[0].buffer

        def body(comm: dcomm.Communicator) -> None:
            loss_of(models[comm.rank], 0, comm.rank).backward()
            syncs[comm.rank].finish()

        for error in outcomes(comms, body):
            assert isinstance(error, dcomm.MismatchError), error
            assert "rank 0 called all_reduce" in str(error)
            assert "rank 1 called all_reduce" in str(error)


def test_backward_passes_that_fail(emulated_gpu: EmulatedGpu) -> None:
    """What they had started is over; the next step is right, after the warning that a step has got lost."""
    with gradients_on(emulated_gpu), ranks(2) as (comms, models, syncs):
        for rank, model in enumerate(models):
            handle = model.first.weight.register_hook(lambda gradient: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                loss_of(model, 0, rank).backward()
            handle.remove()
            model.zero_grad()
        with pytest.warns(RuntimeWarning, match="finish\\(\\) was not called in the step before"):
            in_one_thread([loss_of(model, 1, rank) for rank, model in enumerate(models)])
        finish_all(comms, syncs)
        for model in models:
            assert_close(gradients(model), expected(models[0], 2, 1))
