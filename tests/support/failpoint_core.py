"""The package over the core with failpoints (csrc/base/failpoint.h), instead of the installed extension."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
# Built by tests/conftest.py: fixture failpoint_core.
DEFAULT_PATH = (
    ROOT
    / "build"
    / "checks"
    / str(sys.implementation.cache_tag)
    / "failpoints"
    / f"_core{importlib.machinery.EXTENSION_SUFFIXES[0]}"
)


class _Finder(MetaPathFinder):
    def __init__(self, path: Path) -> None:
        self._path = path

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_file_location(fullname, self._path) if fullname == "dcomm._core" else None


def install(path: Path = DEFAULT_PATH) -> None:
    """Call it before anything imports dcomm."""
    if "dcomm" in sys.modules:
        raise RuntimeError("dcomm is imported already, with its own extension")
    if not path.exists():
        raise FileNotFoundError(f"{path}: not built; `pytest tests/reliability/test_failpoints.py` builds it")
    sys.meta_path.insert(0, _Finder(path))
