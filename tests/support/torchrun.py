"""Runs a script as a user does, under torchrun or as plain Python."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def run_script(
    script: Path, *arguments: str, cwd: Path, num_ranks: int | None = 2, hide: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs to the end; num_ranks None is plain Python without torchrun; `hide`: a package that shall seem missing."""
    launcher = [sys.executable]
    if num_ranks is not None:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
    if hide is not None:
        (cwd / "hidden").mkdir()
        (cwd / "hidden" / f"{hide}.py").write_text(f"raise ModuleNotFoundError('no {hide} here')\n")
        environment["PYTHONPATH"] = os.pathsep.join([str(cwd / "hidden"), environment.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [*launcher, str(script), *arguments],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, err = process.communicate(timeout=100)
    except subprocess.TimeoutExpired:
        process.terminate()  # Not kill: torchrun's workers are sessions of their own, only it can end them.
        out, err = process.communicate(timeout=40)
        pytest.fail(f"still running after 100 s\n{out}\n{err}")
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)
