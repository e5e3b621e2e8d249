"""tools/gpu_check.sh with a stub in place of python: which parts it runs, how, and what a failure of one does."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from gpu_checks import ROOT, TOOLS

pytestmark = pytest.mark.long


STUB = """#!/bin/sh
echo "$*" >> "$STUB_LOG"
case "$*" in
  -c*) echo 90 ;;
  *"gpu_check.py $STUB_FAILS "*) exit 1 ;;
  *"--device cuda"*) [ "$STUB_FAILS" != bench ] || exit 1 ;;
esac
"""


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a run in which python, and compute-sanitizer, only write their arguments down."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("python", "compute-sanitizer"):
        (folder / name).write_text(STUB)
        (folder / name).chmod(0o755)
    yield {
        **os.environ,
        "PATH": f"{folder}:{os.environ['PATH']}",
        "PYTHON": str(folder / "python"),
        "OUT": str(tmp_path / "out"),
        "STUB_LOG": str(tmp_path / "log"),
        "STUB_FAILS": "none",
    }


def run_script(env: dict[str, str]) -> tuple[int, list[str], str]:
    """Exit status, what was called, what was printed."""
    if shutil.which("timeout") is None:
        pytest.skip("no timeout program")
    command = ["bash", str(TOOLS / "gpu_check.sh")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)
    log = Path(env["STUB_LOG"])
    return done.returncode, log.read_text().splitlines() if log.exists() else [], done.stdout + done.stderr


def test_script_runs_the_chosen_parts_only(stub: dict[str, str]) -> None:
    status, calls, printed = run_script({**stub, "PARTS": "graphs lists"})
    assert status == 0, printed
    out = stub["OUT"]
    script = TOOLS / "gpu_check.py"
    assert calls == [
        f"{script} graphs --max-seconds 400 --json {out}/gpu_graphs.json",
        f"{script} lists --max-seconds 400 --json {out}/gpu_lists.json",
        f"{script} figures {out} --json {out}/gpu_figures.json",
    ]


def test_script_runs_all_parts(stub: dict[str, str]) -> None:
    env = {name: value for name, value in stub.items() if name != "PARTS"}
    status, calls, printed = run_script(env)
    assert status == 0, printed
    told = [line.split()[1].rstrip(":") for line in printed.splitlines() if line.startswith("===") and ": exit" in line]
    parts = [
        "build",
        "doctor",
        "correct",
        "sanitize",
        "tests",
        "compile",
        "expandable",
        "timing",
        "graphs",
        "processes",
    ]
    assert told == [*parts, "hooks", "overlap", "registered", "lists", "crossovers", "bench"]
    (bench,) = (line for line in calls if "all_reduce.py" in line)
    assert "--device cuda" in bench
    assert "--compare all" in bench
    assert bench.endswith(f"--json {stub['OUT']}/gpu_bench.json --plot {stub['OUT']}/gpu_bench.png")
    tools = [line.split()[1] for line in calls if line.startswith("--tool")]
    assert tools == ["memcheck", "synccheck", "initcheck"]
    assert any(line.startswith("-m pip install") for line in calls)
    assert any(line.startswith("-m pytest") and line.endswith("tests/gpu") for line in calls)
    assert any("tests/gpu/test_window_arrays.py" in line for line in calls)
    assert sum("tests/gpu/test_operators_on_gpu.py" in line and "--ignore" not in line for line in calls) == 1


def test_a_failed_part_does_not_stop_the_later_ones(stub: dict[str, str]) -> None:
    status, calls, printed = run_script({**stub, "PARTS": "timing graphs", "STUB_FAILS": "timing"})
    assert status == 1
    assert "=== timing: exit 1" in printed
    assert "=== graphs: exit 0" in printed
    assert len(calls) == 3


def test_a_failed_bench_fails_the_script(stub: dict[str, str]) -> None:
    status, calls, printed = run_script({**stub, "PARTS": "bench", "STUB_FAILS": "bench"})
    assert status == 1
    assert "=== bench: exit 1" in printed
    assert calls[0] == "-c import matplotlib"
    assert len(calls) == 3  # and the figures


def test_the_flags_of_the_bench_are_those_that_it_knows(stub: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    _, calls, _ = run_script({**stub, "PARTS": "bench"})
    (bench,) = (line for line in calls if "all_reduce.py" in line)
    args = importlib.import_module("all_reduce").parse_args(bench.split()[1:])
    assert (args.device, args.compare, args.ranks, args.timeout) == ("cuda", "all", 4, 60.0)
    assert args.max_seconds < 460 - 2 * args.timeout


def test_an_unknown_part_is_refused(stub: dict[str, str]) -> None:
    status, calls, printed = run_script({**stub, "PARTS": "graphs graph"})
    assert (status, calls) == (2, [])
    assert "no part 'graph'" in printed


def test_every_part_ends_within_eight_minutes() -> None:
    """Hard ends of the script, by part, in seconds."""
    text = (TOOLS / "gpu_check.sh").read_text()
    ends = {
        "build": 60 + 410,
        "measure": 460,
        "doctor": 90,
        "sanitize": 3 * 150,
        "tests": 450,
        "compile": 400,
        "bench": 460,
    }
    for written in (
        "timeout -k 10 60",
        "timeout -k 10 410",
        "check 460",
        "check 90",
        "check 150",
        "timeout -k 10 450",
        "timeout -k 10 400",
    ):
        assert written in text, written
    assert max(ends.values()) + 10 <= 480
