"""What `import dcomm` costs and needs: NumPy, no torch, no thread, little time."""

from __future__ import annotations

import importlib.metadata
import re
import statistics
import subprocess
import sys
from pathlib import Path

import dcomm


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_needs_numpy_only() -> None:
    out = run(
        """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "cupy", "mpi4py", "typer", "rich", "matplotlib"):
            raise ImportError(f"{name} was imported")

sys.meta_path.insert(0, Refuse())
import dcomm
import threading
import numpy

comms = dcomm.init_threads(2)
arrays = [numpy.full(10, 1.0), numpy.full(10, 2.0)]
threads = [threading.Thread(target=comm.all_reduce, args=(x,)) for comm, x in zip(comms, arrays)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(arrays[0][0], arrays[1][9], dcomm.init(rank=0, world_size=1).world_size)
print([name for name in sys.modules if name.partition(".")[0] == "torch"])
"""
    )
    assert out.split() == ["3.0", "3.0", "1", "[]"]


def test_starts_no_thread_and_opens_no_descriptor() -> None:
    out = run(
        """
import os
import numpy
before = (len(os.listdir("/proc/self/task")), sorted(os.listdir("/proc/self/fd")))
import dcomm
assert (len(os.listdir("/proc/self/task")), sorted(os.listdir("/proc/self/fd"))) == before
print("same")
"""
    )
    assert out == "same\n"


def test_adds_little_time() -> None:
    """Target: 30 ms beside NumPy. CPU time, which a loaded machine stretches less; the limit allows for the rest.

    That of this thread: the threads of NumPy's BLAS spin for a while after its import.
    """
    code = """
import time
import numpy
start, start_cpu = time.perf_counter(), time.thread_time()
import dcomm
print(1e3 * (time.perf_counter() - start), 1e3 * (time.thread_time() - start_cpu))
"""
    runs = [[float(number) for number in run(code).split()] for _ in range(7)]
    wall_ms, cpu_ms = (statistics.median(column) for column in zip(*runs, strict=True))
    print(f"import dcomm after numpy: median {wall_ms:.1f} ms, of which {cpu_ms:.1f} ms CPU")
    assert cpu_ms < 60


def test_typed_and_versioned() -> None:
    package = Path(dcomm.__file__).parent
    assert (package / "py.typed").exists()
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", dcomm.__version__)
    assert dcomm._core.__version__ == dcomm.__version__
    pyproject = Path(__file__).resolve().parents[1] / "pyproject.toml"
    found = re.search(r'^version = "([^"]+)"', pyproject.read_text(), re.MULTILINE)
    assert found is not None
    assert found[1] == dcomm.__version__
    try:
        installed = importlib.metadata.version("dcomm")
    except importlib.metadata.PackageNotFoundError:  # run from a build folder on the path
        return
    assert installed == dcomm.__version__


def test_public_names_and_errors() -> None:
    for name in dcomm.__all__:
        assert hasattr(dcomm, name), name
    errors = [value for name, value in vars(dcomm).items() if name.endswith("Error")]
    assert len(errors) == 10
    for error in errors:
        assert issubclass(error, dcomm.DcommError)
        assert issubclass(error, RuntimeError)
        assert error.__doc__
