"""GradientSynchronizer whose gradients lie on a GPU, here an emulated one: the bits of the CPU, beside backward."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from emulated_gpu import EmulatedGpu  # noqa: E402
from emulated_gradients import gradients_on  # noqa: E402
from rank_processes import process_values  # noqa: E402
from rank_threads import run_threads  # noqa: E402
from synchronizer_cases import SMALL, Branches, batch, gradients, loss_of, same_bits, seeded  # noqa: E402
from torch import nn  # noqa: E402

import dcomm  # noqa: E402
from dcomm.torch import GradientSynchronizer  # noqa: E402

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.long]

SCRIPT = __file__.replace("test_synchronizer_cuda", "cuda_synchronizer_ranks")


def train(comm: dcomm.Communicator, steps: int = 4, **options: Any) -> tuple[list[Any], GradientSynchronizer]:
    """Gradients of every step, some branches unused."""
    model = seeded(Branches)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found: list[Any] = []
    with GradientSynchronizer(model, comm, **SMALL, **options) as sync:
        for step in range(steps):
            loss_of(model, step, comm.rank, (0, 1) if step != 2 else (comm.rank % 2,)).backward()
            sync.finish()
            found += gradients(model)
            optimizer.step()
            optimizer.zero_grad()
    return found, sync


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_bits_of_the_cpu(emulated_gpu: EmulatedGpu, world_size: int) -> None:
    def body(comm: dcomm.Communicator) -> list[Any]:
        found, sync = train(comm)
        assert sync.num_buckets > 2
        assert len(sync._launcher.started) >= 4 * sync.num_buckets  # also those that another rank had not started
        assert sync._launcher.ran == []
        return found

    with gradients_on(emulated_gpu):
        on_gpu = run_threads(world_size, body)
    on_cpu = run_threads(world_size, lambda comm: train(comm, overlap=False)[0])
    for mine, theirs in zip(on_gpu, on_cpu, strict=True):
        assert same_bits([mine, theirs])


def test_a_half_precision_wire(emulated_gpu: EmulatedGpu) -> None:
    with gradients_on(emulated_gpu):
        on_gpu = run_threads(2, lambda comm: train(comm, wire_dtype="float16")[0])
    on_cpu = run_threads(2, lambda comm: train(comm, wire_dtype="float16", overlap=False)[0])
    assert same_bits([*on_gpu, *on_cpu])


def test_all_in_finish(emulated_gpu: EmulatedGpu) -> None:
    def body(comm: dcomm.Communicator) -> list[Any]:
        found, sync = train(comm, overlap=False)
        assert sync._launcher.started == []
        assert len(sync._launcher.ran) >= 4 * sync.num_buckets
        return found

    with gradients_on(emulated_gpu):
        on_gpu = run_threads(2, body)
    assert same_bits([*on_gpu, *run_threads(2, lambda comm: train(comm, overlap=False)[0])])


def test_the_same_weights_on_any_number_of_ranks(emulated_gpu: EmulatedGpu) -> None:
    """And those of CPU gradients."""

    def body(comm: dcomm.Communicator) -> str:
        model = seeded(Branches)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        with GradientSynchronizer(model, comm, deterministic=True, average="microbatches", **SMALL) as sync:
            for step in range(3):
                for part in range(8 // comm.world_size):
                    loss_of(model, step, comm.rank * (8 // comm.world_size) + part).backward()
                sync.finish()
                optimizer.step()
                optimizer.zero_grad()
        found = hashlib.sha256()
        for parameter in model.parameters():
            found.update(parameter.detach().numpy().tobytes())
        return found.hexdigest()

    digests = set(run_threads(2, body))
    with gradients_on(emulated_gpu):
        for world_size in (1, 2, 4, 8):
            digests |= set(run_threads(world_size, body))
    assert len(digests) == 1


@pytest.mark.parametrize("world_size", [2, 3])
def test_buckets_start_in_backward(emulated_gpu: EmulatedGpu, world_size: int) -> None:
    """Between processes: most are on their way when backward ends; in one order on all ranks; the bits of the CPU."""
    library = str(emulated_gpu.path)
    values = process_values(world_size, SCRIPT, "overlaps", {"library": library}, timeout=120)
    for value in values:
        assert value["started"] == values[0]["started"]
        assert value["in_backward"] > 0
        assert value["same"], value


def test_models_that_are_refused() -> None:
    class Elsewhere(nn.Module):
        """A GPU's parameters, as far as they can be told."""

        def __init__(self, *places: tuple[str, torch.dtype]) -> None:
            super().__init__()
            self.places = places

        def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
            for number, (device, dtype) in enumerate(self.places):
                yield f"p{number}", _Pretended(torch.device(device), dtype)

    class _Pretended:
        requires_grad = True

        def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
            self.device, self.dtype, self.is_cuda = device, dtype, device.type == "cuda"

    from dcomm.torch import agreement

    f32 = torch.float32
    assert agreement.find_device(Elsewhere(("cuda:1", f32), ("cuda:1", torch.bfloat16))) == torch.device("cuda:1")
    with pytest.raises(ValueError, match="'p0' on cuda:0, 'p1' on cuda:1"):
        agreement.find_device(Elsewhere(("cuda:0", f32), ("cuda:1", f32)))
    with pytest.raises(TypeError, match=r"'p0' is torch\.float64 on cuda:0"):
        agreement.find_device(Elsewhere(("cuda:0", torch.float64)))
    assert agreement.find_device(nn.Linear(2, 2)) == torch.device("cpu")
    assert batch(0, 0).is_cpu


def test_error_feedback(emulated_gpu: EmulatedGpu) -> None:
    """Residuals in GPU memory, committed without a look from the host."""

    def body(comm: dcomm.Communicator) -> list[Any]:
        found, sync = train(comm, wire_dtype="bfloat16", error_feedback=True)
        return found + list(sync.state_dict()["residuals"].values())

    with gradients_on(emulated_gpu):
        on_gpu = run_threads(2, body)
    for mine, theirs in zip(on_gpu, run_threads(2, body), strict=True):
        assert same_bits([mine, theirs])
