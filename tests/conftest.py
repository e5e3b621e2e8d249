"""Shared by all tests: makes sure that the installed dcomm is tested, and builds the C++ checks once.

Run bare `pytest` from the root of the checkout, after `pip install '.[test]'` or `pip install -e '.[test]'`.
"""

from __future__ import annotations

import fcntl
import importlib
import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHECKS_BUILD = ROOT / "build" / "checks" / str(sys.implementation.cache_tag)


def _prefer_installed_package() -> None:
    """Keeps the source folder from hiding an installed dcomm.

    `python -m pytest` puts the checkout first on sys.path. After a plain install the folder `dcomm/` has no
    extension in it, and the import fails though dcomm is installed; after an editable install it has one.
    """
    suffixes = importlib.machinery.EXTENSION_SUFFIXES
    if any((ROOT / "dcomm" / f"_core{suffix}").exists() for suffix in suffixes):
        return
    sys.path[:] = [entry for entry in sys.path if Path(entry or os.curdir).resolve() != ROOT]
    importlib.invalidate_caches()


_prefer_installed_package()
sys.path.append(str(ROOT / "tests" / "support"))  # rank_threads, rank_processes, reference


class _ChecksBuildError(Exception):
    """The C++ checks do not build; the message is what cmake and the compiler printed."""


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a file lock: several pytest processes may share one checkout."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build_checks(targets: list[str]) -> None:
    """Configures the build of tests/cc and builds these targets, incrementally."""
    import pybind11

    # The tools of this interpreter's environment first: it need not be activated.
    environment = dict(os.environ)
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
    cmake = shutil.which("cmake", path=environment["PATH"])
    ninja = shutil.which("ninja", path=environment["PATH"])
    if cmake is None or ninja is None:
        raise _ChecksBuildError("cmake or ninja is missing; pip install '.[test]' brings both")
    options = [
        f"-DCMAKE_MAKE_PROGRAM={ninja}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        "-DDCOMM_CHECKS=ON",
    ]
    with _locked(CHECKS_BUILD / ".lock"):
        for command in (
            [cmake, "-S", str(ROOT), "-B", str(CHECKS_BUILD), "-G", "Ninja", *options],
            [cmake, "--build", str(CHECKS_BUILD), "--target", *targets],
        ):
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise _ChecksBuildError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


# What a fixture needs of the build: its target.
_TARGETS = {
    "checks": "_dcomm_checks",
    "emulated_gpu": "dcomm_emulated_cuda",
    "counted_gpu": "dcomm_counted_cuda",
    "failpoint_core": "_core_with_failpoints",
}
_checks_built = pytest.StashKey[_ChecksBuildError | None]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Builds before the first test starts: in a fixture, the time limit of a test would include the build."""
    names = {name for item in session.items for name in getattr(item, "fixturenames", ())}
    targets = [target for fixture, target in _TARGETS.items() if fixture in names]
    if not targets or session.config.option.collectonly:
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.write_line("building the C++ checks (the first time takes a while)")
    session.config.stash[_checks_built] = None
    try:
        _build_checks(targets)
    except _ChecksBuildError as error:
        session.config.stash[_checks_built] = error


def _built(request: pytest.FixtureRequest, name: str) -> Path:
    error = request.config.stash[_checks_built]
    if error is not None:
        pytest.fail(f"the C++ checks do not build:\n{error}", pytrace=False)
    return CHECKS_BUILD / name


@pytest.fixture(scope="session")
def checks(request: pytest.FixtureRequest) -> ModuleType:
    """The test-only extension module of tests/cc: the core with failpoints and mutation points."""
    built = _built(request, f"_dcomm_checks{importlib.machinery.EXTENSION_SUFFIXES[0]}")
    spec = importlib.util.spec_from_file_location("_dcomm_checks", built)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["_dcomm_checks"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def emulated_gpu(request: pytest.FixtureRequest) -> Iterator[Any]:
    """An EmulatedGpu (tests/support) in place of the CUDA part, for this test alone."""
    from emulated_gpu import EmulatedGpu

    gpu = EmulatedGpu(_built(request, "_emulated_cuda.so"))
    with gpu.in_use():
        yield gpu


@pytest.fixture
def counted_gpu(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A CountedGpu (tests/support) in place of the CUDA part, for this test alone."""
    from counted_gpu import CountedGpu

    gpu = CountedGpu(_built(request, "_counted_cuda.so"))
    with gpu.in_use():
        yield gpu


@pytest.fixture
def failpoint_core(request: pytest.FixtureRequest) -> Path:
    """The package's extension with failpoints (csrc/base/failpoint.h), for processes of their own."""
    import failpoint_core as support

    _built(request, "")
    return support.DEFAULT_PATH
