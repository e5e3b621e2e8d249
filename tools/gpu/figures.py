"""The figures that dcomm promises of a GPU, each with what was measured. Pure functions of what the parts wrote."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

Row = dict[str, Any]
Figure = dict[str, Any]
KIB, MIB = 1 << 10, 1 << 20
WORLD_SIZES = (2, 4, 8)
REACHED, NOT_REACHED, NOT_MEASURED = "reached", "not reached", "not measured"


def figure(text: str, measured: str | None, reached: bool = False) -> Figure:
    """measured: None where there is no number."""
    if measured is None:
        return {"figure": text, "measured": "", "outcome": NOT_MEASURED}
    return {"figure": text, "measured": measured, "outcome": REACHED if reached else NOT_REACHED}


def select(report: Row | None, **wanted: Any) -> list[Row]:
    """The rows with these values."""
    rows = report["rows"] if report else []
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]


def median(report: Row | None, **wanted: Any) -> float | None:
    """Of the one row with these values; None where there is none. Wrong results are infinitely slow."""
    rows = [row for row in select(report, **wanted) if "median_us" in row]
    if not rows:
        return None
    return float(rows[0]["median_us"]) if rows[0].get("num_wrong", 0) == 0 else math.inf


def sizes(report: Row | None, least: int, **wanted: Any) -> list[int]:
    return sorted({row["nbytes"] for row in select(report, **wanted) if row["nbytes"] >= least})


def failures(report: Row | None) -> list[str]:
    """Errors that ended some of the part, or all of it."""
    if report is None:
        return []
    ended = [report["failure"]] if "failure" in report else []
    return ended + [row["failure"] for row in report["rows"] if "failure" in row]


def size_text(nbytes: int) -> str:
    for unit, name in ((MIB, "MiB"), (KIB, "KiB")):
        if nbytes >= unit and nbytes % unit == 0:
            return f"{nbytes // unit} {name}"
    return f"{nbytes} B"


def of_floor(timing: Row | None) -> Iterable[Figure]:
    for n in WORLD_SIZES:
        for nbytes in (64 * MIB, 128 * MIB, 256 * MIB):
            text = f"{size_text(nbytes)} float32, {n} ranks: at least 70% of the floor 2NS / copy bandwidth"
            rows = select(timing, what="dcomm", world_size=n, nbytes=nbytes, wire="float32")
            percents = {row["algo"]: row["percent_of_floor"] if row["num_wrong"] == 0 else 0.0 for row in rows}
            if "auto" not in percents:
                yield figure(text, None)
                continue
            best = max(percents, key=lambda algo: percents[algo])
            yield figure(text, f"{percents['auto']}% (auto); best: {percents[best]}% ({best})", percents["auto"] >= 70)


def of_torch(timing: Row | None) -> Iterable[Figure]:
    for n in WORLD_SIZES:
        text = f"{n} ranks, 1 MiB and more: faster than the best torch composite"
        compared = []
        for nbytes in sizes(timing, MIB, what="dcomm", world_size=n):
            mine = median(timing, what="dcomm", world_size=n, nbytes=nbytes, algo="auto", wire="float32")
            rivals = {
                row["rival"]: row["median_us"]
                for row in select(timing, what="torch", world_size=n, nbytes=nbytes, num_wrong=0)
                if "median_us" in row
            }
            if mine is None or not rivals:
                continue
            name = min(rivals, key=lambda rival: rivals[rival])
            compared.append((rivals[name] / mine, nbytes, name))
        if not compared:
            yield figure(text, None)
            continue
        parts = [f"{size_text(nbytes)} {ratio:.2f}x {name}" for ratio, nbytes, name in compared]
        yield figure(text, "; ".join(parts), min(compared)[0] > 1)


def of_graphs(graphs: Row | None) -> Iterable[Figure]:
    floor = graphs.get("floor") if graphs else None
    for n in WORLD_SIZES:
        text = f"8 B, {n} ranks, graph replay: at most 1.5 x (empty cooperative launch + flag round trip)"
        mine = median(graphs, what="dcomm", world_size=n, nbytes=8, algo="auto")
        if mine is None or floor is None:
            yield figure(text, None)
            continue
        lowest = floor["empty_launch_us"] + floor["round_trip_us"]
        measured = f"{mine} us = {mine / lowest:.2f} x ({floor['empty_launch_us']} + {floor['round_trip_us']} us)"
        yield figure(text, measured, mine <= 1.5 * lowest)
    mine = median(graphs, what="dcomm", world_size=8, nbytes=64 * KIB, algo="auto")
    yield figure(
        "64 KiB, 8 ranks, graph replay: at most 8 us",
        None if mine is None else f"{mine} us",
        mine is not None and mine <= 8,
    )
    rows = select(graphs, what="beside kernels")
    measured = "; ".join(
        row.get("failure") or f"{row['median_us']} us = {row['over_kernels']} x {row['kernel_us']} us of kernel"
        for row in rows
        if "failure" in row or "over_kernels" in row
    )
    reached = all(row.get("num_wrong") == 0 and row.get("over_kernels", math.inf) <= 1.05 for row in rows)
    yield figure(
        "1 MiB, 4 ranks, replay of a graph of 20: at most 1.05 x the time of its kernels", measured or None, reached
    )
    found = select(graphs, what="replays")
    wrong = sum(row["num_wrong"] for row in found)
    failed = [row["failure"] for row in found if "failure" in row]
    measured = "; ".join([f"{wrong} wrong elements, {[row['world_size'] for row in found]} ranks", *failed])
    reached = wrong == 0 and not failed
    yield figure(
        "graph replays between other calls, on changing inputs: right results", measured if found else None, reached
    )


def of_wires(timing: Row | None) -> Iterable[Figure]:
    for least, text, against in (
        (1.0, "float16 wire not slower than float32", {"what": "dcomm", "algo": "auto", "wire": "float32"}),
        (1.5, "fused float16 wire at least 1.5 x as fast as cast + all-reduce + cast", {"what": "cast"}),
    ):
        for n in WORLD_SIZES:
            ratios = []
            for nbytes in sizes(timing, 16 * MIB, what="dcomm", world_size=n, wire="float16"):
                mine = median(timing, what="dcomm", world_size=n, nbytes=nbytes, algo="auto", wire="float16")
                other = median(timing, world_size=n, nbytes=nbytes, **against)
                if mine is not None and other is not None and other < math.inf:
                    ratios.append((other / mine, nbytes))
            measured = "; ".join(f"{size_text(nbytes)} {ratio:.2f}x" for ratio, nbytes in ratios)
            yield figure(f"16 MiB and more, {n} ranks: {text}", measured or None, all(r >= least for r, _ in ratios))


def of_lists(lists: Row | None) -> Iterable[Figure]:
    for name in ("pack", "unpack"):
        for text, key, least in (
            ("at least 85% of the bandwidth of a copy", "percent_of_copy", 85),
            ("at least 1.0 x as fast as torch._foreach_copy_", "over_foreach", 1.0),
        ):
            found = {f"{row['dtype']} in {row['whole']}": row[key] for row in select(lists, what=name)}
            measured = "; ".join(f"{pair} {value}" for pair, value in found.items())
            reached = all(value >= least for value in found.values())
            yield figure(f"{name} of 200 tensors: {text}", measured or None, reached)


def of_crossovers(crossovers: Row | None) -> Iterable[Figure]:
    """For information: no threshold is promised, but "auto" must not be far from the fastest."""
    found = crossovers.get("fastest", []) if crossovers else []
    text = "crossovers: all algorithms right at every size and number of ranks"
    rows = select(crossovers, what="dcomm")
    wrong = sum(row.get("num_wrong", 0) for row in rows)
    failed = failures(crossovers)
    measured = "; ".join([f"{len(found)} cells, {wrong} wrong elements", *failed])
    yield figure(text, measured if found or failed else None, wrong == 0 and not failed)


def of_processes(processes: Row | None) -> Iterable[Figure]:
    for n in (2, 4):
        for windows in ("vmm", "ipc"):
            text = f"{n} processes on the GPU, {windows} windows: 20 operations with the host's bits"
            rows = select(processes, what="handoffs", world_size=n, windows=windows, mps=False)
            if not rows:
                yield figure(text, None)
                continue
            measured = "; ".join(
                row.get("failure") or f"{row['algo']} {row['ms_per_handoff']} ms per handoff" for row in rows
            )
            yield figure(text, measured, all("failure" not in row and row["num_wrong"] == 0 for row in rows))
    rows = select(processes, what="messages")
    measured = "; ".join(row.get("failure") or f"{row['count']}: {row['ms_per_message']} ms" for row in rows)
    reached = all("failure" not in row and row["num_wrong"] == 0 for row in rows)
    yield figure("messages between 2 processes on the GPU: what comes back is what was sent", measured or None, reached)
    for windows in ("vmm", "ipc"):
        text = f"kill -9 of a process, {windows} windows: PeerLostError within 5 s, and the next CUDA call works"
        rows = select(processes, what="death", windows=windows)
        measured = "; ".join(row.get("failure") or f"{row['error']} after {row['seconds']} s" for row in rows)
        reached = all(
            row.get("error") == "PeerLostError" and row["seconds"] <= 5 and row["next_call_works"] for row in rows
        )
        yield figure(text, measured or None, reached)


def of_correct(correct: Row | None) -> Iterable[Figure]:
    text = "every result has the host executor's bits; failures are typed errors"
    compared = correct.get("num_compared", 0) if correct else 0
    if correct is None or (compared == 0 and not failures(correct)):
        yield figure(text, None)
        return
    left_out = len(correct.get("skipped", []))
    measured = f"{compared} compared, {correct.get('num_differing', 0)} differ, {left_out} cases left out for time"
    passed = {row["check"] for row in select(correct, passed=True)} == {"failures", "split invariance"}
    failed = failures(correct)
    reached = correct.get("num_differing", 0) == 0 and passed and not failed
    yield figure(text, "; ".join([measured, *failed]), reached)


def of_hooks(hooks: Row | None) -> Iterable[Figure]:
    for hook in ("all_reduce", "fp16", "bf16"):
        text = f"{hook}_hook, 2 processes on the GPU: DDP's own gradients, but for the wire's rounding"
        rows = select(hooks, what="gradients", hook=hook)
        measured = "; ".join(row.get("failure") or f"worst difference {row['worst']:.1e}" for row in rows)
        yield figure(text, measured or None, all(row.get("num_wrong") == 0 for row in rows))
    for hook in ("all_reduce_hook", "fp16_hook"):
        yield of_trace(f"{hook}, 2 processes on the GPU", select(hooks, what="overlap", hook=hook))


def of_trace(who: str, rows: list[Row]) -> Figure:
    """Of one profile."""
    read = [row for row in rows if row.get("percent_beside") is not None]
    failed = [row["failure"] for row in rows if "failure" in row]
    measured = "; ".join(
        [*(f"{row['percent_beside']}%, beside any {row['percent_beside_any']}%" for row in read), *failed]
    )
    reached = not failed and all(row["percent_beside"] >= 50 for row in read)
    return figure(
        f"{who}: at least half of the time of dcomm's kernels lies beside backward's", measured or None, reached
    )


def of_overlap(overlap: Row | None) -> Iterable[Figure]:
    text = "GPT step of 2 ranks on one GPU: at most 1.1 x the step without communication"
    steps = [row for row in select(overlap, what="step") if "over_alone" in row]
    measured = f"{steps[0]['over_alone']} x {steps[0]['alone_us']} us" if steps else None
    yield figure(text, measured, bool(steps) and steps[0]["over_alone"] <= 1.1)
    yield of_trace("GradientSynchronizer, 2 ranks on one GPU, GPT", select(overlap, what="overlap"))


def of_registered(registered: Row | None) -> Iterable[Figure]:
    for n in WORLD_SIZES:
        text = f"64 MiB, {n} ranks: arrays that all reach at least 1.2 x as fast as staged"
        direct, staged = (
            median(registered, what="sum", world_size=n, nbytes=64 * MIB, algo=algo) for algo in ("direct", "two_shot")
        )
        if direct is None or staged is None:
            yield figure(text, None)
            continue
        yield figure(text, f"{direct} us, staged {staged} us", direct < math.inf and staged >= 1.2 * direct)
    text = "deterministic: one SHA-256 of the weights on 1, 2, 4 and 8 ranks"
    weights = [row for row in select(registered, what="weights") if "sha256" in row]
    digests = sorted({digest for row in weights for digest in row["sha256"]})
    ranks = [row["world_size"] for row in weights]
    measured = f"{len(digests)} on {ranks} ranks: {', '.join(digest[:12] for digest in digests)}" if weights else None
    yield figure(text, measured, len(digests) == 1 and ranks == [1, 2, 4, 8])


PARTS: dict[str, list[Callable[[Row | None], Iterable[Figure]]]] = {
    "correct": [of_correct],
    "timing": [of_floor, of_torch, of_wires],
    "graphs": [of_graphs],
    "crossovers": [of_crossovers],
    "processes": [of_processes],
    "hooks": [of_hooks],
    "overlap": [of_overlap],
    "lists": [of_lists],
    "registered": [of_registered],
}


def check_figures(part: str, report: Row | None) -> list[Figure]:
    """Those of one part; report: what it wrote, None where it has not run."""
    return [found for check in PARTS[part] for found in check(report)]


def line(found: Figure) -> str:
    return f"{found['outcome']:>12}  {found['figure']}" + (f": {found['measured']}" if found["measured"] else "")
