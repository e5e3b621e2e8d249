"""From the batches of all rounds to one row per case, with the peers' times beside dcomm's."""

from __future__ import annotations

import statistics
from typing import Any

import numpy

from dcomm.bench.case import Case, Measured
from dcomm.bench.collectives import bandwidths
from dcomm.bench.plan import nbytes_of

Row = dict[str, Any]
_NAMES = ("collective", "lib", "variant", "level", "array", "algo", "dtype", "wire", "redop", "root", "in_place")
_SAME_WORK = ("nbytes", "dtype", "redop", "root", "in_place")


def summarise(cases: list[Case], results: list[list[Measured]], rounds: list[list[int]], world_size: int) -> list[Row]:
    """One row per case; `rounds` has the counted rounds of each.

    rounds_counted: how many; where there is none all rounds are taken, and the row says 0.

    time_us: the median over the counted rounds of each round's mean batch, and algbw and busbw from it, as in
    nccl-tests. p50_us: the same of each round's median batch. p90_us, p99_us: over all batches of these rounds.
    best_round_us: the smallest median of any round. A row of dcomm has the peers that did the same work: see
    :func:`beside_peers`.
    """
    together = zip(cases, results, rounds, strict=True)
    rows = [row_of(case, found, counted, world_size) for case, found, counted in together]
    for row in rows:
        if row["lib"] == "dcomm":
            beside_peers(row, [peer for peer in rows if all(peer[key] == row[key] for key in _SAME_WORK)])
    return rows


def row_of(case: Case, found: list[Measured], counted: list[int], world_size: int) -> Row:
    """The row of one case, without peers; see :func:`summarise`."""
    rounds = counted or list(range(len(found)))
    nbytes = nbytes_of(case, world_size)
    medians = [statistics.median(measured.us) for measured in found]
    batches = [us for number in rounds for us in found[number].us]
    row: Row = {"nbytes": nbytes, "count": case.count, "calls": case.calls, "batches": case.batches}
    row |= {"buffers": case.buffers, "checked": case.check, **{name: getattr(case, name) for name in _NAMES}}
    row |= {"threads": case.threads} if case.lib == "gloo" else {}
    row["rounds_counted"] = len(counted)
    row["time_us"] = statistics.median(statistics.fmean(found[number].us) for number in rounds)
    row["p50_us"] = statistics.median(medians[number] for number in rounds)
    row |= {f"p{share}_us": float(numpy.percentile(batches, share)) for share in (90, 99)}
    row |= {"min_us": min(batches), "best_round_us": min(medians), "rounds_us": [round(us, 4) for us in medians]}
    row["algbw_gbps"], row["busbw_gbps"] = bandwidths(nbytes, row["time_us"], world_size, case.collective)
    row["num_wrong"] = sum(measured.num_wrong for measured in found)
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}


def beside_peers(row: Row, same_work: list[Row]) -> None:
    """Add the peers' times and their ratio to the row's p50; above 1 dcomm is faster.

    gloo counts with its best round, with 1 or 2 threads, whichever is faster. An MPI counts with its p50 as dcomm
    does, of its settings the fastest. The pass over memory is a limit: where messages do not fit into caches its ratio
    is below 1.
    """
    gloo = [peer for peer in same_work if peer["lib"] == "gloo"]
    if gloo:
        best = min(gloo, key=lambda peer: float(peer["best_round_us"]))
        row |= {"gloo_us": best["best_round_us"], "gloo_threads": best["threads"]}
        row["ratio"] = round(best["best_round_us"] / row["p50_us"], 2)
    for peer in (peer for peer in same_work if peer["lib"] == "pass"):
        row |= {"pass_us": peer["p50_us"], "pass_ratio": round(peer["p50_us"] / row["p50_us"], 2)}
    libraries: dict[str, Row] = {}
    for peer in (peer for peer in same_work if peer["lib"] == "mpi"):
        name = peer["variant"].partition(",")[0]
        if name not in libraries or peer["p50_us"] < libraries[name]["p50_us"]:
            libraries[name] = peer
    if libraries:
        row["mpi"] = {
            name: {"p50_us": peer["p50_us"], "settings": peer["variant"].partition(", ")[2]}
            for name, peer in libraries.items()
        }
        row["best_mpi"] = min(libraries, key=lambda name: float(libraries[name]["p50_us"]))
        row["mpi_ratio"] = round(libraries[row["best_mpi"]]["p50_us"] / row["p50_us"], 2)
