"""The findings as one JSON document, and that document as lines of text."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from dcomm.bench.machine import describe_machine
from dcomm.doctor.finding import STATUSES
from dcomm.doctor.run import Line

SCHEMA = 1  # grows when a key changes its meaning or goes; new keys may come at any time
_NAME_WIDTH = 14
_WORDS = {"ok": "ok", "warn": "WARN", "fail": "FAIL", "skip": "skip"}


class TextLine(NamedTuple):
    """A line and what it is: head, group, ok, warn, fail, skip, fix."""

    text: str
    kind: str


def document(lines: Sequence[Line], elapsed_s: float) -> dict[str, Any]:
    """Everything that was found; docs/doctor.md says what the keys mean."""
    by_name = {line.finding.name: line.finding for line in lines}
    counts = {status: sum(line.finding.status == status for line in lines) for status in STATUSES}
    core = by_name["core"].details
    return {
        "schema": SCHEMA,
        "dcomm": core.get("version"),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": describe_machine(core.get("isa") or "unknown"),
        "status": "fail" if counts["fail"] else "warn" if counts["warn"] else "ok",
        "counts": counts,
        "elapsed_s": round(elapsed_s, 3),
        "checks": [{"group": line.group, **line.finding.as_json()} for line in lines],
    }


def text_lines(found: dict[str, Any]) -> Iterator[TextLine]:
    """The report for people: a line for each check, and below it the fix where there is something to fix."""
    machine = found["machine"]
    yield TextLine(f"dcomm doctor: {machine['cpu']}, Linux {machine['kernel']}, {found['date']}", "head")
    group = ""
    for check in found["checks"]:
        if check["group"] != group:
            group = check["group"]
            yield TextLine(group, "group")
        status = check["status"]
        yield TextLine(f"  {_WORDS[status]:<5} {check['name']:<{_NAME_WIDTH}} {check['found']}", status)
        if status in ("warn", "fail"):
            yield TextLine(f"  {'':<5} {'':<{_NAME_WIDTH}} fix: {check['fix']}", "fix")
    counts = found["counts"]
    rest = ", ".join(f"{counts[status]} {_WORDS[status].lower()}" for status in STATUSES)
    yield TextLine(f"{len(found['checks'])} checks in {found['elapsed_s']:.1f} s: {rest}", found["status"])


def exit_status(found: dict[str, Any]) -> int:
    """1 where a check failed; else 0."""
    return 1 if found["counts"]["fail"] else 0
