"""The "dcomm" backend under switches of torch 2.14: torchcomms for backends, a backend's memory for DDP's buckets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from rank_processes import process_values  # noqa: E402

SCRIPT = Path(__file__).with_name("torchcomms_ranks.py")
# What torch 2.14 imports of torchcomms. It owns gloo, and nobody else may get there.
STAND_IN = {
    "__init__.py": """
def is_backend_built(name):
    return name == "gloo"

def new_comm(*args, **kwargs):
    raise AssertionError(f"torchcomms was asked for {args}")
""",
    "_comms.py": """
class _BackendWrapper:
    pass

def _is_backend_registered(name):
    return False
""",
    "hooks.py": """
class FlightRecorderHook:
    pass
""",
}


def run(folder: Path, env: dict[str, str]) -> list[Any]:
    env = {"DDP_DISABLE_COMM_MEM": "0", **env}  # DDP asks the default backend for its buckets' memory
    return process_values(2, SCRIPT, "everything", {"folder": str(folder)}, env=env, timeout=150)


def test_torchcomms_leaves_the_backend_alone(tmp_path: Path) -> None:
    if not hasattr(torch.distributed.distributed_c10d, "_torchcomms_handles_backend"):
        pytest.skip(f"torch {torch.__version__} sends every backend to torchcomms; from 2.14 on it asks whose one is")
    (tmp_path / "torchcomms").mkdir()
    for name, text in STAND_IN.items():
        (tmp_path / "torchcomms" / name).write_text(text)
    env = {"TORCH_DISTRIBUTED_USE_TORCHCOMMS": "1", "PYTHONPATH": str(tmp_path)}
    for rank, found in enumerate(run(tmp_path, env)):
        assert found["switch"]
        check(found, rank)
        assert found["split"] == ("split_group is not there on a dcomm group: use torch.distributed.new_group(ranks)")


@pytest.mark.long
def test_the_switch_without_torchcomms(tmp_path: Path) -> None:
    for rank, found in enumerate(run(tmp_path, {"TORCH_DISTRIBUTED_USE_TORCHCOMMS": "1"})):
        assert not found["switch"]
        check(found, rank)


def check(found: dict[str, Any], rank: int) -> None:
    assert found["classes"] == [True, True]
    for name in ("world", "group"):
        assert found[name]["sum"] == [3.0] * 3
        assert found[name]["gathered"] == ([[0.0, 0.0], [1.0, 1.0]] if rank == 0 else [])
        assert found[name]["objects"] == [0, 1]
        assert found[name]["message"] == 1 - rank
    assert found["mesh"] == [2, True]
    assert found["grad"] == [[1.5] * 4]
    assert "split" in found
