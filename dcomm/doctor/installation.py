"""Python, the compiled core, and the libraries that dcomm meets. None of these is imported: metadata will do."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import platform
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from dcomm._no_core import reason_and_fix
from dcomm.doctor.finding import Finding, fail, ok, skip, warn

_OLDEST_PYTHON, _NEWEST_PYTHON = (3, 10), (3, 13)
PACKAGES = ("numpy", "torch", "nccl", "cupy", "mpi4py")
_OLDEST = {"numpy": (1, 26), "torch": (2, 11)}
_NCCL_NAMES = ("nvidia-nccl-cu13", "nvidia-nccl-cu12", "nvidia-nccl-cu11")
_CUPY_NAMES = ("cupy-cuda13x", "cupy-cuda12x", "cupy-cuda11x", "cupy")
_FOR = {
    "torch": ("dcomm.torch needs it", "pip install torch"),
    "nccl": ("only torch uses it, on GPUs", "pip install a CUDA build of torch, if GPUs are to be used"),
    "cupy": ("optional", "nothing to do, unless your program uses it"),
    "mpi4py": ("optional", "nothing to do, unless your program uses it"),
}


def python() -> Finding:
    """The interpreter."""
    found = f"{platform.python_version()} ({sys.executable})"
    if _OLDEST_PYTHON <= sys.version_info[:2] <= _NEWEST_PYTHON:
        return ok("python", found, version=platform.python_version())
    return warn(
        "python", found, "use Python 3.10 to 3.13, which dcomm is tested with", version=platform.python_version()
    )


def core(error: ImportError | None) -> Finding:
    """The compiled core and the kernels it chose; `error`: why it could not be imported."""
    if error is not None:
        reason, fix = reason_and_fix(error)
        return fail("core", reason, fix, version=None, isa=None)
    import dcomm

    folder = str(Path(dcomm.__file__).parent)
    try:
        comm = dcomm.init_threads(1)[0]
    except ValueError:  # a bad setting, which has its own line
        return ok("core", f"dcomm {dcomm.__version__} in {folder}", version=dcomm.__version__, isa=None, folder=folder)
    isa = comm._core.isa
    comm.close()
    found = f"dcomm {dcomm.__version__}, {isa} kernels, in {folder}"
    return ok("core", found, version=dcomm.__version__, isa=isa, folder=folder)


def version_of(*names: str) -> tuple[str, str] | None:
    """The first of these distributions that is installed, and its version."""
    for name in names:
        with suppress(importlib.metadata.PackageNotFoundError):
            return name, importlib.metadata.version(name)
    for name in names:  # NumPy that came by another way than a package is here all the same: dcomm has imported it
        if name in sys.modules:
            return name, str(getattr(sys.modules[name], "__version__", "of unknown version"))
    return None


def torch_cuda() -> str | None:
    """The CUDA version that the installed torch was built for; None: a CPU build, or no torch. Does not import it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    with suppress(OSError, SyntaxError):
        tree = ast.parse((Path(spec.origin).parent / "version.py").read_text(encoding="utf-8"))
        for node in tree.body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            if any(isinstance(target, ast.Name) and target.id == "cuda" for target in targets):
                value = getattr(node, "value", None)
                return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else None
    return None


def _is_older(version: str, oldest: tuple[int, ...]) -> bool:
    numbers = version.split("+")[0].split(".")
    with suppress(ValueError):
        return tuple(int(number) for number in numbers[: len(oldest)]) < oldest
    return False


def packages() -> Iterator[Finding]:
    """Versions, from the metadata of what is installed."""
    for name in PACKAGES:
        distributions = {"nccl": _NCCL_NAMES, "cupy": _CUPY_NAMES}.get(name, (name,))
        installed = version_of(*distributions)
        if installed is None and name == "numpy":
            yield fail(name, "not installed", "pip install numpy", version=None)
        elif installed is None:
            why, fix = _FOR[name]
            yield skip(name, f"not installed; {why}", fix, version=None)
        else:
            yield _judge(name, *installed)


def _judge(name: str, distribution: str, version: str) -> Finding:
    oldest = _OLDEST.get(name, ())
    found = version if name == distribution else f"{version} ({distribution})"
    if name == "torch":
        cuda = torch_cuda()
        found += f", built for CUDA {cuda}" if cuda else ", a CPU build"
        details: dict[str, object] = {"version": version, "cuda": cuda}
    else:
        details = {"version": version}
    if _is_older(version, oldest):
        least = ".".join(map(str, oldest))
        return warn(
            name, f"{found}: dcomm is tested with {least} and later", f"pip install '{name}>={least}'", **details
        )
    return ok(name, found, **details)
