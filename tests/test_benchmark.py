"""benchmarks/all_reduce.py as it is run, its arithmetic, and the tables that tools/make_tables.py makes of it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dcomm.bench import exact
from dcomm.bench.collectives import bandwidths

ROOT = Path(__file__).resolve().parents[1]


def run_tool(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT / "benchmarks",
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def run_benchmark(path: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    small = ("-n", "2", "-e", "512", "-f", "64", "--rounds", "1", "--json", str(path))
    return run_tool(str(ROOT / "benchmarks" / "all_reduce.py"), *small, *arguments, **environment)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("results") / "all_reduce_2.json"
    peer = "gloo" if importlib.util.find_spec("torch") else "none"
    done = run_benchmark(path, "--wire", "none,float16", "--compare", peer)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "#wrong" in done.stdout
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def test_the_json_says_what_was_measured_and_where(report: dict[str, Any]) -> None:
    assert report["machine"]["cores"] >= 1
    assert report["versions"]["dcomm"]
    assert report["command"].startswith("python benchmarks/all_reduce.py -n 2")
    assert report["commit"]
    assert len(report["rounds"]) == 1
    assert report["rounds"][0]["eight_byte_us"][0] > 0

    ours = [row for row in report["rows"] if row["lib"] == "dcomm"]
    assert {(row["nbytes"], row["wire"]) for row in ours} == {
        (nbytes, wire) for nbytes in (8, 512) for wire in (None, "float16")
    }
    for row in report["rows"]:
        assert row["num_wrong"] == 0
        assert 0 < row["best_round_us"] <= row["p50_us"]
        assert row["count"] * 4 == row["nbytes"]
        assert row["algbw_gbps"] == pytest.approx(row["nbytes"] / row["time_us"] / 1e3, abs=1e-3)
    if importlib.util.find_spec("torch"):
        assert all(row["ratio"] == pytest.approx(row["gloo_us"] / row["p50_us"], rel=0.05, abs=0.02) for row in ours)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ("1", "FAILED: 1 wrong elements in the largest all_reduce\n"),  # before the first round
        ("10", "FAILED: 1 wrong elements in the 8-byte all-reduce\n"),
        ("40", "FAILED: 1 wrong elements\n"),  # in a row of the table
    ],
)
def test_wrong_data_fails_the_benchmark(batch: str, message: str, tmp_path: Path) -> None:
    done = run_benchmark(tmp_path / "wrong.json", DCOMM_BENCH_CORRUPT=batch)
    assert done.returncode == 1, done.stdout + done.stderr
    assert message in done.stdout


def test_bus_bandwidth_is_what_a_link_carries() -> None:
    assert bandwidths(1_000_000, 1000.0, 2) == pytest.approx((1.0, 1.0))
    assert bandwidths(1_000_000, 1000.0, 4) == pytest.approx((1.0, 1.5))
    assert bandwidths(8, 2.0, 8) == pytest.approx((0.004, 0.007))


@pytest.mark.parametrize("carrier", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("world_size", [2, 3, 4, 5, 8, 16])
def test_crafted_sums_are_exact_at_every_call(world_size: int, carrier: str) -> None:
    digits, lowest, highest = exact._CARRIERS[carrier]
    for wanted in (16, 4):
        calls = exact.exact_chain(world_size, wanted, carrier)
        chosen = exact.craft(world_size, calls, carrier)
        assert chosen is not None
        assert chosen.scale >= 2.0**lowest
        for total in range(world_size, world_size * chosen.prime + 1):
            for call in range(calls):
                value = total * world_size**call
                odd_part = value // (value & -value)
                assert odd_part < 2**digits
                assert value * chosen.scale < 2.0 ** (highest + 1)


def make_tables(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_tool(str(ROOT / "tools" / "make_tables.py"), "--root", str(root), *arguments)


def test_tables_are_made_from_the_measurements_and_checked(report: dict[str, Any], tmp_path: Path) -> None:
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    saved = results / "all_reduce_2.json"
    report = {**report, "figures": [{"figure": "8 B: fast", "measured": "1 us", "reached": True}]}
    saved.write_text(json.dumps(report))
    readme = tmp_path / "README.md"
    readme.write_text("# Title\n\n<!-- table:all_reduce_2 -->\n<!-- /table -->\n\nend\n")
    page = tmp_path / "docs" / "benchmarks.md"
    markers = [f"<!-- table:all_reduce_2.{kind} -->\nold\n<!-- /table -->\n" for kind in ("rounds", "figures")]
    page.write_text("\n".join(markers))

    assert make_tables(tmp_path, "--check").returncode == 1
    assert "old" in page.read_text()
    assert make_tables(tmp_path).returncode == 0
    text = readme.read_text()
    assert text.startswith("# Title\n\n<!-- table:all_reduce_2 -->\n| message |")
    assert "| 512 B |" in text
    assert text.endswith("<!-- /table -->\n\nend\n")
    assert "| 8 B: fast | 1 us | yes |" in page.read_text()
    assert make_tables(tmp_path, "--check").returncode == 0

    report["rows"][0]["p50_us"] *= 3
    saved.write_text(json.dumps(report))
    done = make_tables(tmp_path, "--check")
    assert (done.returncode, done.stdout) == (1, "README.md: differs from the measurements\n")


def test_a_table_without_measurement_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("<!-- table:nothing -->\n<!-- /table -->\n")
    done = make_tables(tmp_path)
    assert done.returncode == 2
    assert "nothing.json is missing" in done.stderr
    (tmp_path / "README.md").write_text("<!-- table:nothing -->\n")
    assert make_tables(tmp_path).returncode == 2
