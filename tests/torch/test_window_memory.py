"""Memory that a process group allocates: FSDP2 stages nothing, has gloo's bits, and takes no more in later steps."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from rank_processes import process_values  # noqa: E402

from dcomm.torch.spans import Spans  # noqa: E402

SCRIPT = Path(__file__).with_name("window_memory_ranks.py")
BLOCKS, STEPS = 3, 4


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    args = {"folder": str(tmp_path_factory.mktemp("two"))}
    return process_values(2, SCRIPT, "two_ranks", args, env={"GLOO_SOCKET_IFNAME": "lo"}, timeout=170)


@pytest.mark.parametrize("mixed", [False, True])
def test_fsdp_reads_buffers_where_they_lie(two_ranks: list[dict[str, Any]], mixed: bool) -> None:
    for value in two_ranks:
        gloo, staged, direct = (value[str(mixed)][name] for name in ("gloo", "staged", "direct"))
        assert gloo["hash"] == staged["hash"] == direct["hash"]
        assert staged["num_direct"] == 0
        assert staged["memory"] == [0] * STEPS
        # Of each block: an all-gather before forward, one before backward, a reduce-scatter. Half precision: the
        # all-gathers are too small to ask.
        assert direct["num_direct"] >= (1 if mixed else 3) * BLOCKS * STEPS
        assert direct["num_sent_bytes"] < (0.7 if mixed else 0.2) * staged["num_sent_bytes"]
        assert len(set(direct["memory"])) == 1
        assert 0 < direct["memory"][0] < 4 << 20
        assert direct["used"] == 0  # once the model is gone


def test_full_window(two_ranks: list[dict[str, Any]]) -> None:
    for rank, value in enumerate(two_ranks):
        found = value["small"]
        assert found["direct"] == [1, 0, 1]  # one rank's tensor was ordinary
        assert len(found["lines"]) == rank, found
        assert found["moved"] == (rank == 1)
        assert found["shapes"] == [[0], [3], [2, 5]]
        assert (found["cuda"], found["cpu"], value["off"]) == (False, True, False)
        assert found["after"] == rank + 1
    (line,) = two_ranks[1]["small"]["lines"]
    for text in ("copied through slots", "400128 of the 1000000 bytes", "800000 more", "raise DCOMM_TENSOR_BYTES"):
        assert text in line


@pytest.mark.long
def test_subgroups(tmp_path: Path) -> None:
    for of_row, of_all in process_values(4, SCRIPT, "subgroups", {"folder": str(tmp_path)}, timeout=120):
        assert of_row >= 3 * BLOCKS * STEPS
        assert of_all == 0


def test_spans_never_overlap_and_become_one_again() -> None:
    numbers = random.Random(3)
    spans = Spans(10_000)
    taken: dict[int, int] = {}
    for _ in range(3000):
        if taken and numbers.random() < 0.5:
            begin = numbers.choice(list(taken))
            spans.give_back(begin)
            del taken[begin]
        else:
            nbytes = numbers.choice((1, 16, 300, 2000))
            begin = spans.take(nbytes)
            places = sorted([*taken.items(), (10_000, 0)])
            low = 0
            for place, length in places:  # the first gap that is large enough
                if place - low >= nbytes:
                    break
                low = place + length
            expected = low if low < 10_000 and place - low >= nbytes else None
            assert begin == expected
            if begin is not None:
                taken[begin] = nbytes
        assert spans.used_bytes == sum(taken.values())
    for begin in list(taken):
        spans.give_back(begin)
    assert spans.take(10_000) == 0


@pytest.mark.long
def test_the_benchmark_and_its_table(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    path = tmp_path / "fsdp_step.json"
    tiny = ["--rounds", "1", "--calls", "1", "--steps", "1", "--layers", "1", "--mib", "0.25", "--json", str(path)]
    command = [sys.executable, str(root / "benchmarks" / "fsdp_step.py"), *tiny]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(path.read_text())["rows"]
    assert [row["what"] for row in rows] == ["all_gather of 0.25 MiB", "reduce_scatter of 0.25 MiB", "step of 1 layers"]
    (tmp_path / "docs").mkdir()
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    path.rename(tmp_path / "benchmarks" / "results" / path.name)
    page = tmp_path / "docs" / "page.md"
    page.write_text("<!-- table:fsdp_step.fsdp -->\n<!-- /table -->\n")
    (tmp_path / "README.md").write_text("")
    make_tables = [sys.executable, str(root / "tools" / "make_tables.py"), "--root", str(tmp_path)]
    done = subprocess.run(make_tables, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert "|  | direct, ms | staged, ms | gloo, ms | staged / direct | gloo / direct |" in page.read_text()
