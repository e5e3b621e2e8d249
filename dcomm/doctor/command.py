"""The command line of ``dcomm doctor``. rich colours it where it is installed; nothing depends on it."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from typing import Any

from dcomm.bench.parent import die_with_parent
from dcomm.doctor import report
from dcomm.doctor.parts import all_parts
from dcomm.doctor.run import run

_SECONDS = 2.5
_MAX_SECONDS = 600.0
_STYLES = {
    "head": "dim",
    "group": "bold",
    "ok": "green",
    "warn": "yellow",
    "fail": "bold red",
    "skip": "dim",
    "fix": "",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dcomm doctor",
        description="Looks at this machine and this installation by trying things out: CPUs, caches, memory, kernel, "
        "libraries, GPUs, and two ranks that all-reduce. Each line that warns or fails has the fix.",
        epilog="Exit status: 0 nothing failed; 1 a check failed; 2 wrong options.",
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout instead of the lines")
    parser.add_argument(
        "--seconds",
        type=float,
        default=_SECONDS,
        metavar="S",
        help=f"how long the slow checks may take (default {_SECONDS:g})",
    )
    # For gpu_process.py: the GPU checks alone, as a child of this process id (0: of nobody), a finding a line.
    parser.add_argument("--gpu-side", type=int, metavar="PID", help=argparse.SUPPRESS)
    return parser


def _print(found: dict[str, Any]) -> None:
    lines = report.text_lines(found)
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR") or importlib.util.find_spec("rich") is None:
        for line in lines:
            print(line.text)
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True, highlight=False)
    for line in lines:
        console.print(Text(line.text, style=_STYLES[line.kind]))


def _gpu_side(parent: int) -> int:
    from dcomm.doctor import gpu

    if parent:
        die_with_parent(parent)
    for finding in gpu.look():
        print(json.dumps(finding.as_json()), flush=True)
    return 0


def main(argv: list[str], core_error: ImportError | None = None) -> int:
    """Run the command; its exit status. `core_error`: why the compiled core could not be imported."""
    parser = _parser()
    try:
        args = parser.parse_args(argv)
        if not 0 < args.seconds <= _MAX_SECONDS:
            parser.error(f"--seconds {args.seconds:g}: expected more than 0 and at most {_MAX_SECONDS:g}")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 2
    if args.gpu_side is not None:
        return _gpu_side(args.gpu_side)
    start = time.monotonic()
    lines = run(all_parts(core_error), args.seconds)
    found = report.document(lines, time.monotonic() - start)
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        _print(found)
    return report.exit_status(found)
