"""Draws docs/pictures/bucketing_step.svg from the events of one step in benchmarks/results/bucketing_step.json.

    python tools/draw_step.py           # writes the picture
    python tools/draw_step.py --check   # exit status 1 where it is not what the file says

benchmarks/record_step.py writes the file. Standard library only.
"""

from __future__ import annotations

import argparse
import json
import sys
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EVENTS = ROOT / "benchmarks" / "results" / "bucketing_step.json"
PICTURE = ROOT / "docs" / "pictures" / "bucketing_step.svg"
WIDTH, LEFT, RIGHT, TOP, RANK, LANE = 1100, 130, 20, 60, 120, 26
COMPUTE, REDUCE, READY = "#a9c5d8", "#c1121f", "#2a6f97"


def spans(events: list[list[Any]], first: str, last: str) -> list[tuple[int, int, str]]:
    """(begin, end, label) of each pair of marks with one label."""
    begun: dict[str, int] = {}
    found = []
    for ns, kind, label in events:
        if kind == first:
            begun[label] = ns
        elif kind == last and label in begun:
            found.append((begun.pop(label), ns, label))
    return found


def moment(events: list[list[Any]], kind: str) -> int:
    return int(next(ns for ns, name, _ in events if name == kind))


def svg(report: dict[str, Any]) -> str:
    ranks = report["events"]
    end = max(moment(events, "finished") for events in ranks)
    height = TOP + RANK * len(ranks) + 40

    def x(ns: float) -> str:
        return f"{LEFT + (WIDTH - LEFT - RIGHT) * ns / end:.1f}"

    def bar(y: int, begin: int, until: int, color: str, text: str = "") -> str:
        wide = (WIDTH - LEFT - RIGHT) * (until - begin) / end
        drawn = f'<rect x="{x(begin)}" y="{y}" width="{max(wide, 0.8):.1f}" height="{LANE - 6}" fill="{color}"/>'
        return drawn + (f'<text x="{float(x(begin)) + 4:.1f}" y="{y + 14}" fill="#234">{text}</text>' if text else "")

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="12">',
        "<title>One training step, from recorded events</title>",
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-size="14">One step, from recorded events: {escape(report["title"])}</text>',
        f'<text x="{LEFT}" y="40" fill="#555">{len(ranks)} ranks, {escape(report["machine"]["cpu"])}, '
        f"{report['machine']['cores']} cores, {report['date']}</text>",
    ]
    for rank, events in enumerate(ranks):
        y = TOP + RANK * rank
        backward = moment(events, "backward")
        buckets = spans(events, "launched", "reduced")
        for row, name in enumerate(("compute", "gradient ready", "all_reduce")):
            lines.append(f'<text x="8" y="{y + LANE * row + 14}">{f"rank {rank}: " if row == 0 else ""}{name}</text>')
        lines.append(bar(y, moment(events, "forward"), backward, COMPUTE, "forward"))
        lines.append(bar(y, backward, moment(events, "backward_end"), COMPUTE, "backward"))
        lines += [
            f'<line x1="{x(ns)}" y1="{y + LANE}" x2="{x(ns)}" y2="{y + 2 * LANE - 6}" stroke="{READY}"/>'
            for ns, kind, _ in events
            if kind == "ready"
        ]
        lines += [bar(y + 2 * LANE, begin, until, REDUCE) for begin, until, _ in buckets]
        share = sum(until - begin for begin, until, _ in buckets) / moment(events, "finished")
        text = f"{len(buckets)} buckets, {share:.1%} of the step"
        lines.append(f'<text x="{LEFT}" y="{y + 3 * LANE + 12}" fill="#555">{text}</text>')
    axis = TOP + RANK * len(ranks) + 8
    step_ms = max(1, round(end / 1e6 / 10))
    for ms in range(0, int(end / 1e6) + 1, step_ms):
        lines.append(f'<line x1="{x(ms * 1e6)}" y1="{axis - 6}" x2="{x(ms * 1e6)}" y2="{axis}" stroke="#888"/>')
        lines.append(f'<text x="{x(ms * 1e6)}" y="{axis + 14}" text-anchor="middle" fill="#555">{ms} ms</text>')
    return "\n".join([*lines, "</svg>", ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with the committed picture, write nothing")
    check = parser.parse_args().check
    text = svg(json.loads(EVENTS.read_text(encoding="utf-8")))
    if not check:
        PICTURE.write_text(text, encoding="utf-8")
    elif not PICTURE.exists() or PICTURE.read_text(encoding="utf-8") != text:
        print(f"{PICTURE.name} is not what {EVENTS.name} says; run python tools/draw_step.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
