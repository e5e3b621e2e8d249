"""Without torch, CuPy, a GPU or a driver: `import dcomm` is quick, and the benchmark runs."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from figures import record_figure

# First on sys.path, it hides what may be installed.
ABSENT = ("torch", "cupy", "cuda", "mpi4py", "matplotlib")
MOST_MS = 150


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    for name in ABSENT:
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} is not installed')\n")
    # No driver is found where the loader looks in an empty folder first, and no device is visible.
    return {**os.environ, "PYTHONPATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def run(arguments: list[str], env: dict[str, str], folder: Path) -> str:
    done = subprocess.run([sys.executable, *arguments], env=env, cwd=folder, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_takes_at_most_150_ms(bare: dict[str, str], tmp_path: Path) -> None:
    code = """
import time
start, start_cpu = time.perf_counter(), time.process_time()
import numpy
middle, middle_cpu = time.perf_counter(), time.process_time()
import dcomm
end, end_cpu = time.perf_counter(), time.process_time()
print(1e3 * (middle - start), 1e3 * (end - start), 1e3 * (end_cpu - middle_cpu))
"""
    runs = [[float(number) for number in run(["-c", code], bare, tmp_path).split()] for _ in range(5)]
    numpy_ms, all_ms, own_cpu_ms = (statistics.median(column) for column in zip(*runs, strict=True))
    record_figure("bare_import", all_ms=all_ms, numpy_ms=numpy_ms, own_cpu_ms=own_cpu_ms)
    # A busy machine stretches NumPy's import as well: what counts against dcomm is what it adds.
    assert all_ms <= max(MOST_MS, 2 * numpy_ms)
    assert own_cpu_ms <= 60


def test_the_benchmark_runs(bare: dict[str, str], tmp_path: Path) -> None:
    options = ["-b", "8", "-e", "64K", "-f", "64", "--iters", "20", "-N", "1"]
    out = run(["-m", "dcomm", "bench", "all_reduce", *options], bare, tmp_path)
    assert "Out of bounds values : 0 OK" in out
