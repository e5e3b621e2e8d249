"""The report of a run on a GPU as lines of text: a table for each mode, nccl-tests' columns and dcomm's beside them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dcomm.bench.cuda.rivals import RIVALS
from dcomm.bench.report import NCCL, TITLES, UNITS, Line, average_busbw, nccl_cells, pairs, too_slow
from dcomm.bench.summary import Row
from dcomm.bench.text import short

_KEY = ("nbytes", "count", "dtype", "redop", "root", "algo", "wire", "timing")
_MODES = "#{:<51} {:^33} {:^33}  {:<28} {:^27} {:^27}"  # over the columns of the next two
_OWN = "  {:<9} {:<9} {:<8} {:>9} {:>9} {:>7} {:>9} {:>9} {:>7}"
_RIVAL = " {:>11} {:>8}"
_TITLE = {
    "threads": "ranks are threads of one process, one launch for all; the stream is held back, or a graph is replayed",
    "processes": "ranks are processes on one GPU, each in its turn; events: with the host's time for the call",
}


def header(report: dict[str, Any]) -> Iterator[Line]:
    """Machine, versions, date, command, the floor, and what is not measured."""
    machine, versions = report["machine"], ", ".join(f"{name} {v}" for name, v in report["versions"].items())
    yield Line(f"# dcomm bench {report['collective']}: {report['ranks']} ranks on one GPU")
    l2 = f", L2 {machine['l2_bytes'] / 1e6:g} MB" if machine.get("l2_bytes") else ""
    yield Line(
        f"# GPU      {machine['gpu']}, driver {machine['driver']}, {machine['multiprocessors']} multiprocessors{l2}"
    )
    yield Line(f"# machine  {machine['cpu']}, {machine['cores']} CPUs, Linux {machine['kernel']}")
    yield Line(f"# versions {versions}")
    yield Line(f"# date     {report['date']}, commit {report['commit'][:20]}")
    yield Line(f"# command  {report['command']}")
    yield Line(
        f"# floor    2 x {report['ranks']} ranks x size / {report['copy_gbps']:g} GB/s (reads and writes of a copy "
        "on it, in this run); what fits in L2 can be below it"
    )
    yield Line(
        f"# counted  {report['num_rounds']} rounds, all in turn; one buffer; average over ranks: {report['average']}"
    )
    yield Line(f"# not measured: {', '.join(report['not_measured'])}")
    for name, reason in report["absent"].items():
        yield Line(f"# not measured: {name}: {reason}", "bad")


def table(report: dict[str, Any], mode: str) -> Iterator[Line]:
    """The rows of a mode under their headings."""
    lines = pairs([row for row in report["rows"] if row["mode"] == mode], _KEY)
    there = [one.get("rivals", {}) for both in lines for one in both if one is not None]
    names = [name for name in RIVALS if any(name in rivals for rivals in there)]
    yield Line("#")
    yield Line(f"# {mode}: {_TITLE[mode]}")
    yield Line(_MODES.format("", "out-of-place", "in-place", "", "out-of-place", "in-place").rstrip())
    own = ("algo", "wire", "timing", "p50", "p99", "%floor", "p50", "p99", "%floor")
    heads = "".join(_RIVAL.format(f"{name} us", "ratio") for name in names)
    yield Line("#" + (NCCL.format(*TITLES) + _OWN.format(*own) + heads)[1:])
    yield Line("#" + (NCCL.format(*UNITS) + _OWN.format("", "", "", *["(us)", "(us)", ""] * 2)).rstrip()[1:])
    for outside, inside in lines:
        row = inside or outside
        assert row is not None
        cells = [*_own_cells(outside), *_own_cells(inside)]
        text = nccl_cells(outside, inside) + _OWN.format(row["algo"], row["wire"] or "-", row["timing"], *cells)
        text += "".join(_RIVAL.format(*_rival_cells(outside, inside, name)) for name in names)
        wrong = any(one is not None and one["num_wrong"] for one in (outside, inside))
        yield Line(text.rstrip(), "wrong" if wrong else "row")


def _own_cells(row: Row | None) -> tuple[str, str, str]:
    if row is None:
        return ("N/A",) * 3
    percent = f"{row['percent_of_floor']:.1f}" if "percent_of_floor" in row else "N/A"
    return short(row["p50_us"]), short(row["p99_us"]), percent


def _rival_cells(outside: Row | None, inside: Row | None, name: str) -> tuple[str, str]:
    """Its time and how many times as fast dcomm is, in the same mode; in place if both were measured."""
    found = next((one["rivals"][name] for one in (inside, outside) if one and name in one.get("rivals", {})), None)
    return ("", "") if found is None else (short(found["p50_us"]), f"{found['ratio']:.2f}x")


def num_wrong(report: dict[str, Any]) -> int:
    """Of dcomm; a rival's own are told, and not compared with."""
    return sum(int(row["num_wrong"]) for row in report["rows"] if row["lib"] == "dcomm")


def footer(report: dict[str, Any]) -> Iterator[Line]:
    """nccl-tests' last lines, and what the rivals' columns mean."""
    if any("rivals" in row for row in report["rows"]):
        yield Line(
            "# rivals: the fastest right variant of each, by events or by graph, p50; ratio: its time over dcomm's p50"
        )
    theirs = {name: [row for row in report["rows"] if row["lib"] == name] for name in RIVALS}
    for name, rows in theirs.items():
        if wrong := sum(int(row["num_wrong"]) for row in rows):
            yield Line(f"# {name}: {wrong} wrong elements; those variants are not compared", "bad")
    wrong = num_wrong(report)
    yield Line(f"# Out of bounds values : {wrong} {'FAILED' if wrong else 'OK'}", "bad" if wrong else "good")
    slow = too_slow(report)
    verdict = {None: "", True: "FAILED", False: "OK"}[slow]
    yield Line(f"# Avg bus bandwidth    : {average_busbw(report):g} {verdict}".rstrip(), "bad" if slow else "good")
    yield Line("#")
    if report["num_rounds"] < 5:
        yield Line(f"# only {report['num_rounds']} rounds: too few to claim anything")


def lines(report: dict[str, Any]) -> Iterator[Line]:
    """The whole report."""
    yield from header(report)
    for mode in report["modes"]:
        yield from table(report, mode)
    yield from footer(report)


def exit_status(report: dict[str, Any]) -> int:
    """1 wrong data of dcomm; 2 DCOMM_MIN_BW was missed; else 0."""
    return 1 if num_wrong(report) else 2 if too_slow(report) else 0
