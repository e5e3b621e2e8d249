"""Keeps torch.compile out of the process group's own code.

torch's C++ calls the Python methods of a group also inside compiled regions (DDP's buffer broadcast, for one), and
Dynamo would trace into them. Its own switch for that costs nothing per call: each code object is marked once, with all
that it calls. Where this private interface is missing, ``torch.compiler.disable`` does the same at some cost per call.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import Any

import torch

_PACKAGE = __name__.rpartition(".")[0]


def parts_of(root: str) -> list[types.ModuleType]:
    """Module `root` and all modules of this package that it imports names from, directly or not."""
    found: dict[str, types.ModuleType] = {}
    waiting = [root]
    while waiting:
        name = waiting.pop()
        if name in found or not name.startswith(f"{_PACKAGE}."):
            continue
        found[name] = module = sys.modules[name]
        for value in vars(module).values():
            waiting.append(value.__name__ if isinstance(value, types.ModuleType) else _home(value))
    return list(found.values())


def skip(*modules: types.ModuleType) -> None:
    """Mark every function and method that these modules define."""
    try:
        from torch._C._dynamo import eval_frame

        strategy = eval_frame._FrameExecStrategy(eval_frame._FrameAction.SKIP, eval_frame._FrameAction.SKIP)
        mark: Any = eval_frame.set_code_exec_strategy
    except (ImportError, AttributeError):
        disable: Any = torch.compiler.disable
        for owner in _owners(modules):
            for name, function in _functions(owner):
                if vars(owner)[name] is function:
                    setattr(owner, name, disable(function))
        return
    for owner in _owners(modules):
        for _, function in _functions(owner):
            for code in _all_code(function.__code__):
                mark(code, strategy)


def _home(value: Any) -> str:
    """The module that a class or function was defined in; of anything else nothing."""
    return value.__module__ if isinstance(value, (type, types.FunctionType)) else ""


def _owners(modules: tuple[types.ModuleType, ...]) -> Iterator[types.ModuleType | type]:
    """The modules and the classes that they define."""
    for module in modules:
        yield module
        for value in list(vars(module).values()):
            if isinstance(value, type) and value.__module__ == module.__name__:
                yield value


def _functions(owner: types.ModuleType | type) -> Iterator[tuple[str, types.FunctionType]]:
    """What `owner` defines itself, by name; also behind a property or a static method."""
    home = owner.__name__ if isinstance(owner, types.ModuleType) else owner.__module__
    for name, value in list(vars(owner).items()):
        for each in (value.fget, value.fset) if isinstance(value, property) else (getattr(value, "__func__", value),):
            if isinstance(each, types.FunctionType) and each.__module__ == home:
                yield name, each


def _all_code(code: types.CodeType) -> Iterator[types.CodeType]:
    """`code` and that of the functions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _all_code(constant)
