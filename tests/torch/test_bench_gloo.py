"""The benchmark's peer in torch: every collective runs, its data is checked, and the check can fail."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("torch")

from dcomm.bench import gloo
from dcomm.bench.case import Case
from dcomm.bench.collectives import COLLECTIVES
from dcomm.bench.ranks import Ranks


@contextmanager
def gloo_ranks(folder: Path) -> Iterator[Ranks]:
    with Ranks(3) as ranks:
        ranks.receive()
        ranks.send({"do": "gloo", "store": str(folder / "store"), "threads": [1]})
        ranks.receive()
        yield ranks


def case_of(name: str, dtype: str) -> Case:
    what = COLLECTIVES[name]
    op, root = ("sum" if what.reduces else "none"), (2 if what.rooted else -1)
    count = 0 if name == "barrier" else 33
    shape = {"calls": 4, "batches": 2, "buffers": 4, "threads": 1, "in_place": what.modes[-1]}
    return Case(count, collective=name, lib="gloo", dtype=dtype, redop=op, root=root, **shape)  # type: ignore[arg-type]


def test_every_collective_gives_what_is_expected(tmp_path: Path) -> None:
    with gloo_ranks(tmp_path) as ranks:
        for name in gloo.COLLECTIVES:
            for dtype in ("float32", "int64"):
                measured = ranks.measure(case_of(name, dtype))
                assert (len(measured.us), measured.num_wrong) == (2, 0), name
        assert ranks.leave() == [0, 0, 0]


@pytest.mark.parametrize("name", [pytest.param("all_to_all", marks=pytest.mark.long), "gather"])
def test_a_flipped_bit_is_seen(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCOMM_BENCH_CORRUPT", "1")  # the first batch of the last rank, which is the root
    with gloo_ranks(tmp_path) as ranks:
        assert ranks.measure(case_of(name, "float32")).num_wrong == 1
