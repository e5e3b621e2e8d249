"""The modules of tools/gpu_check, and the outcomes of the figures that they make of measurements."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "tools"
MIB = 1 << 20


def _modules() -> dict[str, ModuleType]:
    sys.path.insert(0, str(TOOLS))
    try:
        names = ("gpu_check", "gpu.figures", "gpu.report")
        return {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(TOOLS))


MODULES = _modules()
gpu_check, figures, report = MODULES.values()


def outcomes(part: str, found: dict[str, Any] | None) -> dict[str, str]:
    return {figure["figure"]: figure["outcome"] for figure in figures.check_figures(part, found)}


def only(part: str, found: dict[str, Any], *words: str) -> dict[str, str]:
    """The one figure whose text has all words."""
    chosen = [f for f in figures.check_figures(part, found) if all(word in f["figure"] for word in words)]
    assert len(chosen) == 1, (words, chosen)
    return dict(chosen[0])
