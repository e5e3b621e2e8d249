"""The promised figures of the all-reduce, each with what a run measured."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from dcomm.bench.options import Options
from dcomm.bench.summary import Row
from dcomm.bench.text import nbytes_text

Figure = dict[str, Any]
_CALM = 256 << 10
# How many times as fast as gloo two ranks are, from Python.
_OVER_GLOO = ((8, 100), (32 << 10, 50), (256 << 10, 30), (2 << 20, 12), (16 << 20, 5), (128 << 20, 5))


def figure_options(options: Options) -> Options:
    """What must be measured: float32 sums in place over one buffer, from Python and from C, beside all peers."""
    wanted = replace(options, collective="all_reduce", ops=("sum",), dtypes=("float32",), algos=("auto",))
    wanted = replace(wanted, wires=(None, "float16"), levels=("python", "c"), arrays=("numpy", "torch"))
    return replace(wanted, compare=("gloo", "mpi"), in_place_only=True, buffers=1, average="max", check=True)


def check_figures(report: dict[str, Any]) -> list[Figure]:
    """Each figure: what was promised, what was measured, whether it was reached."""
    ours = [row for row in report["rows"] if row["lib"] == "dcomm"]

    def rows(level: str, wire: str | None = None, array: str = "numpy") -> dict[int, Row]:
        chosen = [row for row in ours if (row["level"], row["wire"], row["array"]) == (level, wire, array)]
        return {row["nbytes"]: row for row in chosen}

    found: list[Figure] = []

    def add(text: str, measured: str, reached: bool) -> None:
        found.append({"figure": text, "measured": measured, "reached": reached})

    if report["ranks"] == 2:
        stamps = [report["rounds"][number] for number in report["rounds_used"]]
        flag_ns = statistics.median(ns for stamp in stamps for ns in stamp["flag_ns"][:2])
        _of_two_ranks(rows, flag_ns, add)
    else:
        _of_shared_cores(rows, add)
    return found


def _of_two_ranks(rows: Callable[..., dict[int, Row]], flag_ns: float, add: Callable[[str, str, bool], None]) -> None:
    plain, half, core = rows("python"), rows("python", "float16"), rows("c")
    for nbytes, least in _OVER_GLOO:
        ratio = plain.get(nbytes, {}).get("ratio", 0.0)
        add(f"{nbytes_text(nbytes)}: at least {least} times as fast as gloo", f"{ratio:.1f}x", ratio >= least)
    for nbytes in sorted(nbytes for nbytes in plain if nbytes >= _CALM):
        full, wired = plain[nbytes]["p50_us"], half[nbytes]["p50_us"]
        measured = f"{wired:.1f} against {full:.1f} us"
        add(f"{nbytes_text(nbytes)}: float16 wire faster than none", measured, wired < full)
    trip_us = flag_ns / 1000
    for text, table, most in (
        ("8 B from C++: p50 at most 1.5 cache-line round trips", core, 1.5 * trip_us),
        ("8 B from Python, NumPy: p50 at most 1 us", plain, 1.0),
        ("8 B from Python, torch tensor: p50 at most 1.5 us", rows("python", array="torch"), 1.5),
    ):
        us = table[8]["p50_us"] if 8 in table else float("inf")
        beside = f", round trip {trip_us:.3f} us" if table is core else ""
        add(text, f"{us:.3f} us{beside}", 0 < us <= most)
    for nbytes, row in sorted(core.items()):
        _beside_mpi(f"{nbytes_text(nbytes)} from C++: not slower than the best MPI", row, 1.0, add)


def _of_shared_cores(rows: Callable[..., dict[int, Row]], add: Callable[[str, str, bool], None]) -> None:
    for nbytes, row in sorted(rows("python").items()):
        if nbytes <= _CALM:
            measured = f"p50 {row['p50_us']:.1f}, p90 {row['p90_us']:.1f} us"
            calm = row["p50_us"] < 200 and row["p90_us"] < 1000
            add(f"{nbytes_text(nbytes)}: no stalls (p50 < 200 us, p90 < 1 ms)", measured, calm)
        ratio = row.get("ratio", 0.0)
        add(f"{nbytes_text(nbytes)}: faster than gloo", f"{ratio:.1f}x", ratio > 1)
    for nbytes, row in sorted(rows("c").items()):
        if nbytes <= _CALM:
            _beside_mpi(f"{nbytes_text(nbytes)} from C++: at most 1.2 times the best MPI's time", row, 1.2, add)


def _beside_mpi(text: str, row: Row, most: float, add: Callable[[str, str, bool], None]) -> None:
    if "mpi" not in row:
        add(text, "no MPI measured", False)
        return
    other = row["mpi"][row["best_mpi"]]["p50_us"]
    measured = f"{row['p50_us']:.3g} against {other:.3g} us ({row['best_mpi']})"
    add(text, measured, row["p50_us"] <= most * other)
