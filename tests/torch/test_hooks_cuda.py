"""DDP hooks with gradients on an emulated GPU: the same gradients as DDP; who serves when dcomm cannot; AMP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from emulated_gpu import EmulatedGpu  # noqa: E402
from rank_processes import process_values, run_processes  # noqa: E402

pytestmark = pytest.mark.long  # the test command is to stay short

SCRIPT = Path(__file__).with_name("hook_gpu_ranks.py")
ENV = {"GLOO_SOCKET_IFNAME": "lo", "DCOMM_CUDA_CHANNELS": "2", "DCOMM_CUDA_SLOT_BYTES": "4096"}
NOTICE = "dcomm: the process group reduces the gradients: "
SMALL_BUCKETS = {"bucket_cap_mb": 0.01}

MODES: dict[str, tuple[dict[str, Any], float]] = {
    "all_reduce": ({"ddp": SMALL_BUCKETS}, 0.0),
    "views": ({"ddp": {"gradient_as_bucket_view": True, **SMALL_BUCKETS}}, 0.0),
    "in order": ({"overlap": False}, 0.0),
    "fp16": ({"hook": "fp16"}, 2.0**-10),
    "bf16": ({"hook": "bf16", "ddp": SMALL_BUCKETS}, 2.0**-7),
}


@pytest.mark.parametrize("name", MODES)
def test_gradients_agree_with_ddp(emulated_gpu: EmulatedGpu, tmp_path: Path, name: str) -> None:
    mode, limit = MODES[name]
    args = {"folder": str(tmp_path), "library": str(emulated_gpu.path), "mode": mode}
    for value in process_values(2, SCRIPT, "train", args, env=ENV, timeout=110):
        assert value["communicator"]
        assert value["worst"] <= limit, value
        assert value["bitwise"] == (limit == 0), value
        assert value["num_launched"] == value["num_futures"] >= (10 if "ddp" in mode else 4), value
        assert value["num_on_side_stream"] == (0 if name == "in order" else value["num_futures"]), value


def test_torchs_all_reduce_is_not_used(emulated_gpu: EmulatedGpu, tmp_path: Path) -> None:
    args = {"folder": str(tmp_path), "library": str(emulated_gpu.path)}
    values = process_values(2, SCRIPT, "without_torchs_all_reduce", args, env=ENV, timeout=110)
    assert values == [[12.0] * 3] * 2


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("windows", "the ranks have no way in common to map each other's GPU memory"),
        ("driver", "the fake refuses"),
        ("setting", "DCOMM_CUDA_CHANNELS='many'"),
        ("no CUDA part", "rank 1: this installation of dcomm has no CUDA part"),
        ("float64", "buckets of float64 on a GPU; dcomm reduces those of float32, float16, bfloat16"),
    ],
)
def test_what_dcomm_cannot_do_is_left_to_the_group(
    emulated_gpu: EmulatedGpu, tmp_path: Path, how: str, text: str
) -> None:
    """Whichever rank it is that cannot: all ranks go the same way, and rank 0 says why, once."""
    args = {"folder": str(tmp_path), "library": str(emulated_gpu.path), "how": how, "broken_rank": 1}
    results = run_processes(2, SCRIPT, "delegated", args, env=ENV, timeout=110)
    for result in results:
        assert result.returncode == 0, result
        assert result.value == {"same": True, "communicator": how == "float64", "num_launched": 0}, result
    assert [result.err.count(NOTICE) for result in results] == [1, 0], results
    assert text in results[0].err


@pytest.mark.parametrize(
    ("on_gpu", "hook"), [(False, "all_reduce"), (False, "fp16"), (False, "bf16"), (True, "all_reduce"), (True, "fp16")]
)
def test_overflow_on_one_rank_skips_the_step_on_all(
    emulated_gpu: EmulatedGpu, tmp_path: Path, on_gpu: bool, hook: str
) -> None:
    args = {"folder": str(tmp_path), "library": str(emulated_gpu.path), "on_gpu": on_gpu, "hook": hook}
    values = process_values(2, SCRIPT, "scaled", args, env=ENV, timeout=110)
    assert values[0] == values[1]
    changed = [step[0] for step in values[0][:6]]
    scales = [step[1] for step in values[0][:6]]
    assert changed == [True, True, False, True, False, True]
    assert scales == [1024, 1024, 512, 512, 256, 256]
