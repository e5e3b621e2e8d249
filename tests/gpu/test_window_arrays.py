"""Arrays that all ranks reach, on a GPU: torch tensors, CuPy's view, bits, drops, and gradients that lie in them."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from cuda_arrays import bits, make_input
from rank_threads import run_threads

import dcomm
import dcomm.torch

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("world_size", [2, 3, 4, 8])
def test_same_bits_as_the_host(world_size: int, dtype: str) -> None:
    import torch

    def body(comm: dcomm.Communicator) -> None:
        for count in (1, 7, 1000, (1 << 20) + 3):
            x = comm.empty(count, getattr(torch, dtype), device="cuda")
            other = comm.empty(count, getattr(torch, dtype), device="cuda")
            assert not x.any()
            for op, out in (("sum", x), ("avg", other), ("sum", torch.empty_like(x))):
                expected = make_input(comm.rank, count, dtype)
                x.copy_(expected)
                comm.all_reduce(x, op, out=out, algo="direct")
                comm.all_reduce(expected, op, algo="two_shot")
                assert torch.equal(bits(out.cpu()), bits(expected)), (count, op)
                comm.barrier()
            del x, other, out

    run_threads(world_size, body)


def test_views_of_other_libraries() -> None:
    import torch

    def body(comm: dcomm.Communicator) -> None:
        x = comm.empty((3, 5), np.float32, device="cuda")
        for view in (torch.as_tensor(x, device="cuda"), torch.from_dlpack(x)):
            assert view.data_ptr() == x.__cuda_array_interface__["data"][0]
            assert tuple(view.shape) == (3, 5)
        view[:] = comm.rank + 1
        del x
        assert float(view.sum()) == 15 * (comm.rank + 1)

    run_threads(2, body)


def test_dropped_while_a_kernel_uses_it() -> None:
    import torch

    def body(comm: dcomm.Communicator) -> None:
        for _ in range(20):
            x = comm.empty(1 << 20, torch.float32, device="cuda")
            x.fill_(1)
            out = torch.zeros(1 << 20, device="cuda")
            torch.cuda._sleep(10_000_000)
            comm.all_reduce(x, out=out, algo="direct")
            del x
            assert bool((out == 2).all())

    run_threads(2, body)


def _no_window(comm: Any, *args: Any, **options: Any) -> Any:
    raise dcomm.CudaError("a test refuses")


@pytest.mark.parametrize("way", ["windows", "slots", "host"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_gradients(deterministic: bool, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks have the gradients of one that sees both halves of the batch, whatever way there is between GPUs."""
    import torch

    from dcomm.torch import agreement

    if way != "windows":
        monkeypatch.setattr(dcomm.Communicator, "empty", _no_window)
    if way == "host":
        monkeypatch.setattr(agreement, "open_gpus", lambda comm, device: "a test refuses")

    def body(comm: dcomm.Communicator) -> Any:
        with alone:  # what the threads share: the random generator
            torch.manual_seed(3)
            model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 8)).cuda()
        sync = dcomm.torch.GradientSynchronizer(model, comm, deterministic=deterministic, bucket_bytes=1 << 14)
        assert sync.gradients_are_shared == (way == "windows")
        data = torch.randn(8, 64, generator=torch.Generator().manual_seed(4)).cuda()
        part = data.chunk(comm.world_size)[comm.rank]
        found = []
        for _ in range(3):
            model.zero_grad()
            model(part).square().mean().backward()
            sync.finish()
            found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).cpu())
        sync.close()
        return found

    alone = threading.Lock()
    (single,), pair = run_threads(1, body), run_threads(2, body)
    for step in range(3):
        assert torch.equal(pair[0][step], pair[1][step])
        torch.testing.assert_close(pair[0][step], single[step])
