"""run_with_fake_cupy.py LIBRARY SCRIPT: runs the script with dcomm's emulated GPU ("": none) and a CuPy for it."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "support"))

import fake_cupy
from emulated_gpu import EmulatedGpu

library, script = sys.argv[1:]
if library:
    gpu = EmulatedGpu(Path(library))
    fake_cupy.install(gpu)
    with gpu.in_use():
        runpy.run_path(script, run_name="__main__")
else:
    sys.modules["cupy"] = type(sys)("cupy")
    runpy.run_path(script, run_name="__main__")
