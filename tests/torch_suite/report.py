"""Results as JSON and as text."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from one_test import Outcome

VERDICTS = ("passed", "failed", "skipped", "not applicable")


def line(backend: str, outcome: Outcome) -> None:
    """One test on one line, and why it failed."""
    operations = f", {sum(outcome.operations)} operations" if outcome.operations else ""
    print(
        f"{backend} {outcome.world_size} {outcome.test}: {outcome.verdict}, {outcome.seconds} s{operations}", flush=True
    )
    if outcome.verdict == "failed":
        print("    " + outcome.reason.rstrip().replace("\n", "\n    "), flush=True)


def results(outcomes: dict[str, list[Outcome]], seconds: float) -> dict[str, Any]:
    """What is written: machine and command, counts, skips by reason, and every test that was started."""
    return {
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", *sys.argv]),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "seconds": round(seconds),
        "backends": {backend: _by_world_size(found) for backend, found in outcomes.items()},
    }


def write(found: dict[str, Any], path: Path) -> None:
    """As JSON."""
    path.write_text(json.dumps(found, indent=1) + "\n")


def compare(found: dict[str, Any], path: Path) -> None:
    """Add to the failures what gloo passed in the results at `path` and dcomm has not."""
    theirs = json.loads(path.read_text())["backends"]["gloo"]
    for world_size, ours in found["backends"].get("dcomm", {}).items():
        must = theirs.get(world_size, {}).get("tests", {})
        for test, outcome in ours["tests"].items():
            if outcome["verdict"] == "skipped" and must.get(test, {}).get("verdict") == "passed":
                ours["counts"]["failed"] += 1
                outcome.update(verdict="failed", reason=f"skipped, and gloo passes it: {outcome['reason']}")


def tell(found: dict[str, Any]) -> int:
    """Print the counts; 1 if anything failed."""
    failed = 0
    for backend, sizes in found["backends"].items():
        for world_size, part in sizes.items():
            counts = part["counts"]
            print(f"\n{backend}, {world_size} ranks: " + ", ".join(f"{counts[each]} {each}" for each in VERDICTS))
            for reason, count in part["skipped"].items():
                print(f"  {count:4d} skipped: {reason}")
            for test, outcome in part["tests"].items():
                if outcome["verdict"] == "not applicable":
                    print(f"  not applicable: {test}: {outcome['reason']}")
                if outcome["verdict"] == "failed":
                    print(f"  FAILED: {test}: {outcome['reason'].strip().splitlines()[-1]}")
            failed += counts["failed"]
    return int(failed > 0)


def _by_world_size(outcomes: list[Outcome]) -> dict[str, Any]:
    sizes: dict[str, Any] = {}
    for world_size in sorted({each.world_size for each in outcomes}):
        these = sorted((each for each in outcomes if each.world_size == world_size), key=lambda each: each.test)
        counts = Counter(each.verdict for each in these)
        sizes[str(world_size)] = {
            "counts": {verdict: counts[verdict] for verdict in VERDICTS},
            "skipped": dict(Counter(each.reason for each in these if each.verdict == "skipped").most_common()),
            "tests": {each.test: each.as_dict() for each in these},
        }
    return sizes
