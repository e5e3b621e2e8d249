"""torch.compile(fullgraph=True) of models that call dcomm on the GPU, which two processes share; bodies as in CI."""

from __future__ import annotations

from pathlib import Path

import pytest
from rank_processes import process_values

pytestmark = pytest.mark.gpu

SCRIPT = Path(__file__).resolve().parents[1] / "torch" / "operator_gpu_ranks.py"


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_models(tmp_path: Path, backend: str) -> None:
    env = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "TORCHINDUCTOR_COMPILE_THREADS": "1", "DCOMM_TIMEOUT_S": "100"}
    args = {"library": None, "backend": backend}
    for value in process_values(2, SCRIPT, "compare", args, env=env, timeout=170):
        assert value["device"] >= 0
        assert value["uncompiled"] < 1e-3, value  # matrix products of a GPU beside a CPU's
        assert value["compiled"] < 1e-3, value
