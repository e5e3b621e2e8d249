"""A child process of the bench on a GPU without one: cuda_bench_ranks.py LIBRARY, then what the parent says."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "support"))

from bench_devices import EmulatedDevice, TensorDevice

from dcomm.bench.cuda import worker
from dcomm.bench.cuda.engine import Device

LIBRARY = sys.argv.pop(1)


def make_device(side: str) -> Device:
    if side in ("threads", "processes"):
        return EmulatedDevice(LIBRARY)
    if side == "nccl":
        raise RuntimeError(f"no such GPU ({os.environ.get('NCCL_MULTI_RANK_GPU_ENABLE')})\nand more")
    return TensorDevice()


if __name__ == "__main__":
    sys.exit(worker.main(make_device))
