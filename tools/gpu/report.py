"""What a part writes: the circumstances, rows of measurements, and what there was no time for. Needs no GPU."""

from __future__ import annotations

import json
import os
import statistics
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dcomm.bench import machine
from dcomm.bench.text import first_sentence

CHECKOUT = Path(__file__).resolve().parents[2]

Row = dict[str, Any]


class NotHere(Exception):
    """What this machine cannot do, and need not."""


class Budget:
    """The time of a part. What comes too late is left out and named."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self.skipped: list[str] = []

    def allows(self, what: str) -> bool:
        """Whether there is time for `what`."""
        if time.monotonic() < self._end:
            return True
        self.skipped.append(what)
        return False


class Report:
    """Written anew with every save(), so that a part that is killed leaves what it had."""

    def __init__(self, path: Path | None, head: dict[str, Any], budget: Budget) -> None:
        self._path, self._budget = path, budget
        self.values: dict[str, Any] = {**head, "rows": []}

    def add(self, row: Row) -> None:
        """Prints the row and keeps it."""
        print("  ".join(f"{key}={value}" for key, value in row.items()), flush=True)
        self.values["rows"].append(row)

    @contextmanager
    def attempt(self, what: Row) -> Iterator[None]:
        """An error inside becomes a row, and the part goes on."""
        try:
            yield
        except NotHere:
            raise
        except Exception as error:
            traceback.print_exc()
            self.add({**what, "failure": first_sentence(error)})

    def save(self) -> None:
        self.values["skipped"] = self._budget.skipped
        if self._path is None:
            return
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(self.values, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, self._path)


def summary(times_us: list[float], floor_us: float | None = None) -> Row:
    """Median and 90th percentile, and how near the median is to the floor."""
    ordered = sorted(times_us)
    median = statistics.median(ordered)
    found: Row = {"median_us": round(median, 2), "p90_us": round(ordered[int(0.9 * (len(ordered) - 1))], 2)}
    if floor_us is not None:
        found |= {"floor_us": round(floor_us, 2), "percent_of_floor": round(100 * floor_us / median, 1)}
    return found


def head(command: str, commit: str, gpu: dict[str, Any], versions: dict[str, str], isa: str) -> dict[str, Any]:
    """As in the reports of the CPU benchmarks, and the GPU. commit: "" where the checkout's own repository knows it."""
    found = machine.describe(command, versions, isa)
    found["machine"] |= gpu
    found["commit"] = commit or machine.commit(CHECKOUT)
    return found
