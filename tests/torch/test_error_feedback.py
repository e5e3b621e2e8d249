"""Error feedback: what a wire rounds away comes later, through scalers, skipped steps, checkpoints and new buckets."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from rank_threads import run_threads, thread_outcomes  # noqa: E402
from synchronizer_cases import SMALL, Branches, gradients, loss_of, same_bits, seeded  # noqa: E402
from torch import nn  # noqa: E402

import dcomm  # noqa: E402
from dcomm.torch import GradientSynchronizer  # noqa: E402
from dcomm.torch.error_feedback import wire_round_trip  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

UNITS = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
# Opposite on two ranks, so nothing of it is in the mean; its rounding is 1000 times what the mean's own rounding is.
APART = 1000.0


class Vector(nn.Module):
    """The gradient of (weight * c).sum() is c."""

    def __init__(self, count: int = 1000) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(count))

    def forward(self, c: torch.Tensor) -> torch.Tensor:
        return (self.weight * c).sum()


def parts(rank: int, step: int, world_size: int) -> torch.Tensor:
    """Gradients of which the mean is small and the ranks' own are large."""
    shared = torch.randn(1000, generator=torch.Generator().manual_seed(step))
    apart = torch.rand(1000, generator=torch.Generator().manual_seed(99)) * APART
    weights = [1.0] if world_size == 1 else [1.0, -1.0] if world_size == 2 else [2.0, -1.0, -1.0]
    return shared * 0.1 + weights[rank] * apart


@pytest.mark.parametrize("wire", ["float16", "bfloat16"])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_round_trip_has_the_bits_of_the_wire(wire: str, world_size: int) -> None:
    halves = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(getattr(torch, wire)).float()
    finite = halves[halves.isfinite()].sort().values
    between = (finite[1:].double() + finite[:-1].double()) / 2
    odd = torch.tensor([65519.99, 65520.0, 1e30, 3.4e38, 1e-45, -1e-41, float("inf"), -float("inf"), float("nan")])
    noise = torch.randn(9999, generator=torch.Generator().manual_seed(0))
    for divisor, op in ((world_size, "avg"), (1, "sum")):
        scaled = torch.cat([halves, between.float(), odd, noise]) * divisor

        def body(comm: dcomm.Communicator, x: torch.Tensor = scaled, op: str = op) -> list[torch.Tensor]:
            mine = x if comm.rank == 0 else torch.full_like(x, -0.0)  # adds nothing, not even a sign
            algos = ("one_shot", "two_shot")
            return [comm.all_reduce(mine.clone(), op, wire_dtype=wire, algo=algo) for algo in algos]

        expected = wire_round_trip(scaled, wire, divisor)
        for found in run_threads(world_size, body)[0]:
            assert torch.equal(found.isnan(), expected.isnan())
            assert torch.equal(found.nan_to_num(7).view(torch.int32), expected.nan_to_num(7).view(torch.int32))


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(("world_size", "wire"), [(1, "float16"), (2, "float16"), (3, "bfloat16")])
def test_what_was_applied_and_what_is_owed_are_the_gradients(world_size: int, wire: str, overlap: bool) -> None:
    steps = 30

    def body(comm: dcomm.Communicator, feedback: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        model = Vector()
        applied, size = torch.zeros(1000, dtype=torch.float64), torch.zeros(1000, dtype=torch.float64)
        settings: dict[str, Any] = {"wire_dtype": wire, "error_feedback": feedback, "average": world_size != 3}
        with GradientSynchronizer(model, comm, overlap=overlap, **settings) as sync:
            for step in range(steps):
                model(parts(comm.rank, step, world_size)).backward()
                sync.finish()
                applied += model.weight.grad
                size += model.weight.grad.abs()
                model.zero_grad(set_to_none=step % 2 == 0)
            owed = sync.state_dict()["residuals"]
        return applied, size, owed["weight"].double() if feedback else torch.zeros(1000)

    divisor = world_size if world_size != 3 else 1
    true = sum(parts(r, s, world_size).double() for r in range(world_size) for s in range(steps)) / divisor
    missing = {}
    for feedback in (True, False):
        results = run_threads(world_size, lambda comm, feedback=feedback: body(comm, feedback))
        assert all(torch.equal(result[0], results[0][0]) for result in results)
        total = results[0][0] + sum(result[2] for result in results) / divisor
        missing[feedback] = (total - true).abs()
        # Of one rank the result is on the wire's grid already, and is not rounded a second time.
        bound = results[0][1] * UNITS[wire] * (world_size > 1) + 1e-6 * steps * APART
        if feedback:
            assert bool((missing[True] <= bound).all()), (missing[True] - bound).max()
    assert missing[False].max() > 20 * missing[True].max()  # so that the bound means something


def test_a_coarse_wire_stalls_without_and_converges_with_it() -> None:
    def body(comm: dcomm.Communicator, feedback: bool) -> float:
        model = Vector(64)
        nn.init.ones_(model.weight)
        apart = (comm.rank * 2 - 1) * torch.linspace(900, 1100, 64)  # this rank's optimum; that of all is 0
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        with GradientSynchronizer(model, comm, wire_dtype="bf16", error_feedback=feedback) as sync:
            for _ in range(100):
                (model.weight - apart).square().sum().div(2).backward()
                sync.finish()
                optimizer.step()
                optimizer.zero_grad()
        return float(model.weight.detach().abs().max())

    without, with_it = (run_threads(2, lambda comm, on=on: body(comm, on))[0] for on in (False, True))
    print(f"distance from the optimum, bfloat16 wire: {without:.3f} without, {with_it:.3f} with error feedback")
    assert without > 0.9  # has not moved where it is rounded away
    assert with_it < 0.2


@pytest.mark.parametrize("host_waits", [True, False])
def test_scaler_whose_scale_changes_and_steps_that_it_skips(host_waits: bool) -> None:
    infinite = (3, 7)

    def body(comm: dcomm.Communicator) -> dict[str, Any]:
        model = Vector()
        scaler = torch.amp.GradScaler("cpu", init_scale=16.0, growth_interval=2)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        applied, scales, sizes = torch.zeros(1000, dtype=torch.float64), [], torch.zeros(1000, dtype=torch.float64)
        with GradientSynchronizer(model, comm, wire_dtype="fp16", error_feedback=True, grad_scaler=scaler) as sync:
            assert sync._feedback is not None
            sync._feedback._may_wait = host_waits  # on a GPU it does not
            for step in range(12):
                before, weights = sync.state_dict()["residuals"]["weight"], model.weight.detach().clone()
                mine = parts(comm.rank, step, 2)
                if step in infinite and comm.rank == 1:
                    mine[5] = float("inf") if step == infinite[0] else float("nan")
                scales.append(scaler.get_scale())
                scaler.scale(model(mine)).backward()
                sync.finish()
                assert bool(model.weight.grad.isfinite().all()) == (step not in infinite)
                scaler.step(optimizer)
                scaler.update()
                if step in infinite:
                    assert torch.equal(sync.state_dict()["residuals"]["weight"], before)
                    assert torch.equal(model.weight, weights)
                applied += weights - model.weight.detach()
                sizes += (weights - model.weight.detach()).abs()
                optimizer.zero_grad()
            owed = sync.state_dict()["residuals"]["weight"]
        return {"applied": applied, "owed": owed.double(), "scales": scales, "sizes": sizes}

    first, second = run_threads(2, body)
    assert len(set(first["scales"])) > 1
    assert torch.equal(first["applied"], second["applied"])
    true = sum(parts(r, s, 2).double() for r in range(2) for s in range(12) if s not in infinite) / 2
    missing = (first["applied"] + (first["owed"] + second["owed"]) / 2 - true).abs()
    assert bool((missing <= first["sizes"] * UNITS["float16"] + 1e-3).all()), missing.max()
    assert first["owed"].abs().max() > 0.1


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("how", ["no_sync", "plain", "late", "forgotten", "unused"])
def test_each_step_accounts_for_everything(how: str, overlap: bool) -> None:
    """applied = mean over ranks of (gradient + owed before - owed after), also with several passes and unused parts."""

    def loss(model: nn.Module, step: int, rank: int, number: int, used: tuple[int, ...]) -> torch.Tensor:
        in_use = [p for name, p in model.named_parameters() if 1 in used or not name.startswith("branches.1")]
        apart = sum(p.sum() for p in in_use) * (APART if rank == 0 else -APART)
        return loss_of(model, step, 2 * rank + number, used) + apart

    def body(comm: dcomm.Communicator) -> list[dict[str, Any]]:
        model = seeded(Branches)
        found = []
        with GradientSynchronizer(
            model, comm, wire_dtype="fp16", error_feedback=True, overlap=overlap, **SMALL
        ) as sync:
            for step in range(4):
                used = (0,) if how == "unused" and step % 2 else (0, 1)
                before = sync.state_dict()["residuals"]
                model.zero_grad(set_to_none=how != "plain")
                num_passes = 1 if how == "unused" or (how == "late" and comm.rank == 1) else 2
                true = [torch.zeros_like(p) for p in model.parameters()]
                for number in range(num_passes):
                    if how == "forgotten" and number == 1 and step > 0:
                        model.zero_grad()
                        true = [torch.zeros_like(p) for p in model.parameters()]
                    with sync.no_sync() if how == "no_sync" and number == 0 else contextlib.nullcontext():
                        loss(model, step, comm.rank, number, used).backward()
                    own = seeded(Branches)
                    loss(own, step, comm.rank, number, used).backward()
                    for total, one in zip(true, gradients(own), strict=True):
                        if one is not None:
                            total += one
                sync.finish()
                after = sync.state_dict()["residuals"]
                assert [name for name, _ in model.named_parameters()] == list(after)
                if how == "unused" and step % 2:
                    assert model.branches[1].weight.grad is None
                    assert torch.equal(before["branches.1.weight"], after["branches.1.weight"])
                found.append(
                    {
                        "applied": [0.0 if g is None else g for g in gradients(model)],
                        "said": [t + b - a for t, b, a in zip(true, before.values(), after.values(), strict=True)],
                        "owed": max(float(one.abs().max()) for one in after.values()),
                    }
                )
        return found

    forgotten = pytest.warns(RuntimeWarning, match="finish") if how == "forgotten" else contextlib.nullcontext()
    with forgotten:
        first, second = run_threads(2, body)
    for mine, theirs in zip(first, second, strict=True):
        assert mine["owed"] > 0.1
        for applied, one, other in zip(mine["applied"], mine["said"], theirs["said"], strict=True):
            torch.testing.assert_close(torch.as_tensor(applied) + 0 * one, (one + other) / 2, rtol=1e-3, atol=2e-3)


def train(comm: dcomm.Communicator, sync: GradientSynchronizer, model: nn.Module, steps: range) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in steps:
        loss_of(model, step, comm.rank).backward()
        sync.finish()
        optimizer.step()
        optimizer.zero_grad()


def test_a_saved_state_goes_on_where_it_was() -> None:
    settings: dict[str, Any] = {"wire_dtype": "bf16", "error_feedback": True, **SMALL}

    def body(comm: dcomm.Communicator) -> list[list[torch.Tensor]]:
        whole = seeded(Branches)
        with GradientSynchronizer(whole, comm, **settings) as sync:
            train(comm, sync, whole, range(6))
        ends = [[p.detach() for p in whole.parameters()]]
        for keep in (True, False):
            half = seeded(Branches)
            with GradientSynchronizer(half, comm, **settings) as sync:
                train(comm, sync, half, range(3))
                state = sync.state_dict()
            with GradientSynchronizer(half, comm, **settings) as sync:
                # Its buckets are laid out anew in its first step, and what is owed moves with them.
                sync.load_state_dict(state if keep else {**state, "residuals": None})
                assert sync.bucket_bytes == 2000
                train(comm, sync, half, range(3, 6))
            ends.append([p.detach() for p in half.parameters()])
        return ends

    for whole, resumed, without in run_threads(2, body):
        assert same_bits([whole, resumed])
        assert not same_bits([whole, without])


def test_what_is_owed_moves_with_the_parameters() -> None:
    class Turned(nn.Module):  # runs in the other order than it is registered, so that its buckets move
        def __init__(self) -> None:
            super().__init__()
            self.last, self.middle, self.first = nn.Linear(40, 9), nn.Linear(30, 40), nn.Linear(9, 30)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.middle(self.first(x)))

    def body(comm: dcomm.Communicator) -> None:
        model, plain = seeded(Turned), seeded(Turned)
        loss_of(plain, 0, comm.rank).backward()
        with GradientSynchronizer(model, comm, wire_dtype="fp16", error_feedback=True, bucket_bytes=500) as sync:
            plan = sync._buckets.plan
            loss_of(model, 0, comm.rank).backward()
            sync.finish()
            assert sync._buckets.plan != plan
            for (name, owed), g in zip(sync.state_dict()["residuals"].items(), gradients(plain), strict=True):
                assert torch.equal(owed, g - 2 * (g / 2).half().float()), name

    run_threads(2, body)


def test_other_dtypes_owe_nothing() -> None:
    def body(comm: dcomm.Communicator) -> list[str]:
        model = nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9, dtype=torch.float64))
        with GradientSynchronizer(model, comm, wire_dtype="fp16", error_feedback=True) as sync:
            for step in range(3):
                sum(p.sum() * (step + 0.1) for p in model.parameters()).backward()
                sync.finish()
                assert torch.equal(model[1].weight.grad, torch.full((9, 9), step + 0.1, dtype=torch.float64))
                model.zero_grad()
            return list(sync.state_dict()["residuals"])

    assert run_threads(2, body) == [["0.weight", "0.bias"]] * 2


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"error_feedback": True}, ValueError, "error_feedback=True without a wire_dtype"),
        ({"error_feedback": 1, "wire_dtype": "fp16"}, TypeError, "error_feedback=1: expected True or False"),
        ({"wire_dtype": "fp16", "grad_scaler": object()}, ValueError, "grad_scaler is for error_feedback=True"),
        (
            {"wire_dtype": "fp16", "error_feedback": True, "grad_scaler": 3.0},
            TypeError,
            "grad_scaler is a float: expected a torch.amp.GradScaler",
        ),
    ],
)
def test_bad_settings(settings: dict[str, Any], error: type[Exception], text: str) -> None:
    with dcomm.init_threads(1)[0] as comm, pytest.raises(error, match=text):
        GradientSynchronizer(nn.Linear(3, 2), comm, **settings)
    with pytest.raises(ValueError, match="wire_dtype='int8': expected one of float16"):
        wire_round_trip(torch.ones(1), "int8")


def test_states_that_do_not_fit() -> None:
    good = {"world_size": 1, "bucket_bytes": None, "residuals": {"weight": torch.ones(2, 3), "bias": torch.ones(2)}}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"bucket_bytes": -1}, "bucket_bytes=-1: expected a positive"),
        ({"world_size": 4}, "the residuals are of 4 ranks, here are 1"),
        ({"residuals": {"weight": torch.ones(2, 3)}}, "one side lacks 'bias'"),
        (
            {"residuals": {"weight": torch.ones(3, 2), "bias": torch.ones(2)}},
            r"'weight' is \(3, 2\): expected \(2, 3\)",
        ),
        ({"residuals": [1]}, "one side lacks 'bias', 'weight'"),
    ]
    with dcomm.init_threads(1)[0] as comm:
        sync = GradientSynchronizer(nn.Linear(3, 2), comm, wire_dtype="fp16", error_feedback=True)
        for change, text in cases:
            with pytest.raises(ValueError, match=text):
                sync.load_state_dict({**good, **change})
        sync.load_state_dict(good)
        assert torch.equal(sync.state_dict()["residuals"]["bias"], torch.ones(2))
        sync.close()
        plain = GradientSynchronizer(nn.Linear(3, 2), comm)
        with pytest.raises(ValueError, match="the state has residuals: make the synchronizer with error_feedback=True"):
            plain.load_state_dict(good)
        assert plain.state_dict()["residuals"] is None
        plain.close()
        with pytest.raises(RuntimeError, match="closed"):
            plain.load_state_dict(good)


def test_ranks_with_other_states_all_raise() -> None:
    def body(comm: dcomm.Communicator) -> None:
        sync = GradientSynchronizer(nn.Linear(3, 2), comm, wire_dtype="fp16", error_feedback=True)
        state = sync.state_dict()
        if comm.rank == 1:
            state["residuals"].pop("bias")
        sync.load_state_dict(state)

    for outcome in thread_outcomes(2, body):
        assert isinstance(outcome, dcomm.MismatchError)
        assert "rank 1 has residuals: expected those of the 2" in str(outcome)
