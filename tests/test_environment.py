"""The list of DCOMM_* variables holds what the sources read, and nothing else; the documentation shows it."""

from __future__ import annotations

import re
from pathlib import Path

from dcomm import environment

ROOT = Path(__file__).resolve().parents[1]
QUOTED = re.compile(r"[\"'](DCOMM_[A-Z_0-9]+)[\"']")
PREPROCESSOR = re.compile(r"^\s*#.*$", re.MULTILINE)


def sources(*patterns: str) -> str:
    # The list itself would make every name one that is read.
    paths = [path for pattern in patterns for path in ROOT.glob(pattern) if path != ROOT / "dcomm" / "environment.py"]
    return "\n".join(PREPROCESSOR.sub("", path.read_text(encoding="utf-8")) for path in sorted(paths))


LIBRARY = ("csrc/**/*.cc", "csrc/**/*.h", "csrc/**/*.cu", "csrc/**/*.cuh", "dcomm/**/*.py")
TESTS = ("tests/**/*.py", "tests/**/*.cc")


def test_every_variable_that_is_read_is_listed() -> None:
    library = set(QUOTED.findall(sources(*LIBRARY)))
    assert {"DCOMM_ISA", "DCOMM_TIMEOUT_S", "DCOMM_JOB_ID", "DCOMM_CUDA_CHANNELS"} <= library  # the search finds them
    build = set(QUOTED.findall(sources("setup.py")))
    assert library - environment.KNOWN.keys() == set()
    assert build - environment.KNOWN.keys() == set()


def test_every_listed_variable_is_read_somewhere() -> None:
    assert environment.SETTINGS.keys() <= set(QUOTED.findall(sources(*LIBRARY)))
    assert environment.BUILD.keys() <= set(QUOTED.findall(sources("setup.py")))
    assert environment.TESTS.keys() <= set(QUOTED.findall(sources(*LIBRARY, *TESTS)))
    assert len(environment.KNOWN) == len(environment.SETTINGS) + len(environment.BUILD) + len(environment.TESTS)


def test_the_documentation_lists_them_in_these_words() -> None:
    rows = re.findall(r"^\| `(DCOMM_\w+)` \| (.*) \|$", (ROOT / "docs" / "doctor.md").read_text(), re.MULTILINE)
    assert dict(rows) == {**environment.SETTINGS, **environment.BUILD}
