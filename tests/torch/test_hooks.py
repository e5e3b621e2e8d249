"""DDP hooks on gloo process groups: the same gradients as DDP, overlap, errors, and leaving."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from rank_processes import process_values, run_processes  # noqa: E402

import dcomm.torch  # noqa: E402

SCRIPT = Path(__file__).with_name("hook_ranks.py")
ENV = {"GLOO_SOCKET_IFNAME": "lo"}
SMALL_BUCKETS = {"bucket_cap_mb": 0.01}  # rebuilt after the first step, then several buckets
# Worst |dcomm - DDP| / mean|g| allowed, per element. Wires: decision 4, two roundings, and the absolute part.
EXACT, FP16, BF16 = 1e-6, 2 * 2.0**-11 * 1.01, 2 * 2.0**-8 * 1.01
FP8 = 1.1  # what is small beside its block's largest may become zero

MODES: dict[str, tuple[dict[str, Any], float]] = {
    "plain": ({}, EXACT),
    "several steps": ({"steps": 12, "keep_apart": True}, EXACT),
    "small buckets": ({"ddp": SMALL_BUCKETS}, EXACT),
    "no_sync": ({"accumulate": True, "ddp": SMALL_BUCKETS}, EXACT),
    "unused": ({"unused": True, "ddp": {"find_unused_parameters": True, **SMALL_BUCKETS}}, EXACT),
    "bucket view": ({"ddp": {"gradient_as_bucket_view": True, **SMALL_BUCKETS}}, EXACT),
    "static graph": ({"ddp": {"static_graph": True, **SMALL_BUCKETS}}, EXACT),
    "float64": ({"dtype": "float64"}, 1e-14),
    "fp16 hook": ({"hook": "fp16"}, FP16),
    "bf16 hook": ({"hook": "bf16", "ddp": SMALL_BUCKETS}, BF16),
    "fp8 hook": ({"hook": "fp8", "ddp": SMALL_BUCKETS}, FP8),
    "bf16 wire, one bucket": ({"wire_dtype": "bf16"}, BF16),
}


def compare(world_size: int, folder: Path, names: list[str]) -> list[Any]:
    args = {"folder": str(folder), "modes": {name: MODES[name][0] for name in names}}
    return process_values(world_size, SCRIPT, "compare", args, env=ENV, timeout=110)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """All modes in one launch: importing torch twice takes longer than all of them."""
    return compare(2, tmp_path_factory.mktemp("two"), list(MODES))


@pytest.mark.parametrize("name", MODES)
def test_two_ranks_agree_with_ddp(two_ranks: list[Any], name: str) -> None:
    limit = MODES[name][1]
    for result in (values[name] for values in two_ranks):
        print(f"{name}: worst {result['worst']:.2e} of mean|g|, bitwise {result['bitwise']}")
        assert result["worst"] <= limit
        if limit <= EXACT:
            assert result["bitwise"]
        else:
            assert result["worst"] > 2.0**-14  # the wire was used


def test_buckets_are_reduced_one_by_one(two_ranks: list[Any]) -> None:
    for values in two_ranks:
        assert (
            values["bf16 wire, one bucket"]["operations"] == 5
        )  # in four steps; the wires register nothing; one to agree
        assert values["small buckets"]["operations"] > 8
        assert values["no_sync"]["operations"] == values["small buckets"]["operations"]


@pytest.mark.long
def test_four_ranks_agree_with_ddp(tmp_path: Path) -> None:
    names = ["plain", "small buckets", "fp16 hook"]
    for values in compare(4, tmp_path, names):
        for name in names:
            print(f"{name}, 4 ranks: worst {values[name]['worst']:.2e} of mean|g|")
            assert values[name]["worst"] <= MODES[name][1]


@pytest.mark.long
def test_torchs_all_reduce_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "hook").mkdir()
    args = {"folder": str(tmp_path / "hook"), "use_hook": True}
    for value in process_values(2, SCRIPT, "train_without_torchs_all_reduce", args, env=ENV):
        assert value == [12.0] * 3
    args = {"folder": str(tmp_path), "use_hook": False}
    for result in run_processes(2, SCRIPT, "train_without_torchs_all_reduce", args, env=ENV):
        assert result.returncode != 0  # so the check above can fail
        assert "torch's all-reduce was called" in result.err


def test_a_delay_in_the_collective_is_hidden_by_backward(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    args = {"folder": str(tmp_path / "a"), "blocking": False}
    for value in process_values(2, SCRIPT, "overlap", args, env=ENV):
        cost_ms = value["delayed_ms"] - value["plain_ms"]
        print(f"hook returns in {value['returns_ms']:.3f} ms; 20 ms of delay cost the step {cost_ms:.2f} ms: {value}")
        assert value["returns_ms"] < 2
        assert cost_ms < 0.25 * 20
    args = {"folder": str(tmp_path), "blocking": True}
    for value in process_values(2, SCRIPT, "overlap", args, env=ENV):  # so the check above can fail
        assert value["delayed_ms"] - value["plain_ms"] > 15


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.long)])
def test_a_lost_peer_fails_backward_with_the_reason(victim: int, tmp_path: Path) -> None:
    results = run_processes(2, SCRIPT, "lose_a_peer", {"folder": str(tmp_path), "victim": victim}, env=ENV)
    survivor = results[1 - victim]
    assert survivor.returncode == 0, survivor
    print(f"survivor after {survivor.value['seconds']:.3f} s: {survivor.value['text'][:300]}")
    assert f"rank {victim} (pid " in survivor.value["text"]
    assert re.search(r"died( \(it [\w ]+\))? after completing #", survivor.value["text"])
    assert survivor.value["seconds"] < 2


@pytest.mark.long
def test_ranks_on_several_hosts_are_left_to_the_group(tmp_path: Path) -> None:
    results = run_processes(2, SCRIPT, "on_several_hosts", {"folder": str(tmp_path)}, env=ENV)
    for result in results:
        assert result.returncode == 0, result
        assert result.value == {"same": True, "communicator": False}
    notice = "dcomm: the process group reduces the gradients: "
    assert sum(result.err.count(notice) for result in results) == 1, results
    assert "not on rank 0's host" in results[0].err


@pytest.mark.long
def test_callbacks_may_wait_for_other_collectives(tmp_path: Path) -> None:
    for value in process_values(2, SCRIPT, "chained_collectives", {"folder": str(tmp_path)}, env=ENV):
        assert value == {"depth": 16.0, "gradient": 0.5}


@pytest.mark.parametrize(
    "how", [pytest.param(how, marks=pytest.mark.long) for how in ("pending", "return", "exception")]
)
def test_leaving_without_destroy_does_not_hang(how: str, tmp_path: Path) -> None:
    args = {"folder": str(tmp_path), "how": how}
    for result in run_processes(2, SCRIPT, "leave_without_destroy", args, env=ENV, timeout=40):
        assert result.returncode == (1 if how == "exception" else 0), result
        assert "terminate called" not in result.err
        assert "Fatal Python error" not in result.err


def test_pickling_keeps_the_settings() -> None:
    state = pickle.loads(pickle.dumps(dcomm.torch.HookState(wire_dtype="bf16")))
    assert (state.wire_dtype, state.policy, state.process_group) == ("bf16", "dcomm", None)
    assert state.communicator is None


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"wire_dtype": "int8"}, "wire_dtype='int8': expected None"),
        ({"policy": "x"}, "policy='x': expected 'dcomm' or 'auto'"),
    ],
)
def test_bad_settings(kwargs: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        dcomm.torch.HookState(**kwargs)
