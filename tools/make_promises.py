"""Writes docs/promises.md: what dcomm promises, the tests that show it, the figures that they measured and when.

    python tools/make_promises.py            # write the page
    python tools/make_promises.py --check    # change nothing; exit 1 if a test is gone or the page would change

The promises are in tools/promises.py, the figures in benchmarks/results/reliability.json, where tests put them:

    DCOMM_RELIABILITY_JSON=benchmarks/results/reliability.json python -m pytest tests/reliability -m 'not soak'

Needs the standard library only.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from promises import PROMISES, Promise

HEAD = """\
# What dcomm promises

Each promise stands beside the tests that show it. A figure is what such a test measured when it was last run for this
page, in the way that the date and the number of CPUs say; without one, the test itself holds the bound. Made by
`python tools/make_promises.py` from `tools/promises.py` and `benchmarks/results/reliability.json`.
"""


class PromiseError(Exception):
    """A promise that cannot be shown; the message says what to do."""


def test_exists(root: Path, test: str) -> bool:
    """test: path::name, of a function at the top of a Python file, or of a word in a C++ one."""
    path, _, name = test.partition("::")
    if not (root / path).is_file():
        return False
    text = (root / path).read_text(encoding="utf-8")
    if path.endswith(".py"):
        return any(isinstance(node, ast.FunctionDef) and node.name == name for node in ast.parse(text).body)
    return re.search(rf"\b{re.escape(name)}\b", text) is not None


def figure_cells(figure: str, results: dict[str, Any]) -> tuple[str, str]:
    """What was measured, and when; the first one is empty where it was not."""
    key, _, text = figure.partition(": ")
    entry = results.get(key)
    if entry is None:
        return "", ""
    try:
        return text.format(**entry["figures"]), f"{entry['date']}, {entry['cpus']} CPUs"
    except KeyError as error:
        raise PromiseError(f"figure {key} has no {error}: expected one of {', '.join(entry['figures'])}") from None


def row(promise: Promise, results: dict[str, Any]) -> str:
    cells = [figure_cells(figure, results) for figure in promise.figures]
    measured = [cell for cell in cells if cell[0]]
    tests = "<br>".join(f"`{test.replace('tests/', '', 1)}`" for test in promise.tests)
    figures = "<br>".join(text for text, _ in measured)
    dates = "<br>".join(dict.fromkeys(date for _, date in measured))
    return f"| {promise.text} | {tests} | {figures} | {dates} |"


def page(results: dict[str, Any]) -> Iterator[str]:
    yield HEAD
    for title, promises in PROMISES.items():
        yield f"## {title}\n"
        yield "| promise | tests | figure | measured |"
        yield "|---|---|---|---|"
        yield from (row(promise, results) for promise in promises)
        yield ""


def missing_tests(root: Path) -> list[str]:
    tests = [test for promises in PROMISES.values() for promise in promises for test in promise.tests]
    return [test for test in tests if not test_exists(root, test)]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if the page would change")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1], help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    missing = missing_tests(args.root)
    for test in missing:
        print(f"tools/promises.py: {test} does not exist: name the test that shows the promise", file=sys.stderr)
    path = args.root / "benchmarks" / "results" / "reliability.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    try:
        text = "\n".join(page(results))
    except PromiseError as error:
        print(f"tools/promises.py: {error}", file=sys.stderr)
        return 2
    target = args.root / "docs" / "promises.md"
    is_stale = not target.exists() or target.read_text(encoding="utf-8") != text
    if is_stale:
        print(f"docs/promises.md: {'differs from the promises and figures' if args.check else 'rewritten'}")
        if not args.check:
            target.write_text(text, encoding="utf-8")
    return 1 if missing or (args.check and is_stale) else 0


if __name__ == "__main__":
    sys.exit(main())
