"""The "dcomm" backend with tensors on an emulated GPU: every value; calls that run beside their stream."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from emulated_gpu import EmulatedGpu  # noqa: E402
from rank_processes import process_values  # noqa: E402

pytestmark = pytest.mark.long

SCRIPT = Path(__file__).with_name("group_gpu_ranks.py")
ENV = {"GLOO_SOCKET_IFNAME": "lo", "DCOMM_CUDA_CHANNELS": "2", "DCOMM_CUDA_SLOT_BYTES": "4096"}


@pytest.mark.parametrize("world_size", [2, 3])
def test_every_value(emulated_gpu: EmulatedGpu, tmp_path: Path, world_size: int) -> None:
    args = {"folder": str(tmp_path), "library": str(emulated_gpu.path)}
    assert process_values(world_size, SCRIPT, "collectives", args, env=ENV, timeout=110) == [[]] * world_size


@pytest.mark.parametrize("wide", [False, True])
def test_streams_go_on_until_they_wait(emulated_gpu: EmulatedGpu, tmp_path: Path, wide: bool) -> None:
    """wide: a tensor that is copied in and out, behind the operation, on a stream of its own."""
    args = {"folder": str(tmp_path), "library": str(emulated_gpu.path), "wide": wide}
    for rank, found in enumerate(process_values(2, SCRIPT, "beside", args, env=ENV, timeout=110)):
        summed = [3.0, rank + 1.0] if wide else [3.0, 3.0]
        assert not found["completed_at_once"]
        if rank == 0:
            assert found["still_open"]
            assert found["seen"] == [1.0, 1.0]
        assert found["later"] == summed, found
        assert found["future"] == summed, found
        assert found["on_side"]
        assert found["completed"]
        assert found["success"]


def test_ddp_without_a_hook(emulated_gpu: EmulatedGpu, tmp_path: Path) -> None:
    args = {"folder": str(tmp_path), "library": str(emulated_gpu.path)}
    for found in process_values(2, SCRIPT, "train", args, env=ENV, timeout=110):
        assert found["same"], found
        assert found["num_futures"] >= 5  # of each bucket in each of three steps
        assert found["all_on_side"]
        assert found["num_launched"] >= found["num_futures"]
