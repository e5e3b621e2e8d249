"""Where, when and with what something was measured."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy

import dcomm

_ROOT = Path(__file__).resolve().parents[2]


def cpu_model() -> str:
    """The processor's name as the kernel gives it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # no /proc here
        text = ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def kernel_version() -> str:
    """6.18.4 of 6.18.4-vendor-17."""
    return platform.release().partition("-")[0]


def num_cpus() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def commit(root: Path = _ROOT) -> str:
    """The commit of the checkout that the package lies in, "+changes" behind it if there are; else "unknown".

    root: another checkout, of which an installed package was built.
    """

    def git(*command: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    if not (root / "csrc").is_dir():  # installed: a repository around it is another's
        return "unknown"
    try:
        head = git("rev-parse", "HEAD")
        return head + ("+changes" if head and git("status", "--porcelain", "--", "csrc", "dcomm") else "") or "unknown"
    except OSError:  # no git
        return "unknown"


def describe_machine(isa: str) -> dict[str, Any]:
    """The processor, the CPUs that this process may use, the kernel's version, the CPU kernels in use."""
    return {"cpu": cpu_model(), "cores": num_cpus(), "kernel": kernel_version(), "isa": isa}


def describe(command: str, versions: dict[str, str], isa: str) -> dict[str, Any]:
    """The head of a report."""
    own = {"dcomm": dcomm.__version__, "python": platform.python_version(), "numpy": numpy.__version__}
    return {
        "machine": describe_machine(isa),
        "versions": {**own, **versions},
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": command,
        "commit": commit(),
    }
