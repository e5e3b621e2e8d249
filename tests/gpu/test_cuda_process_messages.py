"""send and recv of CUDA arrays between processes on one GPU, and what their failures raise (docs/gpu_processes.md)."""

from __future__ import annotations

from pathlib import Path

import pytest
from rank_processes import process_values

pytestmark = pytest.mark.gpu

SCRIPT = Path(__file__).with_name("message_ranks.py")


@pytest.mark.parametrize("windows", ["vmm", "ipc"])
def test_messages(windows: str) -> None:
    env = {"DCOMM_CUDA_WINDOWS": windows}
    assert process_values(2, SCRIPT, "messages", env=env, timeout=110) == [0, 0]


def test_mismatch() -> None:
    for value in process_values(2, SCRIPT, "differ", timeout=110):
        assert value["error"] == "MismatchError", value
        assert "rank 0 called send(count=100000, dtype=float32, dst=1, tag=0)" in value["text"], value
        assert "rank 1 called recv(count=100000, dtype=float32, src=0, tag=1)" in value["text"], value
