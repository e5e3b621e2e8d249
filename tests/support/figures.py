"""Figures that tests measure: printed always, and kept for docs/promises.md where DCOMM_RELIABILITY_JSON names a file.

    DCOMM_RELIABILITY_JSON=benchmarks/results/reliability.json pytest tests/reliability -m 'not soak'

Each key has one entry, of its latest run: what was measured, by which test, when, on how many CPUs. Entries of other
keys stay, so that tests may run one by one, in several processes at once, and on several days.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

Figure = int | float | str | bool

VARIABLE = "DCOMM_RELIABILITY_JSON"


def _rounded(value: Figure) -> Figure:
    return float(f"{value:.4g}") if isinstance(value, float) else value


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def record_figure(key: str, **values: Figure) -> None:
    """Print what a test has measured, and merge it under `key` into the file that DCOMM_RELIABILITY_JSON names.

    Args:
        key: What docs/promises.md calls it: "kill_storm"; one for each figure, the same in every run.
        values: By name, with the unit at its end: kills=500, p99_ms=41.2. Floats are kept to 4 digits.
    """
    figures = {name: _rounded(value) for name, value in values.items()}
    print(f"figure {key}: {', '.join(f'{name}={value}' for name, value in figures.items())}")
    target = os.environ.get(VARIABLE)
    if not target:
        return
    entry = {
        "figures": figures,
        "test": os.environ.get("PYTEST_CURRENT_TEST", "").split(" ")[0],
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "cpus": len(os.sched_getaffinity(0)),
    }
    path = Path(target).resolve()
    with _locked(path):
        known = json.loads(path.read_text()) if path.exists() else {}
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(json.dumps({**known, key: entry}, indent=2, sort_keys=True) + "\n")
        os.replace(partial, path)
