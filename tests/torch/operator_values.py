"""Every function of dcomm.torch.functional, beside the same arithmetic on all ranks' tensors in one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from operator_checks import ROWS, check, compiled, raises, uneven

import dcomm
from dcomm.torch import functional


def total(xs: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(xs).sum(0)


def exchanged(xs: list[torch.Tensor], counts: list[list[int]]) -> list[torch.Tensor]:
    blocks = [x.split(row) for x, row in zip(xs, counts, strict=True)]
    return [torch.cat([blocks[source][rank] for source in range(len(xs))]) for rank in range(len(xs))]


def uneven_all_to_all(x: torch.Tensor, comm: dcomm.Communicator, rank: int, n: int) -> torch.Tensor:
    counts = uneven(n)
    return functional.all_to_all(x, comm, counts[rank], [row[rank] for row in counts])


def in_place(x: torch.Tensor, comm: dcomm.Communicator, function: Any, *args: Any) -> torch.Tensor:
    y = x * 1
    assert function(y, comm, *args) is y
    return y


# name -> (what this rank calls, what it should be for all ranks' inputs)
CASES: dict[str, tuple[Callable[..., torch.Tensor], Callable[[list[torch.Tensor]], list[torch.Tensor]]]] = {
    "all_reduce": (lambda x, c, r, n: functional.all_reduce(x, c), lambda xs: [total(xs)] * len(xs)),
    "avg": (lambda x, c, r, n: functional.all_reduce(x, c, "avg"), lambda xs: [total(xs) / len(xs)] * len(xs)),
    "all_reduce_": (lambda x, c, r, n: in_place(x, c, functional.all_reduce_), lambda xs: [total(xs)] * len(xs)),
    "reduce_scatter": (
        lambda x, c, r, n: functional.reduce_scatter(x, c),
        lambda xs: list(total(xs).chunk(len(xs))),
    ),
    "reduce_scatter avg": (
        lambda x, c, r, n: functional.reduce_scatter(x, c, "avg"),
        lambda xs: list((total(xs) / len(xs)).chunk(len(xs))),
    ),
    "all_gather": (lambda x, c, r, n: functional.all_gather(x, c), lambda xs: [torch.cat(xs)] * len(xs)),
    "all_gather of scalars": (
        lambda x, c, r, n: functional.all_gather(x.sum(), c),
        lambda xs: [torch.stack([x.sum() for x in xs])] * len(xs),
    ),
    "all_to_all": (
        lambda x, c, r, n: functional.all_to_all(x, c),
        lambda xs: exchanged(xs, [[ROWS // len(xs)] * len(xs)] * len(xs)),
    ),
    "uneven all_to_all": (uneven_all_to_all, lambda xs: exchanged(xs, uneven(len(xs)))),
    "broadcast": (lambda x, c, r, n: functional.broadcast(x, c, 1), lambda xs: [xs[1]] * len(xs)),
    "broadcast_": (lambda x, c, r, n: in_place(x, c, functional.broadcast_, 1), lambda xs: [xs[1]] * len(xs)),
    "reduce": (
        lambda x, c, r, n: functional.reduce(x, c, dst=1),
        lambda xs: [total(xs) if r == 1 else torch.zeros_like(xs[0]) for r in range(len(xs))],
    ),
    "reduce avg": (
        lambda x, c, r, n: functional.reduce(x, c, "avg", dst=1),
        lambda xs: [total(xs) / len(xs) if r == 1 else torch.zeros_like(xs[0]) for r in range(len(xs))],
    ),
}


def compare_cases(comm: dcomm.Communicator, backend: str) -> None:
    rank, n = comm.rank, comm.world_size
    for name, (ours, reference) in CASES.items():
        torch._dynamo.reset()  # each case is another graph of the same code: no limit of recompilations is at stake
        # Whole numbers, so that every order of summation gives the same; transposed, so not contiguous.
        leaves = [torch.randint(-8, 8, (3, ROWS)).double().requires_grad_() for _ in range(n)]
        weights = [torch.randint(-8, 8, (n * ROWS * 3,)).double() for _ in range(n)]
        losses = []
        for r, y in enumerate(reference([leaf.t() for leaf in leaves])):
            losses.append((y.reshape(-1) * weights[r][: y.numel()]).sum())
            if r == rank:
                expected = y.detach()
        torch.stack(losses).sum().backward()

        def step(x: torch.Tensor, weight: torch.Tensor, ours: Any = ours) -> tuple[torch.Tensor, torch.Tensor]:
            y = ours(x.t(), comm, rank, n)
            return y, (y.reshape(-1) * weight[: y.numel()]).sum()

        mine = leaves[rank].detach().clone().requires_grad_()
        before = mine.detach().clone()
        y, loss = compiled(step, backend)(mine, weights[rank])
        loss.backward()
        assert torch.equal(y, expected), (name, y, expected)
        assert y.is_contiguous() or name.endswith("_"), name
        gradient = torch.zeros_like(mine) if leaves[rank].grad is None else leaves[rank].grad
        assert torch.equal(mine.grad, gradient), (name, mine.grad, gradient)
        assert torch.equal(mine, before), f"{name} wrote to its input"


@check
def values_and_gradients(comm: dcomm.Communicator) -> None:
    compare_cases(comm, "uncompiled")


@check
def values_and_gradients_compiled(comm: dcomm.Communicator) -> None:
    compare_cases(comm, "aot_eager")


@check
def in_place_writes_there(comm: dcomm.Communicator) -> None:
    for backend in ("uncompiled", "aot_eager"):
        whole = torch.ones(4, 6)
        view = whole[:, ::2]  # not contiguous, shares memory
        compiled(lambda x: functional.all_reduce_(x, comm) * 1, backend)(view)
        assert whole.sum() == 12 + 12 * comm.world_size, (backend, whole)
        mine = torch.full((5,), float(comm.rank))
        compiled(lambda x: functional.broadcast_(x, comm, 1) * 1, backend)(mine)
        assert torch.equal(mine, torch.ones(5)), backend


@check
def nothing_is_shared_with_the_input(comm: dcomm.Communicator) -> None:
    alone = comm.split(comm.rank)  # one rank: where a result could be the input itself
    for on in (comm, alone):
        x = torch.ones(4)
        for y in (
            functional.all_reduce(x, on),
            functional.reduce_scatter(x, on),
            functional.all_gather(x, on),
            functional.all_to_all(x, on),
            functional.broadcast(x, on),
            functional.reduce(x, on),
        ):
            assert y.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
    alone.close()


@check
def no_gradient_of_max(comm: dcomm.Communicator) -> None:
    x = torch.ones(3, requires_grad=True)
    y = functional.all_reduce(x * comm.rank, comm, "max")
    assert y.tolist() == [comm.world_size - 1] * 3
    with raises(ValueError, "the gradient of all_reduce with op='max': expected 'sum' or 'avg'"):
        y.sum().backward()
