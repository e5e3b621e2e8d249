"""What of the process group Dynamo is told to leave alone: all of it."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from dcomm.torch import dynamo, process_group  # noqa: E402

FOLDER = Path(process_group.__file__).parent


def defined_in(path: Path) -> set[tuple[str, str]]:
    """File and name of every function in a file, those inside others too."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {(path.name, node.name) for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}


def test_every_function_of_the_group_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    marked: list[Any] = []
    eval_frame = torch._C._dynamo.eval_frame
    monkeypatch.setattr(eval_frame, "set_code_exec_strategy", lambda code, strategy: marked.append(code))
    dynamo.skip(*dynamo.parts_of(process_group.__name__))
    # By the names of the files, so that a part which nobody imports yet is missed here, too.
    files = [*FOLDER.glob("group_*.py"), FOLDER / "process_group.py", FOLDER / "completer.py"]
    assert len(files) >= 10
    expected = set().union(*(defined_in(path) for path in files))
    assert expected <= {(Path(code.co_filename).name, code.co_name) for code in marked}


def test_without_the_private_interface_methods_are_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    disabled: list[str] = []

    def disable(function: Any) -> Any:
        disabled.append(function.__qualname__)
        return function

    monkeypatch.delattr(torch._C._dynamo.eval_frame, "set_code_exec_strategy")
    monkeypatch.setattr(torch.compiler, "disable", disable)
    dynamo.skip(*dynamo.parts_of(process_group.__name__))
    for name in ("GroupCollectives.broadcast", "GroupMonitored.monitored_barrier", "GroupWork.wait", "DoneWork.wait"):
        assert name in disabled
    assert "GroupCollectives._check_equal" not in disabled  # a static method would become a bound one
