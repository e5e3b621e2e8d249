"""DDP, FSDP2, tensor and pipeline parallelism and their products on the "dcomm" backend, compared with gloo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from rank_processes import process_values  # noqa: E402

SCRIPT = Path(__file__).with_name("parallel_ranks.py")
# Two ranks: a + b is b + a, so every bit is equal. PowerSGD's matrix products, and more ranks: sums in another order.
TWO = [
    *("ddp", "ddp static", "ddp views", "ddp unused", "ddp join", "ddp fp16", "ddp bf16", "ddp power_sgd"),
    *("zero", "local sgd", "fsdp", "fsdp mixed", "tp", "tp sequence"),
    *("pp gpipe", "pp 1f1b", "pp interleaved", "checkpoint", "functional"),
]
COMPILED = ["ddp compiled", "functional compiled"]  # each takes ten seconds to compile
FOUR = ["ddp", "ddp join", "hsdp", "dp x tp", "pp 1f1b", "pp interleaved", "dp x pp", "tp x pp", "functional"]
CLOSE = 2e-5  # of the largest weight, after a few steps of an optimizer that divides by the gradients' size


def results(world_size: int, folder: Path, cases: list[str]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for backend in ("gloo", "dcomm"):
        place = folder / backend
        place.mkdir()
        args = {"folder": str(place), "backend": backend, "cases": cases}
        calls = process_values(world_size, SCRIPT, "run", args, env={"GLOO_SOCKET_IFNAME": "lo"}, timeout=110)
        assert backend == "gloo" or min(calls) > 3 * len(cases)
        found[backend] = [torch.load(place / f"{rank}.pt") for rank in range(world_size)]
    return found


def check(found: dict[str, list[dict[str, Any]]], name: str, exact: bool) -> None:
    for rank, (ours, theirs) in enumerate(zip(found["dcomm"], found["gloo"], strict=True)):
        assert ours[name].keys() == theirs[name].keys()
        assert ours[name]
        for key, value in ours[name].items():
            expected = theirs[name][key]
            if exact:
                assert torch.equal(value, expected), (rank, key)
            else:
                limit = CLOSE * max(1.0, expected.abs().max().item())
                assert (value.double() - expected.double()).abs().max().item() <= limit, (rank, key)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    return results(2, tmp_path_factory.mktemp("two"), TWO)


@pytest.fixture(scope="module")
def four_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    return results(4, tmp_path_factory.mktemp("four"), FOUR)


@pytest.mark.timeout(240)  # two launches, in the first test
@pytest.mark.parametrize("name", TWO)
def test_two_ranks_train_as_on_gloo(two_ranks: dict[str, list[dict[str, Any]]], name: str) -> None:
    check(two_ranks, name, exact=True)


@pytest.mark.long
@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", FOUR)
def test_four_ranks_train_as_on_gloo(four_ranks: dict[str, list[dict[str, Any]]], name: str) -> None:
    check(four_ranks, name, exact=False)


@pytest.mark.long
@pytest.mark.timeout(240)
def test_compiled_models_train_as_on_gloo(tmp_path: Path) -> None:
    found = results(2, tmp_path, COMPILED)
    for name in COMPILED:
        check(found, name, exact=True)


@pytest.mark.long
@pytest.mark.timeout(240)
def test_eight_ranks_in_three_dimensions(tmp_path: Path) -> None:
    check(results(8, tmp_path, ["dp x tp x pp"]), "dp x tp x pp", exact=False)
