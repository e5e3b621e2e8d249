"""Hybrid parallelism of examples/train_gpt.py against one process that trains on the same global batch."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from rank_processes import process_values  # noqa: E402

pytestmark = pytest.mark.long  # the test command is to stay short

SCRIPT = Path(__file__).with_name("hybrid_ranks.py")
_spec = importlib.util.spec_from_file_location("hybrid_ranks", SCRIPT)
assert _spec is not None
assert _spec.loader is not None
hybrid_ranks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(hybrid_ranks)

# float32 sums in another order, amplified by six steps of an optimizer that divides by the gradients' size.
LOSS_BOUND = 1e-5  # nats; seen: 5e-7
NORM_BOUND = 1e-5  # relative; seen: 5e-7
WEIGHT_BOUND = 4e-4  # a step moves a weight by 1e-2 at most; seen: 4e-5
TWO = [(2, 1, 1), (1, 2, 1), (1, 1, 2)]
FOUR = [(2, 2, 1), (1, 2, 2)]

Results = list[list[dict[str, Any]]]


def results(world_size: int, folder: Path, layouts: list[tuple[int, int, int]]) -> Results:
    args = {"folder": str(folder), "layouts": [list(layout) for layout in layouts]}
    assert process_values(world_size, SCRIPT, "run", args, timeout=110) == [len(layouts)] * world_size
    return [torch.load(folder / f"{rank}.pt") for rank in range(world_size)]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return results(2, tmp_path_factory.mktemp("two"), TWO)


@pytest.fixture(scope="module")
def four_ranks(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return results(4, tmp_path_factory.mktemp("four"), FOUR)


def check(found: Results, layout: tuple[int, int, int], index: int) -> None:
    expected = hybrid_ranks.alone(layout[0])
    first = found[0][index]
    assert len(first["losses"]) == hybrid_ranks.STEPS
    assert max(abs(a - b) for a, b in zip(first["losses"], expected["losses"], strict=True)) <= LOSS_BOUND
    assert abs(first["val_loss"] - expected["val_loss"]) <= LOSS_BOUND
    assert first["norms"] == pytest.approx(expected["norms"], rel=NORM_BOUND)
    assert first["weights"].keys() == expected["weights"].keys()
    for name, weight in expected["weights"].items():
        assert (first["weights"][name] - weight).abs().max().item() <= WEIGHT_BOUND, name
    for rank in found[1:]:  # bit for bit
        for key in ("losses", "norms", "val_loss"):
            assert rank[index][key] == first[key]
        for name, weight in first["weights"].items():
            assert torch.equal(rank[index]["weights"][name], weight), name


@pytest.mark.parametrize("layout", TWO, ids=str)
def test_two_ranks_train_as_one_process(two_ranks: Results, layout: tuple[int, int, int]) -> None:
    check(two_ranks, layout, TWO.index(layout))


@pytest.mark.long
@pytest.mark.parametrize("layout", FOUR, ids=str)
def test_four_ranks_train_as_one_process(four_ranks: Results, layout: tuple[int, int, int]) -> None:
    check(four_ranks, layout, FOUR.index(layout))


def test_sharded_heads_come_back_in_place() -> None:
    import gpt_stage

    weight = torch.arange(3 * 8 * 8.0).view(24, 8)
    for num_parts in (1, 2, 4):
        parts = gpt_stage.heads_together(weight, num_parts)
        assert torch.equal(gpt_stage.heads_apart(parts, num_parts), weight)
        rows = 8 // num_parts  # of q, then of k, then of v in the first part
        assert torch.equal(parts[:rows], weight[:rows])
        assert torch.equal(parts[rows : 2 * rows], weight[8 : 8 + rows])
