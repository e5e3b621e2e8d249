"""GradientSynchronizer against training in one process on the whole batch; ranks are threads."""

from __future__ import annotations

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from rank_threads import run_threads  # noqa: E402
from synchronizer_cases import (  # noqa: E402
    SMALL,
    Branches,
    alone,
    assert_close,
    batch,
    expected,
    gradients,
    loss_of,
    same_bits,
    seeded,
)
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import dcomm  # noqa: E402
from dcomm.torch import GradientSynchronizer  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_trains_like_one_process_on_the_whole_batch(world_size: int, overlap: bool) -> None:
    reference = seeded(Branches)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)
    for step in range(5):
        sum(loss_of(reference, step, part) / world_size for part in range(world_size)).backward()
        optimizer.step()
        optimizer.zero_grad()

    def body(comm: dcomm.Communicator) -> list[torch.Tensor]:
        model = seeded(Branches, seed=comm.rank)  # rank 0's is broadcast
        if comm.rank == 0:
            model.load_state_dict(seeded(Branches).state_dict())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        with GradientSynchronizer(model, comm, overlap=overlap, **SMALL) as sync:
            for step in range(5):
                loss_of(model, step, comm.rank).backward()
                sync.finish()
                optimizer.step()
                optimizer.zero_grad()
            assert sync.num_buckets > 2
        return [p.detach() for p in model.parameters()]

    results = run_threads(world_size, body)
    assert same_bits(results)
    assert_close(results[0], [p.detach() for p in reference.parameters()], 1e-5)


def test_gradients_stay_in_the_window() -> None:
    def body(comm: dcomm.Communicator) -> None:
        model = seeded(Branches)
        sync = GradientSynchronizer(model, comm, **SMALL)
        for step in range(4):
            model.zero_grad(set_to_none=step % 2 == 0)
            loss_of(model, step, comm.rank).backward()
            sync.finish()
            low = min(bucket.buffer.data_ptr() for bucket in sync._buckets.buckets)
            for parameter, view in zip(model.parameters(), sync._buckets.views, strict=True):
                assert parameter.grad is view
                assert low <= parameter.grad.data_ptr() < low + sync.gradient_bytes
            assert_close(gradients(model), expected(model, comm.world_size, step))
        sync.close()
        del sync
        comm.close()
        assert all(bool(p.grad.isfinite().all()) for p in model.parameters())  # the memory is still there

    run_threads(2, body)


def test_gradients_that_a_caller_puts_there_are_reduced() -> None:
    def body(comm: dcomm.Communicator) -> float:
        model = nn.Linear(4, 3)
        sync = GradientSynchronizer(model, comm)
        model.weight.grad = torch.full((3, 4), float(comm.rank))
        sync.finish()
        assert model.bias.grad is None
        return float(model.weight.grad[0, 0])

    assert run_threads(3, body) == [1.0] * 3


def test_frozen_shared_and_mixed_dtypes() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(9, 9)
            self.frozen = nn.Linear(9, 9).requires_grad_(False)
            self.brain = nn.Linear(9, 9, dtype=torch.bfloat16)
            self.wide = nn.Linear(9, 9, dtype=torch.float64)
            self.tied = nn.Linear(9, 9)
            self.tied.weight = self.a.weight
            self.phase = nn.Parameter(torch.ones(9, dtype=torch.complex64))
            self.empty = nn.Parameter(torch.zeros(0))
            self.turned = nn.Parameter(torch.arange(81.0).view(9, 9).t())  # strides (1, 9)
            self.image = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.frozen(self.a(x)) @ self.turned / 100
            x = self.tied(self.brain(x.bfloat16()).float()) + self.wide(x.double()).float() + self.empty.sum()
            x = (x * self.phase).abs()
            return x.mean() + self.image(x.flatten()[:50].view(1, 2, 5, 5)).mean()

    def body(comm: dcomm.Communicator) -> list[Any]:
        model = seeded(Mixed)
        sync = GradientSynchronizer(model, comm, bucket_bytes=400)
        found = []
        for step in range(2):
            loss_of(model, step, comm.rank).backward()
            sync.finish()
            for parameter in model.parameters():
                if parameter.grad is not None:
                    assert parameter.grad.dtype is parameter.dtype
                    assert parameter.grad.stride() == parameter.stride()
            found.append(gradients(model))
            model.zero_grad()
        return found

    results = run_threads(2, body)
    for step in range(2):
        ours = [result[step] for result in results]
        assert same_bits(ours)
        assert_close(ours[0], expected(seeded(Mixed), 2, step), 2e-3)  # bfloat16 among them
        exact = [g if g is None or g.dtype is not torch.bfloat16 else None for g in ours[0]]
        wanted = [g if g is None or g.dtype is not torch.bfloat16 else None for g in expected(seeded(Mixed), 2, step)]
        assert_close(exact, wanted)
        assert ours[0][0] is not None


@pytest.mark.parametrize(("wire", "unit"), [("fp16", 2.0**-11), ("bf16", 2.0**-8)])
def test_half_precision_wires(wire: str, unit: float) -> None:
    def body(comm: dcomm.Communicator) -> list[Any]:
        model = seeded(Branches)
        sync = GradientSynchronizer(model, comm, wire_dtype=wire, **SMALL)
        loss_of(model, 0, comm.rank).backward()
        sync.finish()
        return gradients(model)

    results = run_threads(2, body)
    assert same_bits(results)
    exact = expected(seeded(Branches), 2, 0)
    parts = [copy.deepcopy(seeded(Branches)) for _ in range(2)]
    for part, model in enumerate(parts):
        loss_of(model, 0, part).backward()
    worst = 0.0
    for ours, theirs, *each in zip(results[0], exact, *(gradients(model) for model in parts), strict=True):
        mean_abs = sum(g.abs() for g in each) / 2
        rounding = 2 * unit * mean_abs + 3 * 2.0**-25  # of every term and of the sum; the least step of float16
        worst = max(worst, float(((ours - theirs).abs() / rounding).max()))
    assert 0.05 < worst <= 1.01


@pytest.mark.parametrize("wire", ["fp8", "fp8_block128"])
def test_fp8_wires(wire: str) -> None:
    def body(comm: dcomm.Communicator) -> list[Any]:
        model = seeded(Branches)
        sync = GradientSynchronizer(model, comm, wire_dtype=wire, **SMALL)
        loss_of(model, 0, comm.rank).backward()
        sync.finish()
        return gradients(model)

    results = run_threads(2, body)
    assert same_bits(results)
    exact = [g for g in expected(seeded(Branches), 2, 0) if g is not None]
    ours = [g for g in results[0] if g is not None]
    error = sum(float((a - b).square().sum()) for a, b in zip(ours, exact, strict=True))
    assert 0.005 < (error / sum(float(g.square().sum()) for g in exact)) ** 0.5 < 0.06


@pytest.mark.parametrize("overlap", [False, True])
def test_sum_instead_of_average(overlap: bool) -> None:
    def body(comm: dcomm.Communicator) -> list[Any]:
        model = seeded(Branches)
        sync = GradientSynchronizer(model, comm, average=False, overlap=overlap, **SMALL)
        found = []
        for step in range(2):
            with sync.no_sync():
                loss_of(model, step, comm.rank).backward()
            loss_of(model, step, comm.rank).backward()
            sync.finish()
            found.append(gradients(model))
            model.zero_grad()
        loss_of(model, 0, comm.rank).backward()
        with pytest.raises(RuntimeError, match=r"summed again. Put all backward passes .* into no_sync\(\)"):
            loss_of(model, 0, comm.rank).backward()
        sync.finish()
        return found

    results = run_threads(2, body)
    for step in range(2):
        assert_close(results[0][step], expected(seeded(Branches), 2, step, factor=2.0))


def test_order_of_the_first_step_becomes_the_plan() -> None:
    class Backwards(nn.Module):
        """On rank 0 gradients come in the order in which layers are registered: the plan made at first is wrong."""

        def __init__(self, rank: int = 0) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(9, 9, bias=False) for _ in range(4))
            self.order = (3, 2, 1, 0) if rank == 0 else (2, 1, 3, 0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return sum(torch.tanh((i + 1) * self.layers[i](x)) for i in self.order)

    def body(comm: dcomm.Communicator) -> list[list[int]]:
        model = seeded(lambda: Backwards(comm.rank))
        sync = GradientSynchronizer(model, comm, bucket_bytes=400, overlap=True, record_events=True)
        plans = []
        for step in range(3):
            plans.append([bucket.indices[0] for bucket in sync._buckets.buckets])
            loss_of(model, step, comm.rank).backward()
            sync.finish()
            assert_close(gradients(model), expected(model, comm.world_size, step))
            model.zero_grad()
        kinds = [event.kind for event in sync.timeline()]
        assert comm.rank or kinds.index("launched") < kinds.index("backward_end")
        return plans

    assert run_threads(2, body) == [[[3, 2, 1, 0], [0, 1, 2, 3], [0, 1, 2, 3]]] * 2


def test_infinity_on_one_rank_reaches_all_and_the_scaler_skips() -> None:
    def body(comm: dcomm.Communicator) -> list[Any]:
        model = seeded(Branches)
        sync = GradientSynchronizer(model, comm, **SMALL)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        before = [p.detach().clone() for p in model.parameters()]
        found = []
        for step in range(2):
            loss = loss_of(model, step, comm.rank)
            if step == 0 and comm.rank == 1:
                loss = loss * float("inf")
            scaler.scale(loss).backward()
            sync.finish()
            scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            moved = any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
            found.append((moved, scaler.get_scale(), bool(norm.isfinite()), float(norm) if step else 0.0))
        return found

    results = run_threads(2, body)
    assert results[0] == results[1]
    assert [row[:3] for row in results[0]] == [(False, 512.0, False), (True, 512.0, True)]


def test_compiled_model() -> None:
    def body(comm: dcomm.Communicator) -> list[Any]:
        model = seeded(Branches)
        with alone:  # one compiler at a time
            compiled = torch.compile(model, backend="aot_eager")
            compiled(batch(0, 0))
        sync = GradientSynchronizer(compiled if comm.rank else model, comm, **SMALL)
        with alone:
            loss = loss_of(compiled, 0, comm.rank)
        loss.backward()
        sync.finish()
        return gradients(model)

    results = run_threads(2, body, timeout=100)
    assert same_bits(results)
    assert_close(results[0], expected(seeded(Branches), 2, 0))


def test_checkpointed_layers() -> None:
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Module):
        def __init__(self, reentrant: bool) -> None:
            super().__init__()
            self.inner, self.reentrant = Branches(), reentrant
            self.outer = nn.Linear(5, 9)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = checkpoint(self.inner, x.requires_grad_(), use_reentrant=self.reentrant)
            return checkpoint(self.inner, self.outer(h), use_reentrant=self.reentrant)  # the same parameters again

    def body(comm: dcomm.Communicator) -> list[Any]:
        found = []
        for reentrant in (False, True):
            model = seeded(lambda reentrant=reentrant: Checkpointed(reentrant))
            sync = GradientSynchronizer(model, comm, overlap=False, **SMALL)
            loss_of(model, 0, comm.rank).backward()
            sync.finish()
            found.append(gradients(model))
            sync.close()
            sync = GradientSynchronizer(model, comm, deterministic=True)
            model.zero_grad()
            if reentrant:
                with pytest.raises(RuntimeError, match="use_reentrant=False"):
                    loss_of(model, 0, comm.rank).backward()
            else:
                loss_of(model, 0, comm.rank).backward()
                sync.finish()
                found.append(gradients(model))
            sync.close()
        return found

    for result in run_threads(2, body):
        for ours in result:
            assert_close(ours, expected(seeded(lambda: Checkpointed(False)), 2, 0))


@pytest.mark.parametrize("overlap", [False, True])
def test_timeline(overlap: bool) -> None:
    def body(comm: dcomm.Communicator) -> list[Any]:
        model = seeded(Branches)
        sync = GradientSynchronizer(model, comm, overlap=overlap, record_events=True, **SMALL)
        for step in range(2):
            sync.mark("forward")
            loss_of(model, step, comm.rank).backward()
            sync.finish()
        events = sync.timeline()
        assert [event.ns for event in events] == sorted(event.ns for event in events)
        kinds = [event.kind for event in events]
        assert kinds[0] == "forward"
        assert kinds[-1] == "finished"
        assert kinds.count("backward_end") == kinds.count("finish") == 1
        assert {event.label for event in events if event.kind == "ready"} == {n for n, _ in model.named_parameters()}
        for kind in ("launched", "reduced"):
            assert [e.label for e in events if e.kind == kind] == [str(i) for i in range(sync.num_buckets)]
        last = max(i for i, kind in enumerate(kinds) if kind == "ready")
        assert (kinds.index("launched") < last) is overlap  # before the last gradient was there
        return events

    run_threads(2, body)


def test_overlap_is_chosen_by_the_cpus_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for num_cpus, world_size, overlap in [(2, 2, False), (4, 2, True), (3, 2, False), (1, 1, False), (2, 1, True)]:
        monkeypatch.setattr("os.sched_getaffinity", lambda pid, num_cpus=num_cpus: set(range(num_cpus)))

        def body(comm: dcomm.Communicator) -> bool:
            model = nn.Linear(2, 2)
            sync = GradientSynchronizer(model, comm)
            F.relu(model(torch.ones(1, 2))).sum().backward()
            sync.finish()
            return sync._overlap

        assert run_threads(world_size, body) == [overlap] * world_size
