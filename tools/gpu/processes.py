"""Ranks that are processes on one GPU: results, time of a handoff, the death of one; also under NVIDIA's MPS."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from gpu.report import CHECKOUT, Budget, Report

sys.path.append(str(CHECKOUT / "tests" / "support"))
from rank_processes import Ranks, process_values

SCRIPT = Path(__file__).with_name("process_ranks.py")
NUM_OPERATIONS = 20
TIMEOUT_S = 60


def short(error: BaseException) -> str:
    """The end of what the ranks wrote, where the reason stands."""
    return f"{type(error).__name__}: {str(error)[-1500:]}"


def add_handoffs(report: Report, world_size: int, windows: str, env: Mapping[str, str], mps: bool = False) -> None:
    what = {"what": "handoffs", "world_size": world_size, "windows": windows, "mps": mps}
    settings = {**env, "DCOMM_CUDA_WINDOWS": windows}
    try:
        found = process_values(
            world_size, SCRIPT, "handoffs", {"num_operations": NUM_OPERATIONS}, env=settings, timeout=TIMEOUT_S
        )
    except AssertionError as error:
        report.add({**what, "failure": short(error)})
        return
    for algo, slowest in found[0].items():
        times = {key: max(value[algo][key] for value in found) for key in slowest if key != "num_wrong"}
        num_wrong = sum(value[algo]["num_wrong"] for value in found)
        report.add({**what, "algo": algo, "num_operations": NUM_OPERATIONS, "num_wrong": num_wrong, **times})


def add_messages(report: Report, world_size: int, windows: str) -> None:
    what = {"what": "messages", "world_size": world_size, "windows": windows}
    try:
        found = process_values(
            world_size,
            SCRIPT,
            "messages",
            {"num_operations": NUM_OPERATIONS},
            env={"DCOMM_CUDA_WINDOWS": windows},
            timeout=TIMEOUT_S,
        )
    except AssertionError as error:
        report.add({**what, "failure": short(error)})
        return
    for i, row in enumerate(found[0]):
        report.add({**what, **row, "num_wrong": sum(value[i]["num_wrong"] for value in found)})


def add_death(report: Report, world_size: int, windows: str) -> None:
    """Rank 1 is killed while the others wait for it on the GPU."""
    what = {"what": "death", "world_size": world_size, "windows": windows}
    try:
        with Ranks(world_size, SCRIPT, "killed", env={"DCOMM_CUDA_WINDOWS": windows}) as ranks:
            for rank in range(world_size):
                ranks.wait_for_mark(rank, "ready", timeout=TIMEOUT_S)
            time.sleep(0.5)
            killed_ns = ranks.send(1, signal.SIGKILL)
            results = ranks.finish(timeout=40)
        for result in results:
            if result.rank == 1:
                continue
            if result.value is None:
                raise AssertionError(str(result))
            found = result.value
            seconds = round((found["at_ns"] - killed_ns) * 1e-9, 3)
            kept = {key: found[key] for key in ("error", "text", "next_call_works")}
            report.add({**what, "rank": result.rank, "seconds": seconds, **kept})
    except AssertionError as error:
        report.add({**what, "failure": short(error)})


@contextmanager
def mps_daemon(program: str) -> Iterator[dict[str, str]]:
    """NVIDIA's Multi-Process Service with folders of its own; the variables that lead to it."""
    with tempfile.TemporaryDirectory(prefix="mps-") as folder:
        names = {"CUDA_MPS_PIPE_DIRECTORY": f"{folder}/pipe", "CUDA_MPS_LOG_DIRECTORY": f"{folder}/log"}
        for path in names.values():
            Path(path).mkdir()
        env = {**os.environ, **names}
        subprocess.run([program, "-d"], env=env, check=True, timeout=20)
        try:
            yield names
        finally:
            subprocess.run([program], input="quit\n", text=True, env=env, check=False, timeout=30)


def add_mps(report: Report, budget: Budget) -> None:
    """For information."""
    program = shutil.which("nvidia-cuda-mps-control")
    if program is None:
        report.add({"what": "mps", "error": "no nvidia-cuda-mps-control on this machine"})
        return
    try:
        with mps_daemon(program) as env:
            for world_size in (2, 4):
                if budget.allows(f"{world_size} processes under MPS"):
                    add_handoffs(report, world_size, "vmm", env, mps=True)
    except (OSError, subprocess.SubprocessError) as error:
        report.add({"what": "mps", "error": short(error)})


def run(report: Report, budget: Budget) -> None:
    for kind, world_size, windows in (
        ("handoffs", 2, "vmm"),
        ("messages", 2, "vmm"),
        ("death", 2, "vmm"),
        ("handoffs", 2, "ipc"),
        ("death", 2, "ipc"),
        ("handoffs", 4, "vmm"),
        ("handoffs", 4, "ipc"),
    ):
        if not budget.allows(f"{kind}: {world_size} processes, {windows}"):
            continue
        if kind == "death":
            add_death(report, world_size, windows)
        elif kind == "messages":
            add_messages(report, world_size, windows)
        else:
            add_handoffs(report, world_size, windows, {})
        report.save()
    add_mps(report, budget)
