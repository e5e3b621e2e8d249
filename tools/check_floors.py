"""Checks the floors of the source tree: who may include or import whom, and what no library code may call.

It reads `#include` and `import` lines only; no compiler and nothing but the standard library is needed.

    python tools/check_floors.py [root]

One line for each violation, `file:line: [rule] message`, and exit status 1 when there is any.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# ---- The floors: each may include itself, these, and all that these may include ----------------------------
DIRECT = {
    "base": (),
    "schedule": ("base",),
    "protocol": ("schedule", "base"),
    "algo": ("protocol",),
    "memory": ("base",),
    "bucket": ("schedule", "protocol"),
    "exec": ("protocol", "memory"),
    "launch": ("algo", "exec", "memory", "bucket"),
    "comm": ("launch",),
    "python": ("comm",),
}
CPP_SUFFIXES = {".h", ".hpp", ".inc", ".cc", ".cpp", ".cu", ".cuh"}
# Repository folders that the package must never import.
OUTSIDE = {"tests", "benchmarks", "examples", "tools", "docs"}
# Serializers that run code of whoever wrote the bytes.
UNSAFE_SERIALIZERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve"}
# What a module may import while `import dcomm...` runs, beyond the standard library; the rest is imported in
# the functions that need it.
MODULE_LEVEL = {
    "torch": {"dcomm", "numpy", "torch"},
    "cli": {"dcomm", "numpy", "rich", "typer"},
    "": {"dcomm", "numpy"},
}

INCLUDE = re.compile(r'^\s*#\s*include\s*(?P<open>[<"])(?P<path>[^>"]+)[>"]')
TORCH_HEADER = re.compile(r"^(torch|ATen|c10|caffe2)/")
PYTHON_HEADER = re.compile(r"^(pybind11/|Python\.h$)")
CUDA_HEADER = re.compile(
    r"^(cuda|cub/|nv/|thrust/|cooperative_groups|device_launch_parameters|driver_types|vector_types|nvml|mma\.h)"
)
ASSERT_HEADER = re.compile(r"^(cassert|assert\.h)$")
# Group 1 is what stands before the name: an object, a class or a return type means another function.
DEADLY_CALL = re.compile(
    r"(?P<before>\.|->|\w\s*::|\bstd\s*::|::|[\w>&*]\s+|[>&*~]|)\s*"
    r"\b(?P<name>exit|_exit|_Exit|quick_exit|abort|terminate|assert|trap|__trap|__builtin_trap)\s*\("
)
DEADLY_ASM = re.compile(r'"[^"\n]*\btrap\s*;[^"\n]*"')
KEYWORDS_BEFORE_CALL = re.compile(r"\b(return|else|do|case|throw|co_return)\s+$")


@dataclass(frozen=True, order=True)
class Violation:
    """One broken rule; the path is relative to the root."""

    path: str
    line: int
    rule: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: [{self.rule}] {self.message}"


def allowed_floors(floor: str) -> set[str]:
    """The floors that `floor` may include, itself too."""
    found = {floor}
    for below in DIRECT[floor]:
        found |= allowed_floors(below)
    return found


# ---- C++ ---------------------------------------------------------------------------------------------------
_TOKEN = re.compile(
    r'//[^\n]*|/\*.*?\*/|R"(?P<tag>[^()\s\\]{0,16})\(.*?\)(?P=tag)"|"(?:\\.|[^"\\\n])*"'
    r"|(?<![0-9a-fA-F])'(?:\\.|[^'\\\n])+'",
    re.DOTALL,
)


def _blank(text: str) -> str:
    return re.sub(r"[^\n]", " ", text)


def strip_cpp(text: str, *, strings: bool) -> str:
    """Blanks comments, and strings too if asked, without moving anything to another line or column."""

    def replace(match: re.Match[str]) -> str:
        token = match[0]
        if token.startswith("/"):
            return _blank(token)
        if strings:
            return token[0] + _blank(token[1:-1]) + token[-1]
        return token

    return _TOKEN.sub(replace, text)


def _line_of(text: str, offset: int) -> int:
    return text.count("\n", 0, offset) + 1


def _includes(csrc: Path, path: Path, code: str) -> Iterator[tuple[int, str, str]]:
    floor = path.relative_to(csrc).parts[0]
    allowed = allowed_floors(floor)
    cuda_allowed = (floor in ("exec", "launch") and path.suffix in (".cu", ".cuh")) or (
        floor == "memory" and path.name.startswith("cuda_")
    )
    for number, line in enumerate(code.splitlines(), start=1):
        match = INCLUDE.match(line)
        if match is None:
            continue
        header = match["path"]
        target = header.split("/", 1)[0]
        if TORCH_HEADER.match(header):
            yield (
                number,
                "torch",
                f"<{header}>: the core is torch-free; data crosses as pointer, count, dtype",
            )
        elif PYTHON_HEADER.match(header):
            if floor != "python":
                yield number, "pybind11", f"<{header}>: only csrc/python may know of Python"
        elif ASSERT_HEADER.match(header):
            yield number, "deadly-call", f"<{header}>: raise a typed error instead"
        elif CUDA_HEADER.match(header):
            if not cuda_allowed:
                yield (
                    *(number, "cuda"),
                    f"<{header}>: only csrc/exec/*.cu*, csrc/launch/*.cu* and csrc/memory/cuda_* may; the "
                    "rest must compile without a CUDA toolkit",
                )
        elif match["open"] == "<":
            if target in DIRECT and "/" in header:
                yield number, "include-style", f'<{header}>: write "{header}"; angle brackets are for others'
        elif "/" not in header or header.startswith(".") or target not in DIRECT:
            yield number, "include-style", f'"{header}": write it as "floor/file.h", seen from csrc'
        elif not (csrc / header).exists():
            yield number, "include-style", f'"{header}": there is no such file under csrc'
        elif target not in allowed:
            below = ", ".join(sorted(allowed - {floor})) or "nothing"
            yield number, "floor", f'"{header}": {floor} may include {below}, but not {target}'


def _deadly_calls(code: str, code_with_strings: str) -> Iterator[tuple[int, str, str]]:
    bare: list[re.Match[str]] = []
    deadly: list[re.Match[str]] = []
    own_methods: set[str] = set()
    for match in DEADLY_CALL.finditer(code):
        before = "".join(match["before"].split())
        if before in ("std::", "::"):
            deadly.append(match)
        elif before == "" or KEYWORDS_BEFORE_CALL.search(code[: match.start("name")]):
            bare.append(match)
        elif before not in (".", "->"):
            own_methods.add(match["name"])  # `void abort()` or `Communicator::abort()`: bare calls here mean that
    deadly += [match for match in bare if match["name"] not in own_methods]
    for match in deadly:
        yield (
            *(_line_of(code, match.start("name")), "deadly-call"),
            f"{match['name']}() ends the user's process or context; raise or record a typed error instead",
        )
    for match in DEADLY_ASM.finditer(code_with_strings):
        line = _line_of(code_with_strings, match.start())
        yield line, "deadly-call", "trap kills the CUDA context; set the error word and return instead"


def check_cpp(root: Path) -> Iterator[Violation]:
    """All violations under csrc/."""
    csrc = root / "csrc"
    for path in sorted(csrc.rglob("*")):
        if path.suffix not in CPP_SUFFIXES or not path.is_file():
            continue
        shown = path.relative_to(root).as_posix()
        parts = path.relative_to(csrc).parts
        if parts[0] not in DIRECT:
            yield Violation(shown, 1, "floor", f"csrc/{parts[0]} is no floor: {', '.join(DIRECT)}")
            continue
        text = path.read_text(encoding="utf-8")
        code = strip_cpp(text, strings=True)
        code_with_strings = strip_cpp(text, strings=False)
        # Include paths are strings, so they are read where strings still stand.
        found = [*_includes(csrc, path, code_with_strings), *_deadly_calls(code, code_with_strings)]
        if not (parts[0] == "launch" and path.suffix == ".cu"):
            for match in re.finditer(r"<<<", code):
                line = _line_of(code, match.start())
                found.append((line, "launch", "kernels are launched in csrc/launch/*.cu only"))
        for line, rule, message in found:
            yield Violation(shown, line, rule, message)


# ---- Python ------------------------------------------------------------------------------------------------
def _is_type_checking(node: ast.If) -> bool:
    test = node.test
    name = test.attr if isinstance(test, ast.Attribute) else test.id if isinstance(test, ast.Name) else ""
    return name == "TYPE_CHECKING"


def _walk(node: ast.AST, *, at_import: bool) -> Iterator[tuple[ast.AST, bool]]:
    """All nodes, each with whether it runs while the module is imported."""
    for child in ast.iter_child_nodes(node):
        yield child, at_import
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from _walk(child, at_import=False)
        elif isinstance(child, ast.If) and _is_type_checking(child):
            for part in child.body:
                yield part, False
                yield from _walk(part, at_import=False)
            for part in child.orelse:
                yield part, at_import
                yield from _walk(part, at_import=at_import)
        else:
            yield from _walk(child, at_import=at_import)


def _imported(node: ast.AST, package: tuple[str, ...]) -> list[str]:
    """Full dotted names that an import statement asks for; relative ones are resolved against `package`."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = list(package[: len(package) - node.level + 1]) if node.level else []
        base += node.module.split(".") if node.module else []
        return [".".join([*base, alias.name]) for alias in node.names]
    return []


def _dotted(node: ast.expr) -> str:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def _check_import(name: str, zone: str, *, at_import: bool) -> Iterator[tuple[str, str]]:
    top = name.split(".", 1)[0]
    if top in UNSAFE_SERIALIZERS:
        yield "pickle", f"{name}: bytes from a peer must not run code; send arrays or JSON"
    elif top in OUTSIDE:
        yield "outside", f"{name}: the installed package holds no {top}/"
    elif not at_import:
        return
    elif zone != "torch" and (top == "torch" or name == "dcomm.torch" or name.startswith("dcomm.torch.")):
        yield "torch", f"{name}: only dcomm/torch may import torch at module level; import it in the function"
    elif top not in sys.stdlib_module_names and top not in MODULE_LEVEL[zone]:
        yield (
            "dependency",
            f"{name}: not a dependency of this folder; `import dcomm` needs NumPy only, so import it in the function",
        )


def check_python(root: Path) -> Iterator[Violation]:
    """All violations under dcomm/."""
    package_root = root / "dcomm"
    for path in sorted([*package_root.rglob("*.py"), *package_root.rglob("*.pyi")]):
        shown = path.relative_to(root).as_posix()
        parts = path.relative_to(root).parts
        zone = parts[1] if len(parts) > 2 and parts[1] in MODULE_LEVEL else ""
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=shown)
        for node, at_import in _walk(tree, at_import=path.suffix == ".py"):
            found: list[tuple[str, str]] = []
            # `import a, b` may break a rule in each name; one of `from a import b, c` is enough.
            for name in _imported(node, parts[:-1]):
                for violation in _check_import(name, zone, at_import=at_import):
                    if isinstance(node, ast.Import) or violation[0] not in [rule for rule, _ in found]:
                        found.append(violation)
            if isinstance(node, ast.Call):
                called = _dotted(node.func)
                if called in ("os.abort", "os._exit"):
                    message = f"{called}() ends the user's process; raise a typed error instead"
                    found.append(("deadly-call", message))
                if called == "torch.load" or any(
                    keyword.arg == "allow_pickle" and getattr(keyword.value, "value", None) is True
                    for keyword in node.keywords
                ):
                    message = f"{called}(): unpickles, which runs code of whoever wrote the bytes"
                    found.append(("pickle", message))
            for rule, message in found:
                yield Violation(shown, getattr(node, "lineno", 1), rule, message)


def check(root: Path) -> list[Violation]:
    """All violations of the tree, sorted by file and line."""
    return sorted([*check_cpp(root), *check_python(root)])


def main(argv: list[str]) -> int:
    root = Path(argv[0]) if argv else Path(__file__).resolve().parents[1]
    violations = check(root)
    for violation in violations:
        print(violation)
    num_files = sum(path.suffix in CPP_SUFFIXES for path in (root / "csrc").rglob("*"))
    num_files += sum(1 for _ in (root / "dcomm").rglob("*.py"))
    print(f"floors: {num_files} files, {len(violations)} violations")
    if num_files == 0:
        print(f"{root} holds neither csrc/ nor dcomm/; name the root of the checkout", file=sys.stderr)
        return 1
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
