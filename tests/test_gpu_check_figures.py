"""The figures that tools/gpu_check makes of measurements: made-up ones here, reached, not reached and not measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gpu_checks import MIB, figures, gpu_check, only, outcomes

pytestmark = pytest.mark.long


def timing_row(n: int, nbytes: int, median_us: float, **more: Any) -> dict[str, Any]:
    row = {"what": "dcomm", "world_size": n, "nbytes": nbytes, "algo": "auto", "wire": "float32", "num_wrong": 0}
    return {**row, "median_us": median_us, "percent_of_floor": 80.0, **more}


def test_floor_figure() -> None:
    rows = [timing_row(8, 64 * MIB, 100.0), timing_row(8, 64 * MIB, 90.0, algo="ring", percent_of_floor=85.0)]
    found = only("timing", {"rows": rows}, "64 MiB float32", "8 ranks", "70%")
    assert found["outcome"] == "reached"
    assert "80.0%" in found["measured"]
    assert "85.0% (ring)" in found["measured"]
    rows[0]["percent_of_floor"] = 69.9  # another algorithm does not stand in for "auto"
    assert only("timing", {"rows": rows}, "64 MiB float32", "8 ranks", "70%")["outcome"] == "not reached"
    rows[0] |= {"percent_of_floor": 80.0, "num_wrong": 1}
    assert only("timing", {"rows": rows}, "64 MiB float32", "8 ranks", "70%")["outcome"] == "not reached"
    assert only("timing", {"rows": rows}, "64 MiB float32", "4 ranks", "70%")["outcome"] == "not measured"


def test_torch_figure_takes_the_best_rival_at_every_size() -> None:
    def rival(nbytes: int, name: str, median_us: float, **more: Any) -> dict[str, Any]:
        row = {"what": "torch", "world_size": 4, "nbytes": nbytes, "rival": name, "num_wrong": 0}
        return {**row, "median_us": median_us, **more}

    rows = [
        timing_row(4, MIB, 10.0),
        timing_row(4, 64 * MIB, 100.0),
        rival(MIB, "torch.compile", 11.0),
        rival(MIB, "torch stack+sum", 30.0),
        rival(64 * MIB, "torch stack+sum", 300.0),
        {"what": "torch", "world_size": 4, "nbytes": 64 * MIB, "rival": "torch.compile", "error": "no compiler"},
    ]
    found = only("timing", {"rows": rows}, "4 ranks", "torch composite")
    assert (found["outcome"], found["measured"]) == (
        "reached",
        "1 MiB 1.10x torch.compile; 64 MiB 3.00x torch stack+sum",
    )
    slower = [*rows[:2], rival(MIB, "torch.compile", 9.0), *rows[3:]]
    assert only("timing", {"rows": slower}, "4 ranks", "torch composite")["outcome"] == "not reached"
    wrong = [timing_row(4, MIB, 10.0, num_wrong=3), *rows[1:]]
    assert only("timing", {"rows": wrong}, "4 ranks", "torch composite")["outcome"] == "not reached"
    cheat = [*rows[:2], rival(MIB, "torch.compile", 1.0, num_wrong=5), *rows[3:]]  # a wrong rival is none
    assert only("timing", {"rows": cheat}, "4 ranks", "torch composite")["outcome"] == "reached"


def test_wire_figures() -> None:
    rows = [
        timing_row(2, 16 * MIB, 100.0),
        timing_row(2, 16 * MIB, 100.0, wire="float16"),
        {"what": "cast", "world_size": 2, "nbytes": 16 * MIB, "median_us": 150.0, "num_wrong": 0},
    ]
    slower, fused = ("2 ranks", "not slower"), ("2 ranks", "fused")
    assert only("timing", {"rows": rows}, *slower)["outcome"] == "reached"
    assert only("timing", {"rows": rows}, *fused)["outcome"] == "reached"
    rows[1]["median_us"] = 101.0
    assert only("timing", {"rows": rows}, *slower)["outcome"] == "not reached"
    assert only("timing", {"rows": rows}, *fused)["outcome"] == "not reached"
    rows[1] |= {"median_us": 10.0, "num_wrong": 1}
    assert only("timing", {"rows": rows}, *fused)["outcome"] == "not reached"
    rows[1]["num_wrong"], rows[2]["num_wrong"] = 0, 1  # what it is compared with must be right as well
    assert only("timing", {"rows": rows}, *fused)["outcome"] == "not measured"


@pytest.mark.parametrize(("median_us", "outcome"), [(6.0, "reached"), (6.01, "not reached")])
def test_latency_figure(median_us: float, outcome: str) -> None:
    row = {"what": "dcomm", "world_size": 2, "nbytes": 8, "algo": "auto", "median_us": median_us, "num_wrong": 0}
    found = {"rows": [row], "floor": {"empty_launch_us": 3.0, "round_trip_us": 1.0}}
    assert only("graphs", found, "8 B, 2 ranks")["outcome"] == outcome
    assert only("graphs", {"rows": [row]}, "8 B, 2 ranks")["outcome"] == "not measured"  # no floor


@pytest.mark.parametrize(("median_us", "outcome"), [(8.0, "reached"), (8.1, "not reached")])
def test_64_kib_figure(median_us: float, outcome: str) -> None:
    row = {"what": "dcomm", "world_size": 8, "nbytes": 65536, "algo": "auto", "median_us": median_us, "num_wrong": 0}
    assert only("graphs", {"rows": [row]}, "64 KiB")["outcome"] == outcome


def test_beside_kernels_figure() -> None:
    row = {"what": "beside kernels", "median_us": 10.5, "kernel_us": 10.0, "over_kernels": 1.05, "num_wrong": 0}
    found = only("graphs", {"rows": [row]}, "1 MiB, 4 ranks")
    assert (found["outcome"], found["measured"]) == ("reached", "10.5 us = 1.05 x 10.0 us of kernel")
    for bad in ({"over_kernels": 1.051}, {"num_wrong": 1}):
        assert only("graphs", {"rows": [{**row, **bad}]}, "1 MiB, 4 ranks")["outcome"] == "not reached", bad
    failed = {"what": "beside kernels", "failure": "CudaError: no"}
    assert only("graphs", {"rows": [failed]}, "1 MiB, 4 ranks")["outcome"] == "not reached"
    without_kernels = {key: value for key, value in row.items() if key not in ("kernel_us", "over_kernels")}
    assert only("graphs", {"rows": [without_kernels]}, "1 MiB, 4 ranks")["outcome"] == "not measured"


def test_replay_figure() -> None:
    rows = [{"what": "replays", "world_size": n, "num_wrong": 0} for n in (2, 4)]
    assert only("graphs", {"rows": rows}, "replays between")["outcome"] == "reached"
    for bad in ({"num_wrong": 1}, {"failure": "CudaError: no"}):
        found = {"rows": [rows[0], {**rows[1], **bad}]}
        assert only("graphs", found, "replays between")["outcome"] == "not reached", bad


def test_list_figures() -> None:
    row = {"what": "pack", "dtype": "float32", "whole": "float32", "percent_of_copy": 85.0, "over_foreach": 1.0}
    found = outcomes("lists", {"rows": [row, {**row, "what": "unpack", "over_foreach": 0.99, "percent_of_copy": 84.9}]})
    assert [found[text] for text in sorted(found)] == ["reached", "reached", "not reached", "not reached"]


def test_process_figures() -> None:
    good = {"what": "handoffs", "world_size": 2, "windows": "vmm", "mps": False, "algo": "one_shot", "num_wrong": 0}
    good["ms_per_handoff"] = 3.5
    death = {"what": "death", "windows": "ipc", "error": "PeerLostError", "seconds": 4.9, "next_call_works": True}
    handoffs, killed = ("2 processes", "vmm"), ("kill -9", "ipc")
    found = {"rows": [good, death]}
    assert only("processes", found, *handoffs) | {"figure": ""} == {
        "figure": "",
        "measured": "one_shot 3.5 ms per handoff",
        "outcome": "reached",
    }
    assert only("processes", found, *killed)["outcome"] == "reached"
    assert only("processes", found, "kill -9", "vmm")["outcome"] == "not measured"
    for bad in ({"num_wrong": 1}, {"failure": "CudaError: ..."}):
        assert only("processes", {"rows": [{**good, **bad}]}, *handoffs)["outcome"] == "not reached", bad
    message = {"what": "messages", "count": 1000, "num_wrong": 0, "ms_per_message": 0.25}
    assert only("processes", {"rows": [message]}, "messages")["measured"] == "1000: 0.25 ms"
    assert only("processes", {"rows": [message]}, "messages")["outcome"] == "reached"
    for bad in ({"num_wrong": 1}, {"failure": "CudaError: no"}):
        assert only("processes", {"rows": [{**message, **bad}]}, "messages")["outcome"] == "not reached", bad
    under_mps = {"rows": [{**good, "mps": True}]}
    assert only("processes", under_mps, *handoffs)["outcome"] == "not measured"
    for bad in ({"seconds": 5.1}, {"error": "CollectiveTimeoutError"}, {"next_call_works": False}):
        assert only("processes", {"rows": [{**death, **bad}]}, *killed)["outcome"] == "not reached", bad
    stuck = {"what": "death", "windows": "ipc", "failure": "AssertionError: still running"}
    assert only("processes", {"rows": [stuck]}, *killed)["outcome"] == "not reached"


def test_hook_figures() -> None:
    good = {"what": "gradients", "hook": "fp16", "worst": 1e-4, "served": True, "num_wrong": 0}
    beside = {
        "what": "overlap",
        "hook": "fp16_hook",
        "served": True,
        "percent_beside": 50.0,
        "percent_beside_any": 60.0,
    }
    gradients, overlap = ("fp16_hook", "DDP's own"), ("fp16_hook", "beside backward")
    assert only("hooks", {"rows": [good, beside]}, *gradients)["outcome"] == "reached"
    assert only("hooks", {"rows": [good, beside]}, *overlap)["outcome"] == "reached"
    assert only("hooks", {"rows": [good]}, *overlap)["outcome"] == "not measured"
    assert only("hooks", {"rows": [{**beside, "percent_beside": None}]}, *overlap)["outcome"] == "not measured"
    assert only("hooks", {"rows": [{**beside, "percent_beside": 49.9}]}, *overlap)["outcome"] == "not reached"
    assert only("hooks", {"rows": [{**good, "num_wrong": 1}]}, *gradients)["outcome"] == "not reached"
    for what, words in (("gradients", gradients), ("overlap", overlap)):
        failed = {"what": what, "hook": "fp16" if what == "gradients" else "fp16_hook", "failure": "CudaError: no"}
        assert only("hooks", {"rows": [failed]}, *words)["outcome"] == "not reached"


def test_overlap_figures() -> None:
    step = {"what": "step", "over_alone": 1.1, "alone_us": 9.0}
    profile = {"what": "overlap", "percent_beside": 50.0, "percent_beside_any": 70.0}
    assert set(outcomes("overlap", {"rows": [step, profile]}).values()) == {"reached"}
    worse = [{**step, "over_alone": 1.11}, {**profile, "percent_beside": 49.0}]
    assert set(outcomes("overlap", {"rows": worse}).values()) == {"not reached"}
    assert "70.0%" in only("overlap", {"rows": [profile]}, "GradientSynchronizer")["measured"]
    assert set(outcomes("overlap", {"rows": [{**profile, "percent_beside": None}]}).values()) == {"not measured"}


def test_correct_figure() -> None:
    rows = [{"check": "failures", "passed": True}, {"check": "split invariance", "passed": True}]
    found = {"rows": rows, "num_compared": 10, "num_differing": 0, "skipped": ["13 ranks"]}
    (figure,) = figures.check_figures("correct", found)
    assert figure["outcome"] == "reached"
    assert "1 cases left out" in figure["measured"]
    assert set(outcomes("correct", {**found, "num_differing": 1}).values()) == {"not reached"}
    assert set(outcomes("correct", {**found, "failure": "CudaError: no"}).values()) == {"not reached"}
    assert set(outcomes("correct", {"rows": [], "failure": "CudaError: no"}).values()) == {"not reached"}
    assert set(outcomes("correct", {**found, "rows": rows[:1]}).values()) == {"not reached"}
    assert set(outcomes("correct", {**found, "num_compared": 0}).values()) == {"not measured"}


def test_figures_of_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    row = {"what": "dcomm", "world_size": 8, "nbytes": 65536, "algo": "auto", "num_wrong": 0}
    for folder, median_us in ((old, 20.0), (new, 7.0)):
        folder.mkdir()
        found = {"date": folder.name, "rows": [{**row, "median_us": median_us}]}
        (folder / "gpu_graphs.json").write_text(json.dumps(found))
    stored = tmp_path / "gpu_figures.json"
    assert gpu_check.main(["figures", str(old), str(new), "--json", str(stored)]) == 0
    printed = capsys.readouterr().out
    assert "     reached  64 KiB, 8 ranks, graph replay: at most 8 us: 7.0 us" in printed
    found = json.loads(stored.read_text())
    assert found["parts"] == {"graphs": {"date": "new"}}
    assert len(found["figures"]) == len(printed.splitlines())


def test_figures_of_registered_arrays() -> None:
    def rows(direct: float, wrong: int, digests: list[str]) -> dict[str, Any]:
        sums = [
            {"what": "sum", "world_size": n, "nbytes": 64 * MIB, "algo": algo, "median_us": us, "num_wrong": wrong}
            for n in (2, 4, 8)
            for algo, us in (("direct", direct), ("two_shot", 120.0))
        ]
        weights = [
            {"what": "weights", "world_size": n, "sha256": [digest]}
            for n, digest in zip((1, 2, 4, 8), digests, strict=True)
        ]
        return {"rows": [*sums, *weights]}

    assert set(outcomes("registered", rows(100.0, 0, ["a"] * 4)).values()) == {"reached"}
    assert set(outcomes("registered", rows(101.0, 0, ["a", "a", "b", "a"])).values()) == {"not reached"}
    assert only("registered", rows(50.0, 1, ["a"] * 4), "64 MiB, 2 ranks")["outcome"] == "not reached"
