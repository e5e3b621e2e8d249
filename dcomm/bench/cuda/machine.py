"""The GPU that was measured, for the head of a report. Not run on a GPU yet."""

from __future__ import annotations

import subprocess
from typing import Any


def first_line(*command: str) -> str:
    """What a program prints first, or "unknown"."""
    try:
        text = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return "unknown"
    return text.splitlines()[0] if text else "unknown"


def gpu_facts() -> dict[str, Any]:
    """Name, driver, multiprocessors, bytes of L2 of torch's GPU 0."""
    import torch

    facts = torch.cuda.get_device_properties(0)
    return {
        "gpu": facts.name,
        "driver": first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "multiprocessors": facts.multi_processor_count,
        "l2_bytes": getattr(facts, "L2_cache_size", None),
    }


def torch_versions() -> dict[str, str]:
    """Of torch and of the CUDA that it was built with."""
    import torch

    return {"torch": str(torch.__version__), "cuda": str(torch.version.cuda)}
