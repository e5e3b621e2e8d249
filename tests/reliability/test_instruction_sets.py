"""Ranks whose CPU kernels use different instruction sets: the same bytes on all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from figures import record_figure
from rank_processes import process_values

import dcomm

SCRIPT = Path(__file__).with_name("isa_ranks.py")


def tables_of_this_cpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found = []
    for name in ("scalar", "avx2", "avx512", "neon"):
        monkeypatch.setenv("DCOMM_ISA", name)
        try:
            dcomm.init_threads(1)[0].close()
        except ValueError:
            continue
        found.append(name)
    monkeypatch.delenv("DCOMM_ISA")
    return found


def test_ranks_of_different_instruction_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = tables_of_this_cpu(monkeypatch)
    if len(tables) < 2:
        pytest.skip(f"this CPU has one kernel table: {tables}")
    alone = process_values(len(tables), SCRIPT, "reduce_all", env={"DCOMM_ISA": "scalar"})
    mixed = process_values(len(tables), SCRIPT, "reduce_all", env=[{"DCOMM_ISA": name} for name in tables])
    digests = {value["sha256"] for value in (*alone, *mixed)}
    reductions = mixed[0]["num_reductions"]
    record_figure("instruction_sets", tables=" ".join(tables), reductions=reductions, different=len(digests) - 1)
    assert len(digests) == 1, (alone, mixed)
