"""Results as JSON and as text."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from single import Outcome

VERDICTS = ("passed", "failed", "skipped", "not applicable")


def line(backend: str, outcome: Outcome) -> None:
    """One test on one line, and all that is known of why it failed."""
    operations = f", {sum(outcome.operations)} operations" if outcome.operations else ""
    head = f"{backend} {outcome.world_size} {outcome.test}"
    print(f"{head}: {outcome.verdict}, {outcome.seconds} s{operations}", flush=True)
    if outcome.verdict == "failed":
        print("    " + outcome.reason.rstrip().replace("\n", "\n    "), flush=True)


def results(outcomes: dict[str, list[Outcome]], seconds: float) -> dict[str, Any]:
    """What is written: when, where and how; per backend and world size what passed, and why the rest did not."""
    return {
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", *sys.argv]),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "seconds": round(seconds),
        "backends": {backend: _by_world_size(found) for backend, found in outcomes.items()},
    }


def compare(found: dict[str, Any], reference: dict[str, Any]) -> None:
    """Add to dcomm's failures what gloo passed in `reference` and dcomm has skipped here."""
    for world_size, ours in found["backends"].get("dcomm", {}).items():
        for test in reference["backends"]["gloo"].get(world_size, {}).get("passed", {}):
            for reason, tests in ours["skipped"].items():
                if test in tests:
                    ours["failed"][test] = f"skipped, and gloo passes it: {reason}"
                    ours["counts"]["failed"] += 1


def write(found: dict[str, Any], path: Path) -> None:
    """As JSON."""
    path.write_text(json.dumps(found, indent=1) + "\n")


def tell(found: dict[str, Any]) -> int:
    """Print the counts, skips by reason, and what failed; 1 if anything did."""
    failed = 0
    for backend, sizes in found["backends"].items():
        for world_size, part in sizes.items():
            counts = part["counts"]
            print(f"\n{backend}, {world_size} ranks: " + ", ".join(f"{counts[each]} {each}" for each in VERDICTS))
            for reason, tests in part["skipped"].items():
                print(f"  {len(tests):4d} skipped: {reason}")
            for test, reason in part["not applicable"].items():
                print(f"  not applicable: {test}: {reason}")
            for test, reason in part["failed"].items():
                print(f"  FAILED: {test}: {reason}")
            failed += counts["failed"]
    print(f"\n{found['seconds']} s")
    return int(failed > 0)


def _by_world_size(outcomes: list[Outcome]) -> dict[str, Any]:
    sizes: dict[str, Any] = {}
    for world_size in sorted({each.world_size for each in outcomes}):
        these = sorted((each for each in outcomes if each.world_size == world_size), key=lambda each: each.test)
        counts = Counter(each.verdict for each in these)
        skips: dict[str, list[str]] = {}
        for each in these:
            if each.verdict == "skipped":
                skips.setdefault(each.reason, []).append(each.test)
        sizes[str(world_size)] = {
            "counts": {verdict: counts[verdict] for verdict in VERDICTS},
            # With the operations of all ranks together, where the backend tells them.
            "passed": {each.test: sum(each.operations) or None for each in these if each.verdict == "passed"},
            "failed": {each.test: _error(each.reason) for each in these if each.verdict == "failed"},
            "not applicable": {each.test: each.reason for each in these if each.verdict == "not applicable"},
            "skipped": dict(sorted(skips.items(), key=lambda each: -len(each[1]))),
        }
    return sizes


def _error(text: str) -> str:
    """The line of a traceback that says what happened."""
    lines = [each.strip() for each in text.splitlines() if each.strip()]
    named = [each for each in lines if re.match(r"[\w.]*(Error|Exception)\b", each)]
    return (named or lines or [""])[-1]
