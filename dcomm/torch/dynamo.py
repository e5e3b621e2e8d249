"""Keeps torch.compile out of the process group's own code.

torch's C++ calls the Python methods of a group also inside compiled regions (DDP's buffer broadcast, for one), and
Dynamo would trace into them. Its own switch for that costs nothing per call: each code object is marked once, with all
that it calls. Where this private interface is missing, ``torch.compiler.disable`` does the same at some cost per call.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

import torch


def skip(*classes: type) -> None:
    """Mark every method that these classes define themselves."""
    try:
        from torch._C._dynamo import eval_frame

        strategy = eval_frame._FrameExecStrategy(eval_frame._FrameAction.SKIP, eval_frame._FrameAction.SKIP)
        mark: Any = eval_frame.set_code_exec_strategy
    except (ImportError, AttributeError):
        disable: Any = torch.compiler.disable
        for cls in classes:
            for name, function in _methods(cls):
                if not isinstance(vars(cls)[name], property):
                    setattr(cls, name, disable(function))
        return
    for cls in classes:
        for _, function in _methods(cls):
            for code in _all_code(function.__code__):
                mark(code, strategy)


def _methods(cls: type) -> Iterator[tuple[str, types.FunctionType]]:
    for name, value in list(vars(cls).items()):
        function = value.fget if isinstance(value, property) else value
        if isinstance(function, types.FunctionType):
            yield name, function


def _all_code(code: types.CodeType) -> Iterator[types.CodeType]:
    """`code` and that of the functions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _all_code(constant)
