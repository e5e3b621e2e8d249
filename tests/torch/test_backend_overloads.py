"""The short forms of a "dcomm" group's methods give what gloo's give."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from rank_processes import process_values

SCRIPT = Path(__file__).with_name("overload_ranks.py")


@pytest.mark.timeout(200)
def test_short_forms(tmp_path: Path) -> None:
    ours, theirs = (
        process_values(2, SCRIPT, "forms", {"folder": str(tmp_path), "backend": backend}, timeout=90)
        for backend in ("dcomm", "gloo")
    )
    for here, there in zip(ours, theirs, strict=True):
        refused = {name: here.pop(f"refused {name}") for name in ("few", "many", "name")}
        assert here == there
        assert len(here) == 18
        assert "got 0 arguments" in refused["few"]
        assert "got 4 arguments" in refused["many"]
        assert "['source']: expected 1 of tensors, then opts, or root, timeout" in refused["name"]
