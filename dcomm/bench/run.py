"""One run from options to a report: starts the ranks, opens the peers, measures in rounds, summarises."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dcomm.bench import gloo, report
from dcomm.bench.case import Case
from dcomm.bench.collectives import COLLECTIVES
from dcomm.bench.figures import check_figures, figure_options
from dcomm.bench.machine import describe
from dcomm.bench.mpi import Peers
from dcomm.bench.options import OptionError, Options
from dcomm.bench.plan import mpi_cases, plan
from dcomm.bench.ranks import Average, RankError, Ranks
from dcomm.bench.rounds import Plan, Progress, chosen_rounds, measure_rounds
from dcomm.bench.summary import summarise

AVERAGES: dict[str, Average] = {
    "rank0": lambda times: times[0],
    "avg": lambda times: sum(times) / len(times),
    "min": min,
    "max": max,
}


def run(options: Options, command: str, progress: Progress, *, figures: bool = False) -> dict[str, Any]:
    """Measure.

    Args:
        options: What; with `figures` those of :func:`dcomm.bench.figures.figure_options`.
        command: For the report.
        progress: Called with the share that is done and what is going on; a text that ends a line is to be kept.
        figures: Check the promised figures.

    Returns:
        The report, which is also the JSON file: machine, versions, rounds, rows, figures.

    Raises:
        OptionError: The options cannot be carried out.
        RankError: A rank failed, or the data of a warm-up was wrong.
        MpiError: A peer is missing or failed.
    """
    options = (figure_options(options) if figures else options).checked()
    report.least_bandwidth()  # a bad DCOMM_MIN_BW is told before minutes of measuring
    cases = plan(options)
    if not cases:
        raise OptionError(f"-n {options.ranks}: no input of these types has an exact result; expected fewer ranks")
    versions: dict[str, str] = {}
    with ExitStack() as stack:
        peers = stack.enter_context(Peers(options.ranks, options.timeout)) if "mpi" in options.compare else None
        progress(0.0, f"starting {options.ranks} ranks")
        ranks = stack.enter_context(Ranks(options.ranks, timeout_s=options.timeout, threads=options.threads))
        isa = ranks.receive()[0]["isa"]
        if "gloo" in options.compare:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="dcomm-gloo-"))
            ranks.send({"do": "gloo", "store": str(Path(folder) / "store"), "threads": gloo.THREADS})
            versions["torch"] = ranks.receive()[0]["torch"]
        of_mpi = []
        if peers is not None:
            versions |= {library.name: library.version for library in peers.libraries}
            of_mpi = [(variant, peers.cases(variant, mpi_cases(cases))) for variant in peers.variants]
        _touch_buffers(ranks, cases)
        turn = Plan(ranks, cases, of_mpi, AVERAGES[options.average], peers)
        stamps, results = measure_rounds(turn, options.rounds, options.max_seconds, progress, until_counted=figures)
        codes = ranks.leave()
    if any(codes):
        raise RankError(f"exit codes of the ranks: {codes}")
    state, used = chosen_rounds(stamps)
    found = describe(command, versions, isa) | {
        "collective": options.collective,
        "ranks": options.ranks,
        "threads": options.threads,
    }
    found |= {"average": options.average, "state": state, "rounds_used": used[0], "rounds": stamps}
    found["rows"] = summarise(turn.all_cases, results, [used[segment] for segment in turn.segments], options.ranks)
    if figures:
        found["figures"] = check_figures(found)
    return found


def _touch_buffers(ranks: Ranks, cases: list[Case]) -> None:
    """The largest case of each type once, so that no timed batch maps memory."""
    largest: dict[tuple[str, bool], Case] = {}
    for case in sorted((case for case in cases if case.lib == "dcomm"), key=lambda case: case.count * case.buffers):
        largest[case.dtype, case.in_place] = case
    for case in largest.values():
        what = COLLECTIVES[case.collective].name
        wrong = ranks.measure(dataclasses.replace(case, batches=1, warm=0)).num_wrong
        if wrong:
            raise RankError(f"{wrong} wrong elements in the largest {what}")


def write_json(found: dict[str, Any], path: Path) -> None:
    """Save a report; its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def print_plain(lines: Iterable[report.Line], say: Callable[[str], None] = print) -> None:
    """Print a report without colours."""
    for line in lines:
        say(line.text)
