"""One run on a GPU from options to a report: starts the children, measures in rounds, summarises."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dcomm.bench.case import Measured
from dcomm.bench.cuda import torch_engine
from dcomm.bench.cuda.case import CudaCase
from dcomm.bench.cuda.groups import PROGRAM, Groups
from dcomm.bench.cuda.options import CudaOptions
from dcomm.bench.cuda.plan import plan
from dcomm.bench.cuda.rows import make_rows
from dcomm.bench.machine import describe
from dcomm.bench.options import OptionError
from dcomm.bench.ranks import Average
from dcomm.bench.report import least_bandwidth
from dcomm.bench.rounds import Progress
from dcomm.bench.run import AVERAGES

COPY_BYTES = 1 << 30  # far more than any L2
NOT_MEASURED = ("NVLink", "PCIe between GPUs", "more than one GPU")


def run(
    options: CudaOptions,
    command: str,
    progress: Progress,
    *,
    program: Sequence[str] = PROGRAM,
    why_not: Callable[[], str] = torch_engine.why_not,
    copy_bytes: int = COPY_BYTES,
) -> dict[str, Any]:
    """Measure.

    Args:
        options: What.
        command: For the report.
        progress: Called with the share that is done and what is going on; a text that ends a line is to be kept.
        program: What Python runs in a child; tests have one without a GPU.
        why_not: Why nothing can be measured here, "" where it can.
        copy_bytes: Of the device copy that the floor goes by.

    Returns:
        The report, which is also the JSON file: machine, versions, copy_gbps, rows, absent rivals.

    Raises:
        OptionError: The options cannot be carried out here.
        RankError: A rank failed, or a rival that was asked for by its name.
    """
    options = options.checked(why_not)
    least_bandwidth()  # a bad DCOMM_MIN_BW is told before minutes of measuring
    base = options.base
    rivals, absent = options.rivals()
    cases = plan(options, rivals)
    if not cases:
        raise OptionError(f"-n {base.ranks}: no input of these types has an exact result; expected fewer ranks")
    with (
        tempfile.TemporaryDirectory(prefix="dcomm-cuda-") as folder,
        Groups(base.ranks, base.timeout, Path(folder), options.compare_all, program) as groups,
    ):
        for side in (*options.modes, *rivals):
            progress(0.0, f"starting {base.ranks} ranks: {side}")
            groups.start(side)
        before = groups.copy_bandwidth(options.modes[0], copy_bytes)
        results, num_rounds = _rounds(options, groups, cases, progress)
        # The higher one is the harder floor.
        bandwidth = max(before, groups.copy_bandwidth(options.modes[0], copy_bytes))
        groups.leave()
    absent |= groups.absent
    found = describe(command, groups.versions, groups.isa)
    found["machine"] |= groups.facts
    found |= {"device": "cuda", "collective": base.collective, "ranks": base.ranks, "modes": list(options.modes)}
    found |= {"average": base.average, "num_rounds": num_rounds, "copy_gbps": round(bandwidth / 1e9, 2)}
    found |= {"absent": absent, "not_measured": list(NOT_MEASURED)}
    found["rows"] = make_rows(cases, results, base.ranks, bandwidth)
    return found


def _rounds(
    options: CudaOptions, groups: Groups, cases: list[CudaCase], progress: Progress
) -> tuple[list[list[Measured]], int]:
    """For each case one Measured per round, none where its rival has failed; how many rounds there were.

    No round is started that would end after max_seconds, except the first.
    """
    average: Average = AVERAGES[options.base.average]
    results: list[list[Measured]] = [[] for _ in cases]
    rounds, start = options.base.rounds, time.monotonic()
    for number in range(rounds):
        begun = time.monotonic()
        for index, (case, collected) in enumerate(zip(cases, results, strict=True)):
            share = (number + index / len(cases)) / rounds
            progress(share, f"round {number + 1} of {rounds}: {case.side} {case.collective}, {case.count} elements")
            measured = groups.measure(case, average)
            if measured is not None:
                collected.append(measured)
        now = time.monotonic()
        progress((number + 1) / rounds, f"round {number + 1} of {rounds}: {now - begun:.0f} s\n")
        if now - start + (now - begun) > options.base.max_seconds:
            break
    for case, collected in zip(cases, results, strict=True):
        if not groups.has(case):  # what it did before it failed is no figure
            collected.clear()
    return results, number + 1
