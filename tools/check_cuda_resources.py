"""Reads what `ptxas -v` reported and fails on kernels that would hurt.

A stack frame or a spill in a kernel that spins makes the first launch resize local memory, which synchronises
the context and can hang it; too many kernels make the library slow to build and to load.

    python tools/check_cuda_resources.py build/cuda [--max-kernels 120]

Each path is a log, or a folder that is searched for `*.ptxas.log` (kept there by DCOMM_PTXAS_LOG=ON).
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ENTRY = re.compile(r"Compiling entry function '(?P<name>[^']+)' for '(?P<arch>[^']+)'")
PROPERTIES = re.compile(r"Function properties for (?P<name>\S+)")
STACK = re.compile(
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
)
REGISTERS = re.compile(r"Used (?P<registers>\d+) registers")
SHARED = re.compile(r"(?P<shared>\d+) bytes smem")


@dataclass
class Kernel:
    """One function for one architecture; sizes in bytes. Called functions count too: entry is then False."""

    name: str
    arch: str
    entry: bool = True
    registers: int = 0
    stack_bytes: int = 0
    spill_store_bytes: int = 0
    spill_load_bytes: int = 0
    shared_bytes: int = 0


def parse(text: str) -> list[Kernel]:
    """Kernels, and functions that were not inlined into them, in the order of the log."""
    kernels: list[Kernel] = []
    entry: Kernel | None = None
    current: Kernel | None = None
    for line in text.splitlines():
        if match := ENTRY.search(line):
            entry = current = Kernel(match["name"], match["arch"])
            kernels.append(entry)
        elif entry is None:
            continue
        elif match := PROPERTIES.search(line):
            if match["name"] == entry.name:
                current = entry
            else:
                current = Kernel(match["name"], entry.arch, entry=False)
                kernels.append(current)
        elif (match := STACK.search(line)) and current is not None:
            current.stack_bytes = int(match["stack"])
            current.spill_store_bytes = int(match["stores"])
            current.spill_load_bytes = int(match["loads"])
        elif match := REGISTERS.search(line):
            entry.registers = int(match["registers"])
            if match := SHARED.search(line):
                entry.shared_bytes = int(match["shared"])
    return kernels


def demangle(names: list[str]) -> list[str]:
    """Readable names where c++filt is installed, without the parameter list."""
    if shutil.which("c++filt") is None or not names:
        return names
    text = "\n".join(names)
    done = subprocess.run(["c++filt", "-p"], input=text, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def problems(kernels: list[Kernel], max_kernels: int) -> list[str]:
    """What is wrong, one line each; an empty log is wrong as well."""
    found: list[str] = []
    entries = [kernel for kernel in kernels if kernel.entry]
    if not entries:
        found.append("no kernel in the logs: was the CUDA module compiled with DCOMM_PTXAS_LOG=ON?")
    for kernel in kernels:
        if kernel.stack_bytes:
            found.append(f"{kernel.arch} {kernel.name}: {kernel.stack_bytes} bytes of stack frame, expected 0")
        if kernel.spill_store_bytes or kernel.spill_load_bytes:
            found.append(
                f"{kernel.arch} {kernel.name}: spills {kernel.spill_store_bytes} bytes of stores and "
                f"{kernel.spill_load_bytes} bytes of loads, expected 0"
            )
    for arch in sorted({kernel.arch for kernel in entries}):
        count = sum(kernel.arch == arch for kernel in entries)
        if count > max_kernels:
            found.append(f"{arch}: {count} kernels, at most {max_kernels} are allowed")
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Check registers, spills and stack frames of CUDA kernels.")
    parser.add_argument("paths", nargs="+", type=Path, help="ptxas logs, or folders that hold *.ptxas.log")
    parser.add_argument("--max-kernels", type=int, default=120, help="per architecture (default %(default)s)")
    options = parser.parse_args(argv)

    logs: list[Path] = []
    for path in options.paths:
        if path.is_dir():
            # A log without its object is that of a source file which is gone.
            logs += [log for log in sorted(path.rglob("*.ptxas.log")) if log.with_suffix("").with_suffix("").exists()]
        else:
            logs.append(path)
    kernels = [kernel for log in logs for kernel in parse(log.read_text(errors="replace"))]
    for kernel, name in zip(kernels, demangle([kernel.name for kernel in kernels]), strict=True):
        kernel.name = name

    print(f"{'arch':8} {'regs':>5} {'stack':>6} {'spill_st':>8} {'spill_ld':>8} {'smem':>6}  kernel")
    for kernel in sorted(kernels, key=lambda k: (k.arch, not k.entry, k.name)):
        print(
            f"{kernel.arch:8} {kernel.registers or '-':>5} {kernel.stack_bytes:>6} "
            f"{kernel.spill_store_bytes:>8} {kernel.spill_load_bytes:>8} {kernel.shared_bytes:>6}  "
            f"{kernel.name}{'' if kernel.entry else '  (called function)'}"
        )
    found = problems(kernels, options.max_kernels)
    for line in found:
        print(f"error: {line}", file=sys.stderr)
    entries = sum(kernel.entry for kernel in kernels)
    print(f"{entries} kernels in {len(logs)} logs, {len(found)} problems")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
