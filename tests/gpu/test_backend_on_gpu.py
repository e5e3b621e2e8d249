"""The "dcomm" backend with CUDA tensors: two processes share the GPU. The bodies that CI runs on an emulated GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
from rank_processes import process_values

pytestmark = pytest.mark.gpu

SCRIPT = Path(__file__).resolve().parents[1] / "torch" / "group_gpu_ranks.py"
ENV = {"GLOO_SOCKET_IFNAME": "lo"}


def test_every_value(tmp_path: Path) -> None:
    args = {"folder": str(tmp_path), "library": None}
    assert process_values(2, SCRIPT, "collectives", args, env=ENV, timeout=120) == [[]] * 2


def test_ddp_without_a_hook(tmp_path: Path) -> None:
    args = {"folder": str(tmp_path), "library": None}
    for found in process_values(2, SCRIPT, "train", args, env=ENV, timeout=120):
        assert found["worst"] < 1e-4, found
