"""GradientSynchronizer against training in one process on the whole batch; ranks are threads."""

from __future__ import annotations

import copy
import io
import pickle
import random
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from rank_threads import run_threads, thread_outcomes  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import dcomm  # noqa: E402
from dcomm.torch import GradientSynchronizer  # noqa: E402

_seeding = threading.Lock()  # torch's generator is shared by the threads
SMALL = {"bucket_bytes": 2000}  # several buckets


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def seeded(make: Callable[[], Any], seed: int = 3) -> Any:
    with _seeding:
        torch.manual_seed(seed)
        return make()


class Branches(nn.Module):
    """Three layers, and two branches of which a step uses one, both or none."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.first = nn.Linear(9, 30, dtype=dtype)
        self.branches = nn.ModuleList(nn.Linear(30, 20, dtype=dtype) for _ in range(2))
        self.last = nn.Linear(20, 5, dtype=dtype)

    def forward(self, x: torch.Tensor, used: tuple[int, ...] = (0, 1)) -> torch.Tensor:
        h = torch.relu(self.first(x))
        return self.last(torch.tanh(sum((self.branches[i](h) for i in used), torch.zeros(20, dtype=x.dtype))))


def batch(step: int, part: int, dtype: torch.dtype = torch.float32, rows: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 * step + part)
    return torch.randn(rows, 9, generator=generator).to(dtype)


def loss_of(model: nn.Module, step: int, part: int, *args: Any, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return model(batch(step, part, dtype), *args).pow(2).mean()


def gradients(model: nn.Module) -> list[torch.Tensor | None]:
    return [None if p.grad is None else p.grad.detach().clone() for p in model.parameters()]


def expected(model: nn.Module, world_size: int, step: int, *args: Any, factor: float | None = None) -> list[Any]:
    """Gradients of the mean loss over all ranks' batches, on a copy of the model."""
    model = copy.deepcopy(model)
    total = sum(loss_of(model, step, part, *args) for part in range(world_size))
    (total * (1 / world_size if factor is None else factor)).backward()
    return gradients(model)


def assert_close(ours: list[Any], theirs: list[Any], tolerance: float = 1e-6) -> None:
    assert [g is None for g in ours] == [g is None for g in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        if mine is not None:
            torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)


def same_bits(results: list[list[Any]]) -> bool:
    return all(
        (a is None and b is None) or torch.equal(a, b)
        for other in results[1:]
        for a, b in zip(results[0], other, strict=True)
    )


# ---- The right gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_trains_like_one_process_on_the_whole_batch(world_size: int, inline: bool) -> None:
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
        with GradientSynchronizer(model, comm, inline=inline, **SMALL) as sync:
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


@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.parametrize("set_to_none", [True, False])
def test_accumulation_with_and_without_no_sync(set_to_none: bool, inline: bool) -> None:
    def body(comm: dcomm.Communicator) -> dict[str, Any]:
        found = {}
        for how in ("no_sync", "plain", "late"):
            model = seeded(Branches)
            sync = GradientSynchronizer(model, comm, inline=inline, **SMALL)
            for step in range(3):
                model.zero_grad(set_to_none=set_to_none)
                operations = comm.stats()["num_operations"]
                if how == "no_sync":
                    with sync.no_sync():
                        loss_of(model, step, 2 * comm.rank).backward()
                    assert comm.stats()["num_operations"] == operations
                    loss_of(model, step, 2 * comm.rank + 1).backward()
                else:
                    # Rank 0 runs one backward pass more than the others: the ranks must agree nevertheless.
                    loss_of(model, step, 2 * comm.rank).backward()
                    if how == "plain" or comm.rank == 0:
                        loss_of(model, step, 2 * comm.rank + 1).backward()
                sync.finish()
                found[how, step] = gradients(model)
            sync.close()
        return found

    results = run_threads(2, body)
    model = seeded(Branches)
    for how in ("no_sync", "plain", "late"):
        for step in range(3):
            reference = copy.deepcopy(model)
            parts = range(4) if how != "late" else (0, 1, 2)
            sum(loss_of(reference, step, part) / 2 for part in parts).backward()
            assert same_bits([result[how, step] for result in results])
            assert_close(results[0][how, step], gradients(reference))


def test_only_the_last_backward_outside_no_sync_is_reduced_once() -> None:
    def body(comm: dcomm.Communicator) -> tuple[int, int]:
        model = seeded(Branches)
        sync = GradientSynchronizer(model, comm, **SMALL)
        loss_of(model, 0, 0).backward()
        sync.finish()
        counts = []
        for passes in (1, 2):
            before = comm.stats()["num_operations"]
            for _ in range(passes):
                loss_of(model, 0, 0).backward()
            sync.finish()
            counts.append(comm.stats()["num_operations"] - before)
        return counts[0] - sync.num_buckets, counts[1] - 2 * sync.num_buckets

    assert run_threads(2, body) == [(1, 1)] * 2  # and one message to agree


@pytest.mark.parametrize("inline", [True, False])
def test_unused_parameters(inline: bool) -> None:
    """Rank r uses branch uses[step][r]; what nobody uses keeps None, what somebody uses is averaged with zeros."""
    uses = [[(0,), (0,), (0,)], [(0,), (1,), (0, 1)], [(1,), (1,), ()], [(), (), ()], [(0, 1), (0, 1), (0, 1)]]

    def body(comm: dcomm.Communicator) -> list[Any]:
        model = seeded(Branches)
        sync = GradientSynchronizer(model, comm, inline=inline, **SMALL)
        found = []
        for step, use in enumerate(uses):
            with sync.step():
                loss_of(model, step, comm.rank, use[comm.rank]).backward()
            found.append(gradients(model))
            model.zero_grad()
        return found

    results = run_threads(3, body)
    for step, use in enumerate(uses):
        reference = seeded(Branches)
        sum(loss_of(reference, step, part, use[part]) / 3 for part in range(3)).backward()
        assert same_bits([result[step] for result in results])
        assert_close(results[0][step], gradients(reference))


def test_gradients_of_two_passes_do_not_complete_a_bucket() -> None:
    class Either(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))

        def forward(self, *names: str) -> torch.Tensor:
            return sum(getattr(self, name).sum() for name in names)

    def body(comm: dcomm.Communicator) -> list[float]:
        model = Either()
        sync = GradientSynchronizer(model, comm)
        model("a", "b").backward()
        sync.finish()
        model.zero_grad()
        for names in ["a", "a"] if comm.rank == 0 else ["ab"]:
            model(*names).backward()
        sync.finish()
        return [float(model.a.grad[0]), float(model.b.grad[0])]

    assert run_threads(2, body) == [[1.5, 0.5]] * 2


def test_a_rank_without_backward_takes_part() -> None:
    def body(comm: dcomm.Communicator) -> float:
        model = nn.Linear(3, 1, bias=False)
        sync = GradientSynchronizer(model, comm)
        if comm.rank == 1:
            model(torch.ones(1, 3)).sum().backward()
        sync.finish()
        return float(model.weight.grad[0, 0])

    assert run_threads(2, body) == [0.5, 0.5]


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_that_do_what_they_like(world_size: int) -> None:
    """Every rank draws its own passes, branches, no_sync() and zero_grad(); only finish() is common."""
    num_steps = 40
    draw = random.Random(world_size)
    branches = [(), (0,), (1,), (0, 1)]
    program = [
        [
            [(draw.choice(branches), draw.random() < 0.6) for _ in range(draw.choice([0, 1, 1, 1, 2, 3]))]
            for _ in range(world_size)
        ]
        for _ in range(num_steps)
    ]
    to_none = [[draw.random() < 0.7 for _ in range(world_size)] for _ in range(num_steps)]

    def body(comm: dcomm.Communicator) -> list[Any]:
        model = seeded(Branches)
        with GradientSynchronizer(model, comm, inline=comm.rank == 1, **SMALL) as sync:
            found = []
            for step in range(num_steps):
                for number, (used, syncing) in enumerate(program[step][comm.rank]):
                    with nullcontext() if syncing else sync.no_sync():
                        loss_of(model, step, 10 * comm.rank + number, used).backward()
                sync.finish()
                found.append(gradients(model))
                model.zero_grad(set_to_none=to_none[step][comm.rank])
        return found

    results = run_threads(world_size, body)
    for step in range(num_steps):
        reference = seeded(Branches)
        for rank in range(world_size):
            for number, (used, _) in enumerate(program[step][rank]):
                (loss_of(reference, step, 10 * rank + number, used) / world_size).backward()
        for *ours, theirs in zip(*(result[step] for result in results), gradients(reference), strict=True):
            zeros = next((g for g in (*ours, theirs) if g is not None), torch.zeros(1)).mul(0)
            dense = [zeros if g is None else g for g in ours]
            assert same_bits([[g] for g in dense])
            torch.testing.assert_close(dense[0], zeros if theirs is None else theirs, rtol=1e-5, atol=1e-6)


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


def test_sum_instead_of_average() -> None:
    def body(comm: dcomm.Communicator) -> list[Any]:
        model = seeded(Branches)
        sync = GradientSynchronizer(model, comm, average=False, **SMALL)
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
        sync = GradientSynchronizer(model, comm, bucket_bytes=400, record_events=True)
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
        with _seeding:  # one compiler at a time
            compiled = torch.compile(model, backend="aot_eager")
            compiled(batch(0, 0))
        sync = GradientSynchronizer(compiled if comm.rank else model, comm, **SMALL)
        with _seeding:
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
            sync = GradientSynchronizer(model, comm, inline=True, **SMALL)
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


# ---- Models and synchronizers that are copied, saved, closed -----------------------------------------------


def test_the_model_stays_an_ordinary_model() -> None:
    def body(comm: dcomm.Communicator) -> None:
        model = seeded(Branches)
        names = list(model.state_dict())
        sync = GradientSynchronizer(model, comm)
        loss_of(model, 0, comm.rank).backward()
        sync.finish()
        assert list(model.state_dict()) == names
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
            operations = comm.stats()["num_operations"]
            loss_of(copied, 0, comm.rank).backward()  # a copy has no hooks
            assert comm.stats()["num_operations"] == operations
        for action in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match=r"keep its \.settings and make a new one"):
                action(sync)
        again = GradientSynchronizer(copied, comm, **sync.settings)
        assert again.settings == sync.settings

    run_threads(2, body)


def test_close_and_drop_remove_the_hooks() -> None:
    def body(comm: dcomm.Communicator) -> None:
        model = seeded(Branches)
        for how in ("close", "drop"):
            sync = GradientSynchronizer(model, comm)
            assert all(len(p._post_accumulate_grad_hooks) > 0 for p in model.parameters())
            if how == "close":
                sync.close()
                sync.close()
                with pytest.raises(RuntimeError, match="closed: make a new one"):
                    sync.finish()
            del sync
            assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
            operations = comm.stats()["num_operations"]
            loss_of(model, 0, comm.rank).backward()
            assert comm.stats()["num_operations"] == operations

    run_threads(2, body)


def test_a_forgotten_finish_is_noticed() -> None:
    model = nn.Linear(3, 1)
    with dcomm.init_threads(1)[0] as comm:
        sync = GradientSynchronizer(model, comm)
        for step in range(3):
            if step == 1:
                with pytest.warns(RuntimeWarning, match=r"finish\(\) was not called"):
                    model(torch.ones(1, 3)).sum().backward()
            else:  # it is said once
                model(torch.ones(1, 3)).sum().backward()
            model.zero_grad()
        sync.finish()


def test_a_dropped_step_leaves_no_trace() -> None:
    def body(comm: dcomm.Communicator) -> list[Any]:
        model = seeded(Branches)
        sync = GradientSynchronizer(model, comm, **SMALL)
        loss_of(model, 5, comm.rank).backward()
        sync.finish()
        model.zero_grad()
        loss_of(model, 0, comm.rank).backward()
        sync.finish()
        return gradients(model)

    assert_close(run_threads(2, body)[0], expected(seeded(Branches), 2, 0))


def test_a_failed_backward_can_be_followed_by_another() -> None:
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            raise ValueError("on purpose")

    def body(comm: dcomm.Communicator, deterministic: bool) -> list[Any]:
        model = seeded(Branches)
        sync = GradientSynchronizer(model, comm, deterministic=deterministic, inline=False, **SMALL)
        hidden = torch.relu(model.first(batch(0, 0)))
        with pytest.raises(ValueError, match="on purpose"):
            model.last(model.branches[0](Fails.apply(hidden))).sum().backward()
        sync.finish()
        model.zero_grad()
        loss_of(model, 1, comm.rank).backward()
        sync.finish()
        return gradients(model)

    for deterministic in (False, True):
        results = run_threads(2, lambda comm, deterministic=deterministic: body(comm, deterministic))
        assert_close(results[0], expected(seeded(Branches), 2, 1))


# ---- What is refused ---------------------------------------------------------------------------------------


def test_sparse_gradients() -> None:
    model = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Linear(3, 1))
    with dcomm.init_threads(1)[0] as comm:
        sync = GradientSynchronizer(model, comm)
        with pytest.raises(TypeError, match=r"parameter '0.weight' has a torch.sparse_coo gradient.*sparse=False"):
            model(torch.tensor([1, 2])).sum().backward()
        sync.close()


def test_bad_arguments() -> None:
    model = nn.Linear(3, 2)
    with dcomm.init_threads(1)[0] as comm:
        cases: list[tuple[type[Exception], str, Callable[[], Any]]] = [
            (TypeError, r"model is a list: expected a torch.nn.Module", lambda: GradientSynchronizer([], comm)),
            (TypeError, r"comm is a NoneType: expected a dcomm.Comm", lambda: GradientSynchronizer(model, None)),
            *[
                (error, text, lambda options=options: GradientSynchronizer(model, comm, **options))
                for error, text, options in [
                    (ValueError, "bucket_bytes=0: expected a positive", {"bucket_bytes": 0}),
                    (ValueError, "bucket_bytes='big': expected a positive", {"bucket_bytes": "big"}),
                    (ValueError, "bucket_bytes=True: expected a positive", {"bucket_bytes": True}),
                    (ValueError, "wire_dtype='int8': expected", {"wire_dtype": "int8"}),
                    (ValueError, "wire_dtype='float64': expected", {"wire_dtype": "float64"}),
                    (ValueError, "average='mean': expected", {"average": "mean"}),
                    (ValueError, "'microbatches' needs deterministic", {"average": "microbatches"}),
                    (TypeError, "deterministic=1: expected True or False", {"deterministic": 1}),
                    (ValueError, "leave one of them out", {"deterministic": True, "wire_dtype": "fp16"}),
                ]
            ],
            (
                ValueError,
                "'weight' is on the meta device.*to_empty",
                lambda: GradientSynchronizer(nn.Linear(3, 2, device="meta"), comm),
            ),
            (
                ValueError,
                "'weight' is a lazy parameter.*run one forward",
                lambda: GradientSynchronizer(nn.LazyLinear(2), comm),
            ),
            (
                ValueError,
                "no parameter that requires a gradient",
                lambda: GradientSynchronizer(nn.Linear(3, 2).requires_grad_(False), comm),
            ),
            (
                TypeError,
                "parameter 'weight' is float8_e5m2: expected one of float32",
                lambda: GradientSynchronizer(nn.Linear(3, 2).to(torch.float8_e5m2), comm),
            ),
        ]
        for error, text, call in cases:
            with pytest.raises(error, match=text):
                call()
        sync = GradientSynchronizer(model, comm)
        for call in (sync.timeline, lambda: sync.mark("forward")):
            with pytest.raises(RuntimeError, match="record_events=True"):
                call()
        sync.close()


def test_a_model_on_a_gpu_is_refused_with_a_typed_error() -> None:
    class OnGpu(nn.Module):
        def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
            class Fake:
                device = torch.device("cuda", 0)
                shape = (2,)
                dtype = torch.float32
                requires_grad = True
                layout = torch.strided

                def is_contiguous(self) -> bool:
                    return True

            return iter([("weight", Fake())])

    with dcomm.init_threads(1)[0] as comm, pytest.raises(dcomm.CudaError, match=r"'weight' is on cuda:0.*CPU models"):
        GradientSynchronizer(OnGpu(), comm)


MODELS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], str]] = {
    "shape": (lambda: nn.Linear(4, 2), {}, r"'weight' \(2, 3\) float32 on cpu; rank 2 has parameter 'weight' \(2, 4\)"),
    "dtype": (lambda: nn.Linear(3, 2).double(), {}, r"float32 on cpu; rank 2 has parameter 'weight' \(2, 3\) float64"),
    "count": (lambda: nn.Linear(3, 2, bias=False), {}, r"'bias' \(2,\) float32 on cpu; rank 2 has nothing more"),
    "frozen": (lambda: nn.Linear(3, 2).requires_grad_(False), {}, r"rank 2 has parameter 'weight' \(2, 3\) .* frozen"),
    "settings": (lambda: nn.Linear(3, 2), {"average": False}, r"average=True, .*; rank 2 has .*average=False"),
    "device": (lambda: nn.Linear(3, 2, device="meta"), {}, r"on cpu; rank 2 has parameter 'weight' \(2, 3\) .* meta"),
}


@pytest.mark.parametrize("name", MODELS)
def test_ranks_that_differ_are_told_so_and_the_communicator_lives(name: str) -> None:
    make, options, text = MODELS[name]

    def body(comm: dcomm.Communicator) -> float:
        last = comm.rank == 2
        with pytest.raises(dcomm.MismatchError, match=f"rank 0 has .*{text}"):
            GradientSynchronizer(make() if last else nn.Linear(3, 2), comm, **(options if last else {}))
        return float(comm.all_reduce(np.ones(1, np.float32))[0])

    assert run_threads(3, body) == [3.0] * 3


def test_parameters_and_buffers_come_from_rank_0() -> None:
    class Buffered(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((3, 2), value).t())
            self.register_buffer("mean", torch.full((4,), value))
            self.register_buffer("count", torch.tensor(int(value)))
            self.register_buffer("flags", torch.tensor([value > 0]))
            self.register_buffer("small", torch.full((3,), int(value), dtype=torch.int16))
            self.register_buffer("none", torch.zeros(0))

    def body(comm: dcomm.Communicator) -> list[list[float]]:
        found = []
        for broadcast in (True, False):
            model = Buffered(float(comm.rank))
            GradientSynchronizer(model, comm, broadcast=broadcast).close()
            found.append([float(t.flatten()[-1]) for t in model.state_dict().values() if t.numel()])
        return found

    for rank, found in enumerate(run_threads(3, body)):
        assert found == [[0.0] * 5, [float(rank)] * 3 + [float(rank > 0)] + [float(rank)]]


def test_a_failed_collective_raises_its_own_error() -> None:
    def body(comm: dcomm.Communicator, inline: bool, where: str) -> Any:
        model = seeded(Branches)
        sync = GradientSynchronizer(model, comm, inline=inline, **SMALL)
        loss_of(model, 0, comm.rank).backward()
        sync.finish()
        model.zero_grad()
        if comm.rank == 1:
            comm.close()
            return None
        with pytest.raises(dcomm.PeerLostError, match="rank 1"):
            if where == "finish":
                with sync.no_sync():
                    loss_of(model, 1, comm.rank).backward()
                sync.finish()
            else:
                loss_of(model, 1, comm.rank).backward()
        with pytest.raises(dcomm.PeerLostError):
            sync.finish()
        sync.close()
        return "raised"

    for inline in (True, False):
        for where in ("backward", "finish"):
            outcomes = thread_outcomes(2, lambda comm, inline=inline, where=where: body(comm, inline, where))
            assert outcomes == ["raised", None]


# ---- Events ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inline", [True, False])
def test_timeline(inline: bool) -> None:
    def body(comm: dcomm.Communicator) -> list[Any]:
        model = seeded(Branches)
        sync = GradientSynchronizer(model, comm, inline=inline, record_events=True, **SMALL)
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
        assert kinds.index("launched") < last  # before the last gradient was there
        return events

    run_threads(2, body)


def test_inline_is_chosen_by_the_cpus_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for num_cpus, world_size, inline in [(2, 2, True), (4, 2, False), (3, 2, True), (1, 1, True), (2, 1, False)]:
        monkeypatch.setattr("os.sched_getaffinity", lambda pid, num_cpus=num_cpus: set(range(num_cpus)))

        def body(comm: dcomm.Communicator) -> bool:
            model = nn.Linear(2, 2)
            sync = GradientSynchronizer(model, comm)
            F.relu(model(torch.ones(1, 2))).sum().backward()
            sync.finish()
            return sync._inline

        assert run_threads(world_size, body) == [inline] * world_size
