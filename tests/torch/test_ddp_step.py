"""benchmarks/ddp_step.py as it is run, and what it makes of what it measured."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch")

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def ddp_step() -> ModuleType:
    sys.path.append(str(BENCHMARKS))
    return importlib.import_module("ddp_step")


def run(command: list[str], path: Path) -> dict[str, Any]:
    """What the benchmark writes of the workload "tiny"."""
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "ddp_step.py"), *command, "--json", str(path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(path.read_text())["workloads"]["tiny"]
    return found


@pytest.mark.long
def test_every_kind_of_variant_ends_with_the_same_weights(tmp_path: Path) -> None:
    variants = ["no_sync", "ddp + gloo", "ddp views + dcomm", "synchronizer deterministic"]
    command = ["--workloads", "tiny", "--max-seconds", "1", "--steps", "1", "--variants", ";".join(variants)]
    found = run(command, tmp_path / "found.json")
    assert list(found["rows"]) == variants
    assert all(row["step_ms"] > 0 for row in found["rows"].values())
    assert [entry["equal_on_all_ranks"] for entry in found["weights"].values()] == [True] * 3
    assert found["weights"]["ddp views + dcomm"]["distance_from_gloo"] < 1e-5


@pytest.mark.long
def test_one_synchronizer_takes_all_bucket_sizes(tmp_path: Path) -> None:
    command = ["--workloads", "tiny", "--max-seconds", "1", "--steps", "1", "--lives", "2"]
    found = run([*command, "--variants", "buckets", "--same-processes"], tmp_path / "found.json")
    assert found["bucket_bytes"] == {"synchronizer": [1 << 20, 1 << 20]}  # with every size one bucket: the smallest
    assert len(found["rows"]) == 6
    assert found["weights"] == {"synchronizer": {"equal_on_all_ranks": True}}
    assert all(0 < row["of_pass"] < 6 for row in found["rows"].values())


def test_only_bucket_sizes_can_share_processes(ddp_step: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        ddp_step.parse_args(["--variants", "auto", "--same-processes"])
    assert "--same-processes with --variants auto" in capsys.readouterr().err


def measured(**changes: Any) -> dict[str, Any]:
    steps = {
        "no_sync": [90.0] * 3,
        "ddp + gloo": [200.0] * 3,
        "ddp + dcomm": [105.0] * 3,
        "ddp views + dcomm": [100.0] * 3,
        "synchronizer": [95.0] * 3,
    }
    weights = {name: {"equal_on_all_ranks": True, "close": True} for name in steps if name != "no_sync"}
    # In one round each was measured in another state, which must not count.
    near = ["near"] * 5
    states = {name: [*near[place:], "far", *near[:place]] for place, name in enumerate(steps)}
    found = {"title": "MLP", "states": states, "weights": weights, "step_ms": {}}
    for name, ms in (steps | changes).items():
        found["step_ms"][name] = [ms if state == "near" else [1e6] for state in states[name]]
    return found


def test_figures_are_those_of_the_state_seen_most(ddp_step: ModuleType) -> None:
    report = {"workloads": {"mlp": ddp_step.summarise(measured())}}
    row = report["workloads"]["mlp"]["rows"]["ddp views + dcomm"]
    assert (row["step_ms"], row["exposed"], row["over_gloo"]) == (100.0, pytest.approx(0.1), 2.0)
    assert [figure["reached"] for figure in ddp_step.check_figures(report["workloads"])] == [True] * 7
    slow = {"workloads": {"mlp": ddp_step.summarise(measured(synchronizer=[126.0], **{"ddp views + dcomm": [120.0]}))}}
    assert [figure["reached"] for figure in ddp_step.check_figures(slow["workloads"])] == [
        True,
        True,
        True,
        False,
        False,
        False,
        True,
    ]
    assert [figure["reached"] for figure in ddp_step.check_figures({})] == [False] * 4


def test_too_few_rounds_reach_nothing(ddp_step: ModuleType) -> None:
    found = measured()
    found["states"]["synchronizer"][0] = "mixed"
    summary = ddp_step.summarise(found)
    assert (summary["rows"]["synchronizer"]["rounds_counted"], summary["rounds_counted"]) == (4, "4 to 5 of 6 rounds")
    assert [figure["reached"] for figure in ddp_step.check_figures({"mlp": summary})] == [True] * 6 + [False]


def test_what_chooses_by_itself_is_compared_with_the_best(ddp_step: ModuleType) -> None:
    def report(name: str, auto_ms: float) -> list[bool]:
        rows = {}
        for number, variant in enumerate(ddp_step.LISTS[name]):
            is_auto = "auto" in variant or variant == "synchronizer"
            rows[variant] = {"step_ms": auto_ms if is_auto else 100.0 + number, "rounds_counted": 5}
        return [figure["reached"] for figure in ddp_step.check_list(name, {"gpt": {"rows": rows}})]

    assert report("buckets", 103.9) == [True, True]
    assert report("buckets", 104.2) == [False, True]
    assert report("auto", 103.0) == [True, True, True, True]
    assert report("auto", 103.1) == [False, True, True, True]
    assert report("auto", 106.2) == [False, False, False, True]


class ToldSizes:
    """What steps_of_sizes uses of a trainer and its synchronizer; a step takes as many milliseconds as its size."""

    def __init__(self, obeys: bool = True) -> None:
        self.sync, self.obeys = self, obeys
        self.bucket_bytes, self.made = 0, list[int]()

    def state_dict(self) -> dict[str, Any]:
        return {"bucket_bytes": self.bucket_bytes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.bucket_bytes = state["bucket_bytes"] if self.obeys else 7

    def step(self) -> None:
        self.made.append(self.bucket_bytes)


def test_bucket_sizes_take_turns_by_step(ddp_step: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pass begins with another size, the first one with what it is told; the step after a pause does not count."""
    ranks = importlib.import_module("step_ranks")
    trainer = ToldSizes()
    monkeypatch.setattr(ranks.dist, "barrier", lambda: None)
    monkeypatch.setattr(ranks.time, "perf_counter", lambda: 1e-3 * sum(trainer.made))
    found = ranks.steps_of_sizes(trainer, [10, 20, 30], first=2, steps=2, warm=1)
    assert trainer.made == [30, 30, 10, 20, 10, 20, 30]
    assert [pytest.approx([size] * 2) for size in (10, 20, 30)] == found
    with pytest.raises(ranks.RankError, match="buckets are 7 bytes, not 10"):
        ranks.steps_of_sizes(ToldSizes(obeys=False), [10], first=0, steps=1, warm=0)


def test_steps_are_compared_with_those_of_the_same_pass(ddp_step: ModuleType) -> None:
    """In a pass that was slow for all a size is not slower than the others; no round counts whose state changed."""
    pass_ms, slower = [100.0, 300.0, 100.0, 500.0], [1.0, 1.02, 1.04, 1.0, 1.0, 1.0]
    found = {
        "title": "GPT",
        "in_passes": True,
        "states": {name: ["near"] * 5 + ["far"] + ["mixed"] * 9 for name in ddp_step.LISTS["buckets"]},
        "step_ms": {
            name: [[ms * ratio for ms in pass_ms]] * 6 + [[1e3 / ratio**9] * 4] * 9
            for name, ratio in zip(ddp_step.LISTS["buckets"], slower, strict=True)
        },
        "weights": {},
    }
    summary = ddp_step.summarise(found)
    ratios = [row["of_pass"] / summary["rows"]["synchronizer"]["of_pass"] for row in summary["rows"].values()]
    assert ratios == pytest.approx(slower)
    summary["rows"]["synchronizer"]["step_ms"] *= 2  # which is not what is compared
    assert ddp_step.check_list("buckets", {"gpt": summary})[0]["measured"] == "+0.0% (synchronizer 8 MiB)"
    del summary["rows"]["synchronizer"]["of_pass"]
    assert not ddp_step.check_list("buckets", {"gpt": summary})[0]["reached"]


@pytest.mark.parametrize("key", ["equal_on_all_ranks", "close"])
def test_wrong_weights_are_an_error(ddp_step: ModuleType, key: str) -> None:
    found = measured()
    assert ddp_step.is_wrong({"workloads": {"mlp": found}}) == []
    found["weights"]["synchronizer"][key] = False
    assert len(ddp_step.is_wrong({"workloads": {"mlp": found}})) == 1
