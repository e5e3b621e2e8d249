"""What torch.compile traces and guards, and the order of collectives in its graphs."""

from __future__ import annotations

from typing import Any

import torch
from operator_checks import ROWS, check, compiled
from torch._dynamo.testing import CompileCounterWithBackend

import dcomm
from dcomm.torch import functional

_global_comm: Any = None


class Layer(torch.nn.Module):
    def __init__(self, comm: dcomm.Communicator) -> None:
        super().__init__()
        self.comm = comm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.all_reduce(x, self.comm) / self.comm.world_size + self.comm.rank


@check
def wherever_the_communicator_is(comm: dcomm.Communicator) -> None:
    global _global_comm
    _global_comm = comm
    expected = torch.full((3,), float(comm.world_size))

    def from_global(x: torch.Tensor) -> torch.Tensor:
        return functional.all_reduce(x, _global_comm)

    def from_argument(x: torch.Tensor, given: dcomm.Communicator) -> torch.Tensor:
        return functional.all_reduce(x, given)

    x = torch.ones(3)
    assert torch.equal(compiled(from_global, "aot_eager")(x), expected)
    assert torch.equal(compiled(lambda x: functional.all_reduce(x, comm), "aot_eager")(x), expected)
    assert torch.equal(compiled(from_argument, "aot_eager")(x, comm), expected)
    assert torch.equal(compiled(Layer(comm), "aot_eager")(x), torch.ones(3) + comm.rank)
    _global_comm = None


@check
def another_communicator_recompiles(comm: dcomm.Communicator) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    layer = Layer(comm)
    other, alone = comm.split(0), comm.split(comm.rank)
    call = torch.compile(layer, fullgraph=True, backend=counter)
    for used, num_graphs in ((comm, 1), (comm, 1), (other, 2), (comm, 2), (alone, 3)):
        layer.comm = used
        before = used.stats()["num_operations"]
        assert torch.equal(call(torch.ones(2)), torch.ones(2) + used.rank)
        assert used.stats()["num_operations"] == before + 1
        assert counter.frame_count == num_graphs
    other.close()
    alone.close()


@check
def dynamic_shapes(comm: dcomm.Communicator) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    n = comm.world_size

    def body(x: torch.Tensor) -> torch.Tensor:
        part = functional.reduce_scatter(functional.all_reduce(x, comm), comm)
        return functional.all_to_all(functional.all_gather(part, comm), comm).sum() * x.shape[0]

    call = torch.compile(body, fullgraph=True, backend=counter, dynamic=True)
    for rows in (ROWS, 2 * ROWS, 5 * ROWS):
        x = torch.ones(rows, 3, requires_grad=True)
        y = call(x)
        y.backward()
        assert y.item() == rows * 3 * n * n * rows
        assert torch.equal(x.grad, torch.full_like(x, rows * n**2))
    assert counter.frame_count == 1


def many_collectives(x: torch.Tensor, comm: dcomm.Communicator) -> list[torch.Tensor]:
    """Independent collectives of different kinds and counts: in another order they would not go together.

    Hardly any arithmetic in between, so that Inductor has little to compile.
    """
    results = [
        functional.all_gather(x[:1], comm),
        functional.all_reduce(x[:5], comm),
        functional.broadcast(x[:7], comm),
    ]
    y = x.clone()
    results.append(functional.all_reduce_(y, comm))
    results.append(functional.reduce_scatter(x[:ROWS], comm))
    results.append(functional.sum_over_ranks(functional.sum_gradients(x[:3], comm), comm))
    results.append(functional.all_reduce(x[:2], comm))
    return results


def few_of(results: list[torch.Tensor]) -> list[torch.Tensor]:
    return [results[-1], results[4]]


def compare_order(comm: dcomm.Communicator, backend: str, with_gradients: tuple[bool, ...]) -> None:
    """Rank 0 runs as written and uses everything; the others run what a compiler made, and use little of it."""
    for gradients in with_gradients:
        x = torch.ones(ROWS + 1, requires_grad=gradients)
        before = comm.stats()["num_operations"]
        if comm.rank == 0:
            many_collectives(x, comm)
        else:
            compiled(lambda x: few_of(many_collectives(x, comm)), backend)(x)
        assert comm.stats()["num_operations"] == before + 7


@check
def order(comm: dcomm.Communicator) -> None:
    compare_order(comm, "aot_eager", (False, True))


@check
def order_inductor(comm: dcomm.Communicator) -> None:
    compare_order(comm, "inductor", (False,))


@check
def backward_order(comm: dcomm.Communicator) -> None:
    gradients = []
    for backend in ("uncompiled", "aot_eager" if comm.rank else "uncompiled"):
        x = torch.ones(ROWS + 1, requires_grad=True)
        results = compiled(lambda x: many_collectives(x, comm), backend)(x)
        sum((result * number).sum() for number, result in enumerate(results, 1)).backward()
        gradients.append(x.grad)
    torch.testing.assert_close(gradients[1], gradients[0])
