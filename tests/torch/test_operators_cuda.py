"""dcomm.torch.functional with tensors on a GPU, here an emulated one: compiled models; what the compiler is told."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from emulated_gpu import EmulatedGpu  # noqa: E402
from rank_processes import process_values  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402

import dcomm  # noqa: E402
from dcomm.torch import functional, operators  # noqa: E402

pytestmark = [pytest.mark.long, pytest.mark.timeout(175)]

SCRIPT = Path(__file__).with_name("operator_gpu_ranks.py")
NAMES = ("all_reduce", "all_reduce_", "broadcast", "broadcast_", "reduce", "reduce_scatter", "all_gather", "all_to_all")


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_models(emulated_gpu: EmulatedGpu, tmp_path: Path, backend: str) -> None:
    """One graph, with gradients: what the CPU computes without a compiler, and by launches on the GPU."""
    env = {
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "DCOMM_CUDA_CHANNELS": "2",
        "DCOMM_CUDA_SLOT_BYTES": "4096",
        "DCOMM_TIMEOUT_S": "100",
    }
    args = {"library": str(emulated_gpu.path), "backend": backend}
    for value in process_values(2, SCRIPT, "compare", args, env=env, timeout=165):
        assert value["device"] == 0
        assert value["launched"] >= 40, value  # two times two steps, forward and backward, and the in-place ones
        assert value["uncompiled"] < 1e-6, value
        assert value["compiled"] < 1e-5, value


@pytest.mark.parametrize("name", NAMES)
def test_every_operator_has_a_kernel_for_gpus(name: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"dcomm::{name}", "CUDA")
    assert getattr(operators, name) is not None


def test_fakes_stay_on_the_gpu() -> None:
    """Nothing is computed: shapes, strides, dtypes and devices are told without a GPU."""
    with dcomm.init(rank=0, world_size=1) as comm, FakeTensorMode():
        x = torch.empty(4, 6, device="cuda", dtype=torch.bfloat16).t()
        for result, shape in (
            (functional.all_reduce(x, comm), (6, 4)),
            (functional.all_reduce_(x, comm), (6, 4)),
            (functional.all_gather(x, comm), (6, 4)),
            (functional.reduce_scatter(x, comm), (6, 4)),
            (functional.all_to_all(x, comm), (6, 4)),
            (functional.broadcast(x, comm), (6, 4)),
            (functional.reduce(x, comm), (6, 4)),
            (functional.sum_over_ranks(x, comm), (6, 4)),
        ):
            assert result.shape == shape
            assert result.device.type == "cuda"
            assert result.dtype == torch.bfloat16
            assert result is x or result.is_contiguous()
