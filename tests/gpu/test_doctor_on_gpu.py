"""`dcomm doctor` where there is a GPU, a driver and a CUDA part: it finds all of them, and nothing fails."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

pytestmark = pytest.mark.gpu


def test_the_gpu_side_is_well() -> None:
    command = [sys.executable, "-m", "dcomm", "doctor", "--json", "--seconds", "60"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    found = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    for name in ("cuda_part", "driver", "gpus", "two_gpu_ranks"):
        assert found[name]["status"] == "ok", found[name]
    assert found["peer_access"]["status"] in ("ok", "warn"), found["peer_access"]
    gpus = found["gpus"]["details"]["gpus"]
    assert len(gpus) == torch.cuda.device_count()
    assert gpus[0]["name"] == torch.cuda.get_device_name(0)
    assert tuple(gpus[0]["capability"]) == torch.cuda.get_device_capability(0)
    assert gpus[0]["nbytes"] == torch.cuda.get_device_properties(0).total_memory
    assert found["torch_gpu"]["details"]["cuda"] == torch.version.cuda
