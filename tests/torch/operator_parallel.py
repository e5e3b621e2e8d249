"""A tensor-parallel model, compiled and not, beside the whole one."""

from __future__ import annotations

import torch
from operator_checks import check, compiled

import dcomm
from dcomm.torch import functional


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
