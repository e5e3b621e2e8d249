"""The floor check finds each kind of violation, nothing in correct code, and nothing in this repository."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "tools" / "check_floors.py"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_floors", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["check_floors"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


check_floors = _load()

# Written down again and not taken from the script: this is the table of the design page.
FLOORS = {
    "base": set(),
    "schedule": {"base"},
    "protocol": {"base", "schedule"},
    "algo": {"base", "schedule", "protocol"},
    "memory": {"base"},
    "bucket": {"base", "schedule", "protocol"},
    "exec": {"base", "schedule", "protocol", "memory"},
    "launch": {"base", "schedule", "protocol", "algo", "memory", "bucket", "exec"},
    "comm": {"base", "schedule", "protocol", "algo", "memory", "bucket", "exec", "launch"},
    "python": {"base", "schedule", "protocol", "algo", "memory", "bucket", "exec", "launch", "comm"},
}


def _write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _found(root: Path) -> list[tuple[str, int, str]]:
    return [(v.path, v.line, v.rule) for v in check_floors.check(root)]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A correct tree with one header on each floor."""
    _write(tmp_path, {f"csrc/{floor}/it.h": "#pragma once\n" for floor in FLOORS})
    _write(tmp_path, {"dcomm/__init__.py": "import os\n\nimport numpy as np\n\nfrom dcomm import _core\n"})
    assert _found(tmp_path) == []
    return tmp_path


@pytest.mark.parametrize("floor", FLOORS)
@pytest.mark.parametrize("target", FLOORS)
def test_every_pair_of_floors(tree: Path, floor: str, target: str) -> None:
    _write(tree, {f"csrc/{floor}/user.cc": f'// a comment\n#include "{target}/it.h"\n'})
    allowed = target == floor or target in FLOORS[floor]
    assert _found(tree) == ([] if allowed else [(f"csrc/{floor}/user.cc", 2, "floor")])


CPP_VIOLATIONS = [
    # (file, one line of code, rule)
    ("csrc/python/a.cc", "#include <torch/extension.h>", "torch"),
    ("csrc/comm/a.cc", "#include <ATen/ATen.h>", "torch"),
    ("csrc/base/a.h", '#include "c10/util/Half.h"', "torch"),
    ("csrc/comm/a.cc", "#include <pybind11/pybind11.h>", "pybind11"),
    ("csrc/comm/a.cc", "#include <Python.h>", "pybind11"),
    ("csrc/base/a.h", "#include <cuda_fp16.h>", "cuda"),
    ("csrc/memory/memfd.cc", "#include <cuda.h>", "cuda"),
    ("csrc/launch/a.cc", "#include <cuda_runtime.h>", "cuda"),
    ("csrc/exec/a.h", "#include <cooperative_groups.h>", "cuda"),
    ("csrc/exec/a.cu", "void f() { kernel<<<1, 2>>>(); }", "launch"),
    ("csrc/launch/a.cc", "void f() { kernel<<<1, 2>>>(); }", "launch"),
    ("csrc/base/a.h", '#include "it.h"', "include-style"),
    ("csrc/base/a.h", '#include "../base/it.h"', "include-style"),
    ("csrc/base/a.h", "#include <base/it.h>", "include-style"),
    ("csrc/base/a.h", '#include "base/missing.h"', "include-style"),
    ("csrc/base/a.h", "#include <cassert>", "deadly-call"),
    ("csrc/extra/a.h", "#pragma once", "floor"),
    ("csrc/base/a.h", "void f() { exit(1); }", "deadly-call"),
    ("csrc/base/a.h", "void f() { std::abort(); }", "deadly-call"),
    ("csrc/base/a.h", "void f() { ::_exit(2); }", "deadly-call"),
    ("csrc/base/a.h", "void f(bool x) { if (x) abort(); }", "deadly-call"),
    ("csrc/base/a.h", "int f() { return abort(), 1; }", "deadly-call"),
    ("csrc/base/a.h", "void f(int x) { assert(x > 0); }", "deadly-call"),
    ("csrc/base/a.h", "void f() { std::terminate(); }", "deadly-call"),
    ("csrc/base/a.h", "void f(C& c) { c.abort(); abort(); }", "deadly-call"),
    ("csrc/comm/a.h", "struct C { void abort() { std::abort(); } };", "deadly-call"),
    ("csrc/exec/a.inc", "void f() { abort(); }", "deadly-call"),
    ("csrc/exec/a.cuh", "void f() { __trap(); }", "deadly-call"),
    ("csrc/exec/a.cuh", 'void f() { asm volatile("trap;"); }', "deadly-call"),
]


@pytest.mark.parametrize(("path", "line", "rule"), CPP_VIOLATIONS)
def test_cpp_violation(tree: Path, path: str, line: str, rule: str) -> None:
    _write(tree, {path: f"\n{line}\n"})
    expected_line = 1 if "extra" in path else 2
    assert _found(tree) == [(path, expected_line, rule)]


CPP_CORRECT = [
    ("csrc/python/a.cc", "#include <pybind11/pybind11.h>"),
    ("csrc/exec/a.cuh", "#include <cuda_fp16.h>"),
    ("csrc/launch/a.cu", "#include <cuda_runtime.h>\nvoid f() { kernel<<<1, 2>>>(); }"),
    ("csrc/memory/cuda_vmm.cc", "#include <cuda.h>"),
    ("csrc/base/a.h", "// abort(), assert(x) and <<< in a comment"),
    ("csrc/base/a.h", '/* #include "it.h"\n   exit(1); */'),
    ("csrc/base/a.h", 'const char* s = "abort() // <<<"; const char* t = "\\"exit(1)";'),
    ("csrc/base/a.h", 'const char* s = R"(assert(x) " <<<)";'),
    ("csrc/base/a.h", "static_assert(1'000'000 > 2, \"it's\");"),
    ("csrc/comm/a.h", "struct C { void abort(); bool exit(int n); };\nvoid C::abort() {}"),
    ("csrc/comm/a.cc", "void C::stop() { abort(); }\nvoid C::abort() {}"),
    ("csrc/comm/a.h", "template <class C> void f(C& c, C* d) { c.abort(); d->abort(); set_abort(1); }"),
]


@pytest.mark.parametrize(("path", "text"), CPP_CORRECT)
def test_correct_cpp(tree: Path, path: str, text: str) -> None:
    _write(tree, {path: f"{text}\n"})
    assert _found(tree) == []


PYTHON_VIOLATIONS = [
    ("dcomm/a.py", "import torch", "torch"),
    ("dcomm/cli/a.py", "from torch.distributed import Store", "torch"),
    ("dcomm/a.py", "try: import torch\nexcept ImportError: pass", "torch"),
    ("dcomm/a.py", "class A:\n    import torch", "torch"),
    ("dcomm/a.py", "from . import torch", "torch"),
    ("dcomm/a.py", "from dcomm.torch import hooks", "torch"),
    ("dcomm/a.py", "import pickle", "pickle"),
    ("dcomm/torch/a.py", "def f():\n    from pickle import loads", "pickle"),
    ("dcomm/a.py", "import cloudpickle", "pickle"),
    ("dcomm/torch/a.py", "def f(torch, x):\n    return torch.load(x)", "pickle"),
    ("dcomm/a.py", "def f(np, x):\n    return np.load(x, allow_pickle=True)", "pickle"),
    ("dcomm/a.py", "def f():\n    import tests.helpers", "outside"),
    ("dcomm/cli/a.py", "from benchmarks import run", "outside"),
    ("dcomm/a.py", "import cupy", "dependency"),
    ("dcomm/a.py", "import typer", "dependency"),
    ("dcomm/cli/a.py", "import matplotlib.pyplot as plt", "dependency"),
    ("dcomm/a.py", "import os\n\nos._exit(1)", "deadly-call"),
    ("dcomm/a.py", "import os\n\nos.abort()", "deadly-call"),
]


@pytest.mark.parametrize(("path", "text", "rule"), PYTHON_VIOLATIONS)
def test_python_violation(tree: Path, path: str, text: str, rule: str) -> None:
    _write(tree, {path: f"{text}\n"})
    assert [(found[0], found[2]) for found in _found(tree)] == [(path, rule)]


PYTHON_CORRECT = [
    ("dcomm/torch/a.py", "import torch\nfrom torch.distributed import Work\n\nfrom dcomm.torch import hooks"),
    ("dcomm/a.py", "def f():\n    import torch\n    import cupy\n    from . import torch as t"),
    ("dcomm/a.py", "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    import torch"),
    ("dcomm/a.py", "import typing\n\nif typing.TYPE_CHECKING:\n    import torch"),
    ("dcomm/_core.pyi", "import torch"),
    (
        "dcomm/cli/a.py",
        "import typer\nfrom rich.table import Table\n\nfrom .. import errors\nfrom . import bench",
    ),
    ("dcomm/a.py", "import numpy as np\n\nnp.load('x', allow_pickle=False)"),
]


@pytest.mark.parametrize(("path", "text"), PYTHON_CORRECT)
def test_correct_python(tree: Path, path: str, text: str) -> None:
    _write(tree, {path: f"{text}\n"})
    assert _found(tree) == []


def test_message_names_file_line_and_rule(tree: Path) -> None:
    _write(tree, {"csrc/base/a.h": '\n\n#include "comm/it.h"\n'})
    done = subprocess.run([sys.executable, SCRIPT, tree], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.startswith('csrc/base/a.h:3: [floor] "comm/it.h": base may include nothing, but not comm\n')


def test_empty_folder_is_not_a_pass(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, SCRIPT, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 1


def test_this_repository() -> None:
    assert [str(violation) for violation in check_floors.check(ROOT)] == []
