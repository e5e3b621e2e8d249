"""DDP hooks with gradients on the GPU: two processes share it. The bodies that CI runs on an emulated GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rank_processes import process_values

pytestmark = pytest.mark.gpu

SCRIPT = Path(__file__).resolve().parents[1] / "torch" / "hook_gpu_ranks.py"
ENV = {"GLOO_SOCKET_IFNAME": "lo"}
SMALL_BUCKETS = {"bucket_cap_mb": 0.01}
MODES: dict[str, tuple[dict[str, Any], float]] = {
    "all_reduce": ({"ddp": SMALL_BUCKETS}, 1e-6),
    "views": ({"ddp": {"gradient_as_bucket_view": True, **SMALL_BUCKETS}}, 1e-6),
    "in order": ({"overlap": False}, 1e-6),
    "fp16": ({"hook": "fp16"}, 2.0**-10),
    "bf16": ({"hook": "bf16", "ddp": SMALL_BUCKETS}, 2.0**-7),
}


@pytest.mark.parametrize("name", MODES)
def test_gradients_agree_with_ddp(tmp_path: Path, name: str) -> None:
    mode, limit = MODES[name]
    args = {"folder": str(tmp_path), "library": None, "mode": {**mode, "steps": 20}}
    for value in process_values(2, SCRIPT, "train", args, env=ENV, timeout=120):
        assert value["communicator"]
        assert value["worst"] <= limit, value


def test_torchs_all_reduce_is_not_used(tmp_path: Path) -> None:
    args = {"folder": str(tmp_path), "library": None}
    assert process_values(2, SCRIPT, "without_torchs_all_reduce", args, env=ENV, timeout=120) == [[12.0] * 3] * 2


@pytest.mark.parametrize("hook", ["all_reduce", "fp16", "bf16"])
def test_overflow_on_one_rank_skips_the_step_on_all(tmp_path: Path, hook: str) -> None:
    args = {"folder": str(tmp_path), "library": None, "on_gpu": True, "hook": hook}
    values = process_values(2, SCRIPT, "scaled", args, env=ENV, timeout=120)
    assert values[0] == values[1]
    assert [step[0] for step in values[0][:6]] == [True, True, False, True, False, True]
