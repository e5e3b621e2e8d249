"""The hook gives DDP's gradients the memory of the step before, and nobody can tell but the clock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from rank_processes import process_values  # noqa: E402

from dcomm.torch import gradient_memory  # noqa: E402
from dcomm.torch.gradient_memory import GradientMemory  # noqa: E402

SCRIPT = Path(__file__).with_name("gradient_memory_ranks.py")
ENV = {"GLOO_SOCKET_IFNAME": "lo"}
CASES: dict[str, dict[str, Any]] = {
    "reuse": {"what": "reuse"},
    "reuse float64": {"what": "reuse", "dtype": "float64"},
    "reuse bfloat16": {"what": "reuse", "dtype": "bfloat16"},
    "off": {"what": "reuse", "settings": {"reuse_gradients": False}},
    "bucket views": {"what": "reuse", "ddp": {"gradient_as_bucket_view": True}},
    "hold": {"what": "hold"},
    "own buffers": {"what": "own_buffers"},
    "passes": {"what": "passes", "ddp": {"find_unused_parameters": True}},
}


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    args = {"folder": str(tmp_path_factory.mktemp("gradients")), "cases": CASES}
    return process_values(2, SCRIPT, "run", args, env=ENV, timeout=110)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_ddp(values: list[Any], name: str) -> None:
    for value in values:
        found = dict(value[name])
        print(name, found)
        same_place = found.pop("same_place", None)
        if "reuses" in found:
            assert found.pop("reuses") == (name != "off")
        if name.startswith("reuse"):
            assert same_place
        assert all(found.values())


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_memory, "_LEAST_BYTES", 64 * 1024)


def backward(memory: GradientMemory, weight: Any, factor: float) -> None:
    """One backward pass that ends as a bucket of `weight` alone would."""
    weight.grad = None
    handle = weight.register_post_accumulate_grad_hook(lambda weight: memory.renew([weight]))
    (weight * factor).sum().backward()
    handle.remove()


def test_memory_is_lent_once_at_a_time(small: None) -> None:
    memory = GradientMemory()
    weight = torch.nn.Parameter(torch.zeros(200, 200))
    backward(memory, weight, 1.0)
    backward(memory, weight, 2.0)
    lent = weight.grad
    assert lent is not None
    place = lent.data_ptr()
    lent.fill_(3.0)
    backward(memory, weight, 4.0)  # `lent` is still held: a fresh gradient, with its value
    assert weight.grad.data_ptr() != place
    assert torch.equal(weight.grad, torch.full_like(weight, 4.0))
    assert torch.equal(lent, torch.full_like(weight, 3.0))
    row = lent[7]
    del lent
    backward(memory, weight, 5.0)  # and still, by a view
    assert weight.grad.data_ptr() != place
    del row
    backward(memory, weight, 6.0)
    assert weight.grad.data_ptr() == place
    memory.close()
    backward(memory, weight, 7.0)
    assert torch.equal(weight.grad, torch.full_like(weight, 7.0))


def test_outside_of_this_backward_nothing_is_replaced(small: None) -> None:
    memory = GradientMemory()
    weight = torch.nn.Parameter(torch.zeros(200, 200))
    backward(memory, weight, 1.0)
    weight.grad = None
    (weight * 2.0).sum().backward()
    place = weight.grad.data_ptr()
    memory.renew([weight])
    other = torch.zeros(1, requires_grad=True)
    other.register_post_accumulate_grad_hook(lambda other: memory.renew([weight]))
    other.sum().backward()
    assert weight.grad.data_ptr() == place
    assert torch.equal(weight.grad, torch.full_like(weight, 2.0))


@pytest.mark.filterwarnings("ignore:grad and param do not obey")
def test_strides_stay(small: None) -> None:
    memory = GradientMemory()
    weight = torch.nn.Parameter(torch.zeros(300, 200).t())
    backward(memory, weight, 1.0)
    backward(memory, weight, 2.0)
    place = weight.grad.data_ptr()
    backward(memory, weight, 3.0)
    assert (weight.grad.data_ptr(), weight.grad.stride()) == (place, (1, 200))
    with_gaps = torch.empty_strided((200, 300), (2, 400)).zero_()
    weight.grad = with_gaps
    strides = with_gaps.stride()
    del with_gaps
    handle = weight.register_post_accumulate_grad_hook(lambda weight: memory.renew([weight]))
    (weight * 4.0).sum().backward()
    handle.remove()
    assert weight.grad.stride() == strides
    assert torch.equal(weight.grad, torch.full_like(weight, 4.0))


@pytest.mark.parametrize(("rows", "replaced"), [(1023, False), (1024, True)])
def test_gradients_below_4_mib_are_left_alone(rows: int, replaced: bool) -> None:
    memory = GradientMemory()
    weight = torch.nn.Parameter(torch.zeros(rows, 1024))
    backward(memory, weight, 1.0)
    weight.grad = None
    fresh = []

    def renew(weight: Any) -> None:
        fresh.append(weight.grad.data_ptr())
        memory.renew([weight])

    weight.register_post_accumulate_grad_hook(renew)
    (weight * 2.0).sum().backward()
    assert (weight.grad.data_ptr() != fresh[0]) == replaced
