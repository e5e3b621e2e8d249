"""From the batches of all rounds to one row per case, with the floor and the rivals beside dcomm's."""

from __future__ import annotations

from collections.abc import Sequence

from dcomm.bench.case import Measured
from dcomm.bench.cuda.case import CudaCase
from dcomm.bench.cuda.floor import floor_us
from dcomm.bench.cuda.rivals import RIVALS
from dcomm.bench.summary import Row, row_of

_SAME_WORK = ("nbytes", "dtype", "redop", "in_place")


def make_rows(
    cases: Sequence[CudaCase], results: Sequence[list[Measured]], world_size: int, copy_bytes_per_second: float
) -> list[Row]:
    """One row per case that was measured; those of dcomm's all_reduce with floor and rivals.

    percent_of_floor: of 2 N S / (the bandwidth of a device copy), by p50. rivals: for each its fastest variant that was
    right, by p50 whatever its timing, and its time over dcomm's p50; above 1 dcomm is faster.
    """
    rows = []
    for case, found in zip(cases, results, strict=True):
        if not found:
            continue
        row = row_of(case, found, list(range(len(found))), world_size) | {"mode": case.mode, "timing": case.timing}
        if case.collective == "all_reduce":
            floor = floor_us(world_size, row["nbytes"], copy_bytes_per_second)
            row |= {"floor_us": round(floor, 3), "percent_of_floor": round(100 * floor / row["p50_us"], 1)}
        rows.append(row)
    for row in rows:
        if row["lib"] == "dcomm":
            _add_rivals(row, [other for other in rows if all(other[key] == row[key] for key in _SAME_WORK)])
    return rows


def _add_rivals(row: Row, same_work: list[Row]) -> None:
    found: dict[str, Row] = {}
    for other in same_work:
        name = other["lib"]
        if name not in RIVALS or RIVALS[name].mode != row["mode"] or other["num_wrong"]:
            continue
        if name not in found or other["p50_us"] < found[name]["p50_us"]:
            found[name] = other
    if found:
        row["rivals"] = {
            name: {
                "p50_us": other["p50_us"],
                "variant": other["variant"],
                "timing": other["timing"],
                "ratio": round(other["p50_us"] / row["p50_us"], 2),
            }
            for name, other in found.items()
        }
