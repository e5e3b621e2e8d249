"""Rank processes of test_operators.py: each check has communicators of its own, and all ranks go through all checks."""

from __future__ import annotations

import contextlib
import gc
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._dynamo.testing import CompileCounterWithBackend

import dcomm
from dcomm.torch import functional, operators

CHECKS: dict[str, Callable[[dcomm.Communicator], None]] = {}


def check(body: Callable[[dcomm.Communicator], None]) -> Callable[[dcomm.Communicator], None]:
    CHECKS[body.__name__] = body
    return body


def run(rank: int, world_size: int, names: list[str]) -> dict[str, str]:
    """What went wrong in each check; empty: nothing."""
    torch.set_num_threads(1)
    outcomes = {}
    for name in names:
        torch._dynamo.reset()
        torch.manual_seed(7)  # the same numbers on all ranks
        comm = dcomm.init(rank=rank, world_size=world_size, group_name=name)
        try:
            CHECKS[name](comm)
            outcomes[name] = ""
        except BaseException:
            outcomes[name] = traceback.format_exc()
        comm.close()
    return outcomes


def compiled(body: Callable[..., Any], backend: str) -> Callable[..., Any]:
    return body if backend == "uncompiled" else torch.compile(body, fullgraph=True, backend=backend)


@contextlib.contextmanager
def raises(kind: type[BaseException], text: str) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        assert type(error) is kind, repr(error)
        assert text in str(error), repr(error)
    else:
        raise AssertionError(f"no {kind.__name__}")


# ---- every function, beside the same arithmetic on all ranks' tensors in one process --------------------------

ROWS = 8  # divisible by 2 and 4


def total(xs: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(xs).sum(0)


def exchanged(xs: list[torch.Tensor], counts: list[list[int]]) -> list[torch.Tensor]:
    blocks = [x.split(row) for x, row in zip(xs, counts, strict=True)]
    return [torch.cat([blocks[source][rank] for source in range(len(xs))]) for rank in range(len(xs))]


def uneven(n: int) -> list[list[int]]:
    """Rows that each rank sends to each: one to every other, odd ranks one more to the next, the rest to itself."""
    counts = [[1 + (rank % 2 if to == (rank + 1) % n else 0) for to in range(n)] for rank in range(n)]
    for rank, row in enumerate(counts):
        row[rank] += ROWS - sum(row)
    return counts


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


# ---- the operators themselves --------------------------------------------------------------------------------


@check
def opcheck(comm: dcomm.Communicator) -> None:
    handle, n = comm._handle, comm.world_size
    counts = uneven(n)
    sends, recvs = counts[comm.rank], [row[comm.rank] for row in counts]
    for overload, *args in (
        (operators.all_reduce, handle, "sum", None, "auto"),
        (operators.reduce_scatter, handle, "avg"),
        (operators.all_gather, handle),
        (operators.all_to_all, handle, None, None),
        (operators.all_to_all, handle, sends, recvs),
        (operators.broadcast, handle, 1),
        (operators.reduce, handle, "sum", 1),
    ):
        torch.library.opcheck(overload, (torch.ones(ROWS, 3, requires_grad=True), *args))
        torch.library.opcheck(overload, (torch.ones(3, ROWS).t(), *args))
    torch.library.opcheck(operators.all_reduce_, (torch.ones(ROWS, 3), handle, "sum", None, "auto"))
    torch.library.opcheck(operators.broadcast_, (torch.ones(3, ROWS).t(), handle, 0))


@check
def fakes_tell_what_kernels_give(comm: dcomm.Communicator) -> None:
    handle = comm._handle
    for dtype in (torch.float32, torch.bfloat16, torch.int64):
        for x in (
            torch.ones(ROWS, 3, dtype=dtype),
            torch.ones(3, ROWS, dtype=dtype).t(),
            torch.ones(0, 3, dtype=dtype),
        ):
            calls: list[Callable[[torch.Tensor], torch.Tensor]] = [
                lambda x: operators.all_reduce(x, handle, "sum", None, "auto"),
                lambda x: operators.reduce_scatter(x, handle, "sum"),
                lambda x: operators.all_gather(x, handle),
                lambda x: operators.all_gather(x.sum(), handle),
                lambda x: operators.all_to_all(x, handle, None, None),
                lambda x: operators.broadcast(x, handle, 0),
                lambda x: operators.reduce(x, handle, "sum", 0),
            ]
            for number, call in enumerate(calls):
                before = comm.stats()["num_operations"]
                with torch._subclasses.FakeTensorMode() as mode:
                    told = call(mode.from_tensor(x))
                assert comm.stats()["num_operations"] == before, "a fake ran the collective"
                given = call(x)
                for what in ("shape", "dtype", "device"):
                    assert getattr(told, what) == getattr(given, what), (number, what, told, given)
                assert told.stride() == given.stride(), (number, told.stride(), given.stride())


@check
def mutating_operators_are_not_dropped(comm: dcomm.Communicator) -> None:
    def body(x: torch.Tensor) -> torch.Tensor:
        operators.all_reduce_(x.clone(), comm._handle, "sum", None, "auto")
        operators.broadcast_(x.clone(), comm._handle, 0)
        return x + 1

    before = comm.stats()["num_operations"]
    compiled(body, "aot_eager")(torch.ones(3))
    assert comm.stats()["num_operations"] == before + 2


# ---- what is traced and guarded ------------------------------------------------------------------------------

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


# ---- order, and results that nobody uses ---------------------------------------------------------------------


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


# ---- a tensor-parallel model ---------------------------------------------------------------------------------


class ParallelMlp(torch.nn.Module):
    """Columns of the first matrix and rows of the second on each rank (Megatron-LM)."""

    def __init__(self, first: torch.Tensor, second: torch.Tensor, comm: dcomm.Communicator | None) -> None:
        super().__init__()
        self.comm = comm
        if comm is not None:
            first = first.chunk(comm.world_size, 1)[comm.rank]
            second = second.chunk(comm.world_size, 0)[comm.rank]
        self.first = torch.nn.Parameter(first.clone())
        self.second = torch.nn.Parameter(second.clone())
        self.before = torch.nn.Linear(6, 6, dtype=first.dtype)  # on every rank: its gradient shows sum_gradients

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.before(x))
        if self.comm is None:
            return torch.relu(x @ self.first) @ self.second
        x = functional.sum_gradients(x, self.comm)
        return functional.sum_over_ranks(torch.relu(x @ self.first) @ self.second, self.comm)


def train(model: ParallelMlp, backend: str) -> tuple[list[float], list[torch.Tensor]]:
    call = compiled(model, backend)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(3)
    losses = []
    for _ in range(5):
        x, y = (torch.randn(10, width, generator=generator, dtype=torch.float64) for width in (6, 5))
        loss = (call(x) - y).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, [p.detach() for p in model.parameters()]


def compare_tensor_parallel(comm: dcomm.Communicator, backends: list[str]) -> None:
    first, second = torch.randn(6, 16, dtype=torch.float64), torch.randn(16, 5, dtype=torch.float64)
    reference = ParallelMlp(first, second, None)
    weights = {name: value.clone() for name, value in reference.before.state_dict().items()}
    losses, parameters = train(reference, "uncompiled")
    assert losses[-1] < losses[0]
    parameters[0] = parameters[0].chunk(comm.world_size, 1)[comm.rank]
    parameters[1] = parameters[1].chunk(comm.world_size, 0)[comm.rank]
    for backend in backends:
        model = ParallelMlp(first, second, comm)
        model.before.load_state_dict(weights)
        our_losses, our_parameters = train(model, backend)
        torch.testing.assert_close(our_losses, losses, rtol=1e-11, atol=0)
        torch.testing.assert_close(our_parameters, parameters, rtol=1e-10, atol=1e-12)


@check
def tensor_parallel(comm: dcomm.Communicator) -> None:
    compare_tensor_parallel(comm, ["uncompiled", "aot_eager"])


@check
def tensor_parallel_inductor(comm: dcomm.Communicator) -> None:
    compare_tensor_parallel(comm, ["inductor"])


# ---- errors come out as they are -----------------------------------------------------------------------------


def compiled_all_reduce(comm: dcomm.Communicator, **options: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    return compiled(lambda x: functional.all_reduce(x, comm, **options) + 1, "aot_eager")


@check
def bad_arguments(comm: dcomm.Communicator) -> None:
    x = torch.ones(3)
    with raises(TypeError, "got a torch tensor of int16"):
        compiled_all_reduce(comm)(x.short())
    with raises(ValueError, "op='mean': expected one of 'sum'"):
        compiled_all_reduce(comm, op="mean")(x)
    with raises(ValueError, "wire_dtype='int8'"):
        compiled_all_reduce(comm, wire_dtype="int8")(x)
    with raises(ValueError, "reduce_scatter: x has shape (3,)"):
        compiled(lambda x: functional.reduce_scatter(x, comm), "aot_eager")(x)
    with raises(ValueError, "reduce_scatter: x has shape ()"):
        compiled(lambda x: functional.reduce_scatter(x.sum(), comm), "aot_eager")(x)
    with raises(ValueError, "src=9: expected a rank"):
        compiled(lambda x: functional.broadcast(x, comm, 9), "aot_eager")(x)
    with raises(TypeError, "comm='comm': expected a dcomm.Communicator"):
        functional.all_reduce(x, "comm")  # type: ignore[arg-type]
    with raises(TypeError, "pass x * factor"):
        functional.all_reduce(x, comm, dcomm.premul_sum(2))  # type: ignore[arg-type]
    assert compiled_all_reduce(comm, wire_dtype=torch.float16)(x).tolist() == [comm.world_size + 1] * 3  # still usable


@check
def mismatch(comm: dcomm.Communicator) -> None:
    with raises(dcomm.MismatchError, "rank"):
        compiled_all_reduce(comm)(torch.ones(3 + comm.rank))
    with raises(dcomm.MismatchError, "rank"):  # the first reason again
        compiled_all_reduce(comm)(torch.ones(3))


@check
def mismatch_in_backward(comm: dcomm.Communicator) -> None:
    x = torch.ones(3, requires_grad=True)
    op = "sum" if comm.rank else "avg"
    loss = compiled(lambda x: functional.sum_gradients(x, comm).pow(2).sum(), "aot_eager")(x)
    if comm.rank:
        with raises(dcomm.MismatchError, "rank"):
            loss.backward()
    else:
        with raises(dcomm.MismatchError, "rank"):
            comm.all_reduce(torch.ones(3), op)


@check
def peer_lost(comm: dcomm.Communicator) -> None:
    call = compiled_all_reduce(comm)
    call(torch.ones(3))
    if comm.rank == 0:
        comm.close()
    else:
        with raises(dcomm.PeerLostError, "rank 0"):
            call(torch.ones(3))


@check
def closed_and_dropped(comm: dcomm.Communicator) -> None:
    call = compiled_all_reduce(comm)
    call(torch.ones(3))
    comm.close()
    with raises(dcomm.AbortedError, "this communicator is closed"):
        call(torch.ones(3))
    other = dcomm.init(rank=0, world_size=1)
    handle = other._handle
    operators.all_gather(torch.ones(3), handle)
    del other
    gc.collect()
    with raises(dcomm.AbortedError, f"communicator {handle!r} is not in this process"):
        operators.all_gather(torch.ones(3), handle)
