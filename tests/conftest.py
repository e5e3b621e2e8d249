"""Shared by all tests: makes sure that the installed dcomm is tested, and builds the C++ checks once.

Run bare `pytest` from the root of the checkout, after `pip install '.[test]'` or `pip install -e '.[test]'`.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


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

from checks_build import FOLDER as CHECKS_BUILD  # noqa: E402
from checks_build import ChecksBuild  # noqa: E402

# What a fixture needs of the build: its target.
_TARGETS = {
    "checks": "_dcomm_checks",
    "emulated_gpu": "dcomm_emulated_cuda",
    "counted_gpu": "dcomm_counted_cuda",
    "failpoint_core": "_core_with_failpoints",
}
_build = pytest.StashKey[ChecksBuild]()
_failure = pytest.StashKey[str | None]()


def _needs_build(item: pytest.Item) -> bool:
    return not _TARGETS.keys().isdisjoint(getattr(item, "fixturenames", ()))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules that need the C++ checks come last: they are built beside the others."""
    late = {item.path for item in items if _needs_build(item)}
    items.sort(key=lambda item: item.path in late)


def pytest_collection_finish(session: pytest.Session) -> None:
    names = {name for item in session.items for name in getattr(item, "fixturenames", ())}
    targets = [target for fixture, target in _TARGETS.items() if fixture in names]
    if targets and not session.config.option.collectonly:
        session.config.stash[_build] = ChecksBuild(targets)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Waits for the build outside of what the time limit of a test counts."""
    if _needs_build(item) and _failure not in item.config.stash:
        item.config.stash[_failure] = item.config.stash[_build].wait()
    return (yield)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if (build := session.config.stash.get(_build, None)) is not None:
        build.stop()


def _built(request: pytest.FixtureRequest, name: str) -> Path:
    failure = request.config.stash[_failure]
    if failure is not None:
        pytest.fail(f"the C++ checks do not build:\n{failure}", pytrace=False)
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
