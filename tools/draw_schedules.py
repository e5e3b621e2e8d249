"""Draws docs/pictures/*.svg from the recorded schedules of the all-reduce algorithms.

    python tools/draw_schedules.py           # writes the pictures
    python tools/draw_schedules.py --check   # exit status 1 where one is not what the code records

The library records what each rank would do (the algorithm's own text on the recording executor); this script plays
the record, which gives each message its step, and draws one column per step: rank r is a row, an arrow is a message,
its label the elements it carries. An SVG is plain text, so that a change of the schedule is a change in the picture.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path

from dcomm import _core

PICTURES = Path(__file__).resolve().parents[1] / "docs" / "pictures"
ALGOS = {"one_shot": 4, "two_shot": 2, "ring": 1, "tree": 5}  # csrc/protocol/control.h
WORLD_SIZE = 4
COUNT = 64  # elements: chunks of 16, halves of 32
COLORS = ("#2a6f97", "#c1121f", "#588157", "#9a6b00")
ROW, COLUMN, LEFT, TOP = 60, 210, 70, 60


@dataclass(frozen=True)
class Message:
    step: int
    sender: int
    receiver: int
    first: int
    count: int


def play(algo: str, world_size: int, count: int) -> list[Message]:
    """The messages with their steps: a message leaves one step after the latest that its sender has waited for."""
    programs = _core.record_all_reduce(ALGOS[algo], world_size, count)
    at = [0] * world_size
    level = [0] * world_size
    sent: dict[tuple[int, int, int, int], int] = {}
    messages: list[Message] = []
    moved = True
    while moved:
        moved = False
        for rank, steps in enumerate(programs):
            while at[rank] < len(steps):
                sends, peer, flow, seq, first, length = steps[at[rank]]
                if sends:
                    sent[rank, peer, flow, seq] = level[rank] + 1
                    messages.append(Message(level[rank] + 1, rank, peer, first, length))
                elif (peer, rank, flow, seq) in sent:
                    level[rank] = max(level[rank], sent[peer, rank, flow, seq])
                else:
                    break
                at[rank] += 1
                moved = True
    if any(place < len(steps) for place, steps in zip(at, programs, strict=True)):
        raise AssertionError(f"{algo}: the recorded schedule does not end")
    return messages


def svg(algo: str, world_size: int, count: int) -> str:
    messages = play(algo, world_size, count)
    num_steps = max(message.step for message in messages)
    sent = [sum(m.count for m in messages if m.sender == rank) for rank in range(world_size)]
    width, height = LEFT + COLUMN * num_steps + 150, TOP + ROW * (world_size - 1) + 50
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f"<title>{escape(algo)} all-reduce of {count} elements among {world_size} ranks</title>",
        '<rect width="100%" height="100%" fill="white"/>',
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#444"/></marker></defs>',
        f'<text x="{LEFT}" y="20" font-size="14">{algo}: {num_steps} step{"s" if num_steps > 1 else ""}</text>',
    ]
    right = LEFT + COLUMN * num_steps
    for rank in range(world_size):
        y = TOP + ROW * rank
        lines.append(f'<text x="8" y="{y + 4}">rank {rank}</text>')
        lines.append(f'<line x1="{LEFT}" y1="{y}" x2="{right}" y2="{y}" stroke="#ddd"/>')
        lines.append(f'<text x="{right + 12}" y="{y + 4}" fill="#555">sends {sent[rank]} elements</text>')
    for step in range(1, num_steps + 1):
        lines.append(f'<text x="{LEFT + COLUMN * (step - 1) + 20}" y="44" fill="#555">step {step}</text>')
    # Messages of one step and sender share a start; ends are spread a little, so that no two arrows coincide.
    for message in sorted(messages, key=lambda m: (m.step, m.sender, m.receiver)):
        x1 = LEFT + COLUMN * (message.step - 1) + 20 + 8 * message.sender
        x2 = LEFT + COLUMN * message.step - 26 + 6 * message.sender
        y1, y2 = TOP + ROW * message.sender, TOP + ROW * message.receiver
        color = COLORS[message.sender % len(COLORS)]
        lines.append(
            f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{color}" stroke-width="1.5" '
            'marker-end="url(#head)"/>'
        )
        where = 0.13 + 0.13 * ((message.receiver - message.sender) % world_size)
        label = f"{message.first}-{message.first + message.count - 1}"
        x, y = x1 + where * (x2 - x1), y1 + where * (y2 - y1)
        place = f'x="{x:.0f}" y="{y - 3:.0f}" font-size="10"'
        lines.append(f'<text {place} stroke="white" stroke-width="3">{label}</text>')  # a halo, for crossing lines
        lines.append(f'<text {place} fill="{color}">{label}</text>')
    return "\n".join([*lines, "</svg>", ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with the committed pictures, write nothing")
    check = parser.parse_args().check
    stale = []
    for algo in ALGOS:
        path, text = PICTURES / f"all_reduce_{algo}.svg", svg(algo, WORLD_SIZE, COUNT)
        if check:
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                stale.append(path.name)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    if stale:
        print(f"stale pictures: {', '.join(stale)}; run python tools/draw_schedules.py")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
