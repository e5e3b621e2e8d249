"""Several backward passes, unused parameters, and ranks that do different things before one finish()."""

from __future__ import annotations

import copy
import random
from contextlib import nullcontext
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from rank_threads import run_threads  # noqa: E402
from synchronizer_cases import SMALL, Branches, assert_close, batch, expected, gradients, loss_of, same_bits, seeded  # noqa: E402
from torch import nn  # noqa: E402

import dcomm  # noqa: E402
from dcomm.torch import GradientSynchronizer  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("set_to_none", [True, False])
def test_accumulation_with_and_without_no_sync(set_to_none: bool, overlap: bool) -> None:
    def body(comm: dcomm.Communicator) -> dict[str, Any]:
        found = {}
        for how in ("no_sync", "plain", "late"):
            model = seeded(Branches)
            sync = GradientSynchronizer(model, comm, overlap=overlap, **SMALL)
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


@pytest.mark.parametrize("overlap", [False, True])
def test_a_bucket_that_changes_after_its_reduction_is_reduced_again(overlap: bool) -> None:
    def body(comm: dcomm.Communicator) -> tuple[int, int]:
        model = seeded(Branches)
        sync = GradientSynchronizer(model, comm, overlap=overlap, **SMALL)
        loss_of(model, 0, 0).backward()
        sync.finish()
        counts = []
        for passes in (1, 2):
            before = comm.stats()["num_operations"]
            for _ in range(passes):
                loss_of(model, 0, 0).backward()
            sync.finish()
            counts.append(comm.stats()["num_operations"] - before)
        # One message is there to agree. Without overlap nothing is reduced before finish(), and so nothing again.
        return counts[0] - sync.num_buckets, counts[1] - (2 if overlap else 1) * sync.num_buckets

    assert run_threads(2, body) == [(1, 1)] * 2


@pytest.mark.parametrize("overlap", [False, True])
def test_unused_parameters(overlap: bool) -> None:
    """Rank r uses branch uses[step][r]; what nobody uses keeps None, what somebody uses is averaged with zeros."""
    uses = [[(0,), (0,), (0,)], [(0,), (1,), (0, 1)], [(1,), (1,), ()], [(), (), ()], [(0, 1), (0, 1), (0, 1)]]

    def body(comm: dcomm.Communicator) -> list[Any]:
        model = seeded(Branches)
        sync = GradientSynchronizer(model, comm, overlap=overlap, **SMALL)
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
        with GradientSynchronizer(model, comm, overlap=comm.rank != 1, **SMALL) as sync:
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
        sync = GradientSynchronizer(model, comm, deterministic=deterministic, overlap=True, **SMALL)
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
