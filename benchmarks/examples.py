"""Runs the training examples and keeps what they come to: accuracies, losses, agreement with gloo. No times.

    python benchmarks/examples.py --json benchmarks/results/examples.json

Each is started by torchrun as README.md has it and trains on gloo first, then on "dcomm" (--compare). Exit status: 0;
1 an example failed, which is said, and nothing is written.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from dcomm.bench.machine import describe

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
HYBRID = ("train_gpt.py", "--steps", "40", "--eval-every", "40", "--sample-bytes", "0", "--compare")
# Ranks, then the example and its options.
RUNS: tuple[tuple[int, tuple[str, ...]], ...] = (
    (2, ("train_vision.py", "--compare")),
    (2, ("train_recommender.py", "--compare")),
    (2, ("train_gpt.py", "--sample-bytes", "0", "--compare")),
    (4, (*HYBRID, "--dp", "2", "--tp", "2")),
    (4, (*HYBRID, "--tp", "2", "--pp", "2", "--micro-batches", "4")),
    (8, (*HYBRID, "--dp", "2", "--tp", "2", "--pp", "2", "--micro-batches", "2")),
)


def run_example(ranks: int, arguments: tuple[str, ...], folder: Path, seconds: float) -> dict[str, Any] | None:
    """The report of one example; None where it failed."""
    path = folder / "found.json"
    path.unlink(missing_ok=True)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [*launcher, str(EXAMPLES / arguments[0]), *arguments[1:], "--json", str(path)]
    print(f"# {shlex.join(arguments)}, {ranks} ranks", flush=True)
    with subprocess.Popen(command, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.terminate()  # Not kill: only torchrun can end its workers.
            print(f"{arguments[0]}: still running after {seconds:.0f} s", file=sys.stderr)
            return None
    if status:
        print(f"{arguments[0]}: exit status {status}", file=sys.stderr)
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default="", metavar="TEXT", help="the examples whose command has this in it")
    parser.add_argument("--seconds", type=float, default=900, help="for one example")
    args = parser.parse_args(argv)
    command = shlex.join(["python", "benchmarks/examples.py", *(sys.argv[1:] if argv is None else argv)])
    report = describe(command, {"torch": torch.__version__}, "")
    with tempfile.TemporaryDirectory(prefix="examples-") as folder:
        chosen = [run for run in RUNS if args.only in shlex.join(run[1])]
        found = [run_example(*run, Path(folder), args.seconds) for run in chosen]
    if None in found or not found:
        return 1
    report["examples"] = found
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
