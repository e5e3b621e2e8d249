"""The report as lines of text: nccl-tests' columns and last lines, with what dcomm adds to their right."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from dcomm.bench.options import OptionError
from dcomm.bench.summary import Row
from dcomm.bench.text import nbytes_text, short

_KEY = ("nbytes", "count", "dtype", "redop", "root", "algo", "wire", "level", "array")
_MIN_SHARE = 0.9  # of DCOMM_MIN_BW that is still enough, as with NCCL_TESTS_MIN_BW


class Line(NamedTuple):
    """A line of the report and what it is: head, row, wrong, good, bad."""

    text: str
    kind: str = "head"


def header(report: dict[str, Any]) -> Iterator[Line]:
    """Machine, versions, date, command, states of the cores, how the figures come about."""
    machine, versions = report["machine"], ", ".join(f"{name} {v}" for name, v in report["versions"].items())
    kind = "threads" if report["threads"] else "processes"
    yield Line(f"# dcomm bench {report['collective']}: {report['ranks']} ranks ({kind}) on {machine['cores']} CPUs")
    yield Line(f"# machine  {machine['cpu']}, Linux {machine['kernel']}, {machine['isa']} kernels")
    yield Line(f"# versions {versions}")
    yield Line(f"# date     {report['date']}, commit {report['commit'][:20]}")
    yield Line(f"# command  {report['command']}")
    for number, stamp in enumerate(report["rounds"], 1):
        flag = f"{min(stamp['flag_ns']):g} to {max(stamp['flag_ns']):g}"
        eight = " -> ".join(f"{value:g}" for value in stamp["eight_byte_us"])
        yield Line(f"# round {number}  cores {stamp['state']}, flag round trip {flag} ns, all_reduce of 8 B {eight} us")
    counted = [row["rounds_counted"] for row in report["rows"]]
    yield Line(
        f"# counted  what was measured with cores {report['state']}: {min(counted)} to {max(counted)} rounds of a row; "
        "time: median over them of the mean batch"
    )
    yield Line(f"# buffers  {_buffers_text(report['rows'])}; average over ranks: {report['average']}")


def _buffers_text(rows: list[Row]) -> str:
    """How many buffers take turns in the calls of a batch, where it changes with the size."""
    texts: dict[str, list[str]] = {}
    for in_place in (False, True):
        parts: list[str] = []
        last = (0, 0)
        for row in rows:
            here = (row["buffers"], row["calls"])
            if row["lib"] == "dcomm" and row["in_place"] is in_place and here != last:
                parts.append(f"{here[0]} in {here[1]} calls a batch from {nbytes_text(row['nbytes'])}")
                last = here
        if parts:
            texts.setdefault(", ".join(parts), []).append("in place" if in_place else "out of place")
    return "; ".join(f"{' and '.join(modes)}: {text}" for text, modes in texts.items())


def pairs(rows: list[Row], key: Sequence[str] = _KEY) -> list[tuple[Row | None, Row | None]]:
    """Rows of dcomm out of place and in place that belong on one line: those with equal values of `key`."""
    found: dict[tuple[Any, ...], list[Row | None]] = {}
    for row in rows:
        if row["lib"] == "dcomm":
            found.setdefault(tuple(row[name] for name in key), [None, None])[row["in_place"]] = row
    return [(both[0], both[1]) for both in found.values()]


NCCL = "{:>12} {:>12} {:>10} {:>7} {:>6} {:>9} {:>7} {:>7} {:>7} {:>9} {:>7} {:>7} {:>7}"
_TIMING = ("time", "algbw", "busbw", "#wrong")
TITLES = (*("size", "count", "type", "redop", "root"), *_TIMING, *_TIMING)
UNITS = ("(B)", "(elements)", "", "", "", "(us)", "(GB/s)", "(GB/s)", "", "(us)", "(GB/s)", "(GB/s)", "")
_MODES = "#{:<51} {:^33} {:^33}  {:<21} {:^19} {:^19}"  # over the columns of the next two
_OWN = "  {:<11} {:<9} {:>9} {:>9} {:>9} {:>9}"
_PEER = " {:>9} {:>8}"


def table(report: dict[str, Any]) -> Iterator[Line]:
    """The rows under their headings."""
    lines = pairs(report["rows"])
    peers = [(us, ratio) for us, ratio in _PEERS if any(ratio in (one or {}) for both in lines for one in both)]
    yield Line("#")
    yield Line(_MODES.format("", "out-of-place", "in-place", "", "out-of-place", "in-place").rstrip())
    heads = "".join(_PEER.format(f"{us.partition('_')[0]} us", "ratio") for us, _ in peers)
    own = ("algo", "wire", "p50", "p99", "p50", "p99")
    yield Line("#" + (NCCL.format(*TITLES) + _OWN.format(*own) + heads)[1:])
    yield Line("#" + (NCCL.format(*UNITS) + _OWN.format("", "", *["(us)"] * 4)).rstrip()[1:])
    for outside, inside in lines:
        row = inside or outside
        assert row is not None
        name = row["algo"] if row["level"] == "python" else f"{row['algo']}/c"
        name = f"{name}/torch" if row["array"] == "torch" else name
        shares = [short(one[key]) if one else "N/A" for one in (outside, inside) for key in ("p50_us", "p99_us")]
        text = nccl_cells(outside, inside) + _OWN.format(name, row["wire"] or "-", *shares)
        text += "".join(_PEER.format(*_peer_cells(outside, inside, us, ratio)) for us, ratio in peers)
        wrong = any(one is not None and one["num_wrong"] for one in (outside, inside))
        yield Line(text.rstrip(), "wrong" if wrong else "row")


_PEERS = (("gloo_us", "ratio"), ("mpi_us", "mpi_ratio"), ("pass_us", "pass_ratio"))


def nccl_cells(outside: Row | None, inside: Row | None) -> str:
    """The columns of nccl-tests."""
    row = inside or outside
    assert row is not None
    shared = [row[key] for key in ("nbytes", "count", "dtype", "redop", "root")]
    return NCCL.format(*shared, *_timing(outside), *_timing(inside))


def _timing(row: Row | None) -> tuple[str, str, str, str]:
    if row is None:
        return ("N/A",) * 4
    wrong = str(row["num_wrong"]) if row["checked"] else "N/A"
    return short(row["time_us"]), f"{row['algbw_gbps']:.2f}", f"{row['busbw_gbps']:.2f}", wrong


def _peer_cells(outside: Row | None, inside: Row | None, us: str, ratio: str) -> tuple[str, str]:
    """The peer's time and how many times as fast dcomm is, in the same mode; in place if both were measured."""
    row = next((one for one in (inside, outside) if one and ratio in one), None)
    if row is None:
        return "", ""
    time_us = row["mpi"][row["best_mpi"]]["p50_us"] if us == "mpi_us" else row[us]
    return short(time_us), f"{row[ratio]:.2f}x"


def num_wrong(report: dict[str, Any]) -> int:
    """Of all libraries."""
    return sum(int(row["num_wrong"]) for row in report["rows"])


def average_busbw(report: dict[str, Any]) -> float:
    """Over all rows of dcomm in both modes, in GB/s."""
    found = [row["busbw_gbps"] for row in report["rows"] if row["lib"] == "dcomm"]
    return sum(found) / len(found) if found else 0.0


def least_bandwidth() -> float | None:
    """DCOMM_MIN_BW, the average bus bandwidth in GB/s to be reached; None where it is not set.

    Raises:
        OptionError: It is no number.
    """
    text = os.environ.get("DCOMM_MIN_BW", "")
    try:
        return float(text) if text else None
    except ValueError:
        raise OptionError(f"DCOMM_MIN_BW={text}: expected GB/s such as 10.5") from None


def too_slow(report: dict[str, Any]) -> bool | None:
    """Whether DCOMM_MIN_BW was missed by more than a tenth; None where it is not set."""
    least = least_bandwidth()
    return None if least is None else average_busbw(report) < least * _MIN_SHARE


def footer(report: dict[str, Any]) -> Iterator[Line]:
    """nccl-tests' last lines, the MPIs behind the column, and the promised figures where they were checked."""
    chosen = {row["best_mpi"] for row in report["rows"] if "best_mpi" in row}
    if chosen:
        yield Line(f"# mpi: the fastest of those measured, here {', '.join(sorted(chosen))}; called from C")
    if any("ratio" in row for row in report["rows"]):
        yield Line("# gloo: its best round with 1 or 2 threads; ratio: the peer's time over dcomm's p50")
    if any("pass_ratio" in row for row in report["rows"]):
        yield Line("# pass: reading and writing an array once on all ranks at the same time, and nothing else")
    wrong = num_wrong(report)
    verdict = "OK" if wrong == 0 else "FAILED"
    yield Line(f"# Out of bounds values : {wrong} {verdict}", "bad" if wrong else "good")
    slow = too_slow(report)
    verdict = {None: "", True: "FAILED", False: "OK"}[slow]
    yield Line(f"# Avg bus bandwidth    : {average_busbw(report):g} {verdict}".rstrip(), "bad" if slow else "good")
    yield Line("#")
    for figure in report.get("figures", []):
        reached = figure["reached"]
        text = f"{'reached' if reached else 'NOT REACHED'}: {figure['figure']}: {figure['measured']}"
        yield Line(text, "good" if reached else "bad")
    fewest = min(row["rounds_counted"] for row in report["rows"])
    if fewest < 5:
        yield Line(f"# a row has only {fewest} rounds in state {report['state']}: too few to claim anything")


def lines(report: dict[str, Any]) -> Iterator[Line]:
    """The whole report."""
    yield from header(report)
    yield from table(report)
    yield from footer(report)


def exit_status(report: dict[str, Any]) -> int:
    """1 wrong data; 2 a figure or DCOMM_MIN_BW was missed; else 0."""
    if num_wrong(report):
        return 1
    missed = [figure for figure in report.get("figures", []) if not figure["reached"]]
    return 2 if missed or too_slow(report) else 0
