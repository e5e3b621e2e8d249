"""DDP hooks of two processes on one GPU: gradients beside DDP's own, and a profile that shows what runs beside what."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from gpu.processes import short
from gpu.report import CHECKOUT, Budget, Report

sys.path.append(str(CHECKOUT / "tests" / "support"))
from rank_processes import process_values

GRADIENTS = CHECKOUT / "tests" / "torch" / "hook_gpu_ranks.py"
TRACE = Path(__file__).with_name("hook_trace.py")
ENV = {"GLOO_SOCKET_IFNAME": "lo"}
TIMEOUT_S = 120
# Worst difference from DDP's own, as a part of the largest gradient of a parameter.
LIMITS = {"all_reduce": 1e-6, "fp16": 2.0**-10, "bf16": 2.0**-7}


def add_gradients(report: Report, hook: str) -> None:
    row = {"what": "gradients", "hook": hook, "world_size": 2}
    mode = {"hook": hook, "steps": 20, "ddp": {"bucket_cap_mb": 0.01}}
    try:
        with tempfile.TemporaryDirectory() as folder:
            args = {"folder": folder, "library": None, "mode": mode}
            found = process_values(2, GRADIENTS, "train", args, env=ENV, timeout=TIMEOUT_S)
    except AssertionError as error:
        report.add({**row, "failure": short(error)})
        return
    worst = max(value["worst"] for value in found)
    served = all(value["communicator"] for value in found)
    report.add({**row, "worst": worst, "served": served, "num_wrong": int(not served or worst > LIMITS[hook])})


def add_trace(report: Report, hook: str) -> None:
    """The trace itself lies beside the report: chrome://tracing, or ui.perfetto.dev, draws it."""
    row = {"what": "overlap", "hook": hook, "world_size": 2}
    path = Path(os.environ.get("OUT", tempfile.gettempdir())) / f"gpu_hooks_{hook}.trace.json"
    try:
        with tempfile.TemporaryDirectory() as folder:
            args = {"folder": folder, "path": str(path), "hook": hook}
            found = process_values(2, TRACE, "trace", args, env=ENV, timeout=TIMEOUT_S)
    except AssertionError as error:
        report.add({**row, "failure": short(error)})
        return
    report.add({**row, **found[0], "trace": path.name})


def run(report: Report, budget: Budget) -> None:
    for hook in LIMITS:
        if budget.allows(f"gradients of {hook}_hook"):
            add_gradients(report, hook)
            report.save()
    for hook in ("all_reduce_hook", "fp16_hook"):
        if budget.allows(f"trace of {hook}"):
            add_trace(report, hook)
            report.save()
