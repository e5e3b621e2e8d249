"""The hook lets DDP's gradients lie in memory that it reduces into, and nobody can tell but the clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from rank_processes import process_values  # noqa: E402

import dcomm  # noqa: E402
from dcomm.torch import gradient_memory  # noqa: E402
from dcomm.torch.bucket_memory import SETTLED  # noqa: E402
from dcomm.torch.gradient_memory import GradientMemory  # noqa: E402

SCRIPT = Path(__file__).with_name("gradient_memory_ranks.py")
ENV = {"GLOO_SOCKET_IFNAME": "lo"}
CASES: dict[str, dict[str, Any]] = {
    "reuse": {"what": "reuse"},
    "reuse float64": {"what": "reuse", "dtype": "float64"},
    "reuse bfloat16": {"what": "reuse", "dtype": "bfloat16"},
    "reuse without registered buckets": {"what": "reuse", "settings": {"register_buckets": False}},
    "reuse with buckets that moved": {"what": "moved"},
    "reuse with a half-precision wire": {"what": "reuse", "settings": {"wire_dtype": "float16"}},
    "uneven, kept": {"what": "uneven", "args": {"keep": True}},
    "uneven, dropped": {"what": "uneven", "args": {"keep": False}},
    "checkpoints": {"what": "plain_steps", "model": "Checkpointed", "ddp": {"static_graph": True}},
    "off": {"what": "reuse", "settings": {"reuse_gradients": False}},
    "off on rank 1": {"what": "reuse", "rank1": {"reuse_gradients": False}},
    "no overlap on rank 1": {"what": "reuse", "rank1": {"overlap": False}},
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
        if "in_results" in found:
            assert found.pop("in_results") == (3 if name.startswith("reuse") else 0)
            assert found.pop("has_results") == name.startswith("reuse")
        same_places = found.pop("same_places", None)
        if name.startswith("reuse"):
            assert same_places
        assert all(found.values())


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_memory, "_LEAST_BYTES", 64 * 1024)


@pytest.fixture
def make_bucket(request: pytest.FixtureRequest) -> Iterator[Callable[[Any], OneBucket]]:
    buckets = []

    def make(parameter: Any) -> OneBucket:
        buckets.append(OneBucket(parameter))
        return buckets[-1]

    yield make
    for bucket in buckets:
        bucket.memory.close()
        bucket.comm.close()


class OneBucket:
    """What DDP does with one parameter that is a bucket of its own, on one rank."""

    def __init__(self, parameter: Any) -> None:
        (self.comm,) = dcomm.init_threads(1)
        self.memory = GradientMemory(self.comm, True)
        self.parameter = parameter
        self.flat = torch.zeros(parameter.numel(), dtype=parameter.dtype)
        # As DDP's views of a bucket: in the layout of the parameter.
        self.part = self.flat.as_strided(parameter.size(), parameter.stride())
        self.views = [self.part]
        self.engine = torch.autograd.Variable._execution_engine
        while self.calls < SETTLED + 1:  # the first backward pass after that finds a result
            self.backward(0.0)

    @property
    def calls(self) -> int:
        return self.memory._known[0].calls if self.memory._known else 0

    def index(self) -> int:
        return 0

    def parameters(self) -> list[Any]:
        return [self.parameter]

    def gradients(self) -> list[Any]:
        return [self.part]

    def complete(self, parameter: Any) -> None:
        """The hook of a complete bucket, and then what DDP queues."""
        self.part.copy_(parameter.grad)
        result = self.memory.result_of(self, self.flat)
        out = self.flat if result is None else result
        self.comm.all_reduce(self.flat, "avg", out=out)
        self.views = [out.as_strided(self.part.size(), self.part.stride())]
        self.engine.queue_callback(lambda: parameter.grad.copy_(self.views[0]))

    def backward(self, factor: float, *, keep: bool = False) -> None:
        if not keep:
            self.parameter.grad = None
        handle = self.parameter.register_post_accumulate_grad_hook(self.complete)
        (self.parameter * factor).sum().backward()
        handle.remove()

    def check(self, value: float) -> int:
        """Where the gradient is."""
        assert torch.equal(self.parameter.grad, torch.full_like(self.parameter, value))
        return self.parameter.grad.data_ptr()


def test_a_result_is_not_written_to_while_a_gradient_in_it_is_held(small: None, make_bucket: Any) -> None:
    bucket = make_bucket(torch.nn.Parameter(torch.zeros(200, 200)))
    weight = bucket.parameter
    place = bucket.check(0.0)
    bucket.backward(2.0)
    assert bucket.check(2.0) == place
    held = weight.grad
    bucket.backward(4.0)
    assert bucket.check(4.0) != place
    assert torch.equal(held, torch.full_like(weight, 2.0))
    for part in (lambda g: g[7], lambda g: g.detach(), lambda g: g.numpy()[3:]):
        held = part(held)
        bucket.backward(5.0)
        assert bucket.check(5.0) != place
        assert bool((held == 2.0).all())
    del held
    bucket.backward(6.0)
    assert bucket.check(6.0) == place
    bucket.backward(7.0, keep=True)  # accumulated where it is: 13 must not be read while it is written
    assert bucket.check(13.0) == place
    bucket.backward(8.0)
    assert bucket.check(8.0) == place
    bucket.memory.close()
    assert not weight._post_accumulate_grad_hooks
    bucket.backward(9.0)
    bucket.check(9.0)


def test_a_gradient_has_a_storage_of_its_own(small: None, make_bucket: Any) -> None:
    bucket = make_bucket(torch.nn.Parameter(torch.zeros(200, 200)))
    bucket.backward(2.0)
    grad = bucket.parameter.grad
    assert grad.untyped_storage().nbytes() == 200 * 200 * 4
    assert grad._base is None
    assert grad.is_leaf


def test_what_is_taken_during_backward_ends_the_reuse(small: None, make_bucket: Any) -> None:
    bucket = make_bucket(torch.nn.Parameter(torch.zeros(200, 200)))
    place = bucket.check(0.0)
    taken = []
    bucket.parameter.grad = None

    def complete_and_take(parameter: Any) -> None:
        bucket.complete(parameter)
        bucket.engine.queue_callback(lambda: taken.append(parameter.grad.detach()))

    handle = bucket.parameter.register_post_accumulate_grad_hook(complete_and_take)
    (bucket.parameter * 3.0).sum().backward()
    handle.remove()
    assert bucket.check(3.0) == place
    for _ in range(3):
        bucket.backward(4.0)
        assert bucket.check(4.0) != place
        assert torch.equal(taken[0], torch.full_like(taken[0], 3.0))


def test_only_what_this_backward_pass_computed_is_replaced(small: None, make_bucket: Any) -> None:
    bucket = make_bucket(torch.nn.Parameter(torch.zeros(200, 200)))
    weight = bucket.parameter
    weight.grad = None
    (weight * 2.0).sum().backward()
    place = weight.grad.data_ptr()
    other = torch.zeros(1, requires_grad=True)
    other.register_post_accumulate_grad_hook(lambda other: bucket.complete(weight))
    other.sum().backward()
    assert bucket.check(2.0) == place


@pytest.mark.filterwarnings("ignore:grad and param do not obey")
def test_strides_stay(small: None, make_bucket: Any) -> None:
    bucket = make_bucket(torch.nn.Parameter(torch.zeros(300, 200).t()))
    weight = bucket.parameter
    place = bucket.check(0.0)
    bucket.backward(3.0)
    assert bucket.check(3.0) == place
    assert weight.grad.stride() == (1, 200)
    with_gaps = torch.empty_strided((200, 300), (2, 400)).zero_()
    weight.grad = with_gaps
    strides = with_gaps.stride()
    del with_gaps
    bucket.backward(4.0, keep=True)
    assert bucket.check(4.0) != place
    assert weight.grad.stride() == strides


def test_the_fresh_gradient_at_the_end_of_the_heap_is_kept(small: None, make_bucket: Any) -> None:
    """Where glibc gives the heap's end back to the kernel, and with it what is free before it."""
    bucket = make_bucket(torch.nn.Parameter(torch.zeros(200, 200)))
    fresh = []
    handle = bucket.parameter.register_post_accumulate_grad_hook(lambda weight: fresh.append(weight.grad.data_ptr()))
    kept = []
    for _ in range(3):
        before = bucket.memory._last.data_ptr()
        kept.append(torch.empty(200, 200))  # so that gradients come to lie elsewhere
        bucket.backward(1.0)
        assert bucket.memory._last.data_ptr() == max(before, fresh[-1])
    handle.remove()
    last = bucket.memory._last
    bucket.memory._keep_the_last(torch.empty(8 * 1024 * 1024 + 16))  # by itself, and above the heap
    assert bucket.memory._last is last
    bucket.memory.close()
    assert bucket.memory._last is None


@pytest.mark.parametrize("name", ["_storage_Use_Count", "_current_graph_task_id"])
def test_a_torch_that_cannot_tell(name: str, small: None, make_bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch._C, name)
    bucket = make_bucket(torch.nn.Parameter(torch.zeros(200, 200)))
    bucket.backward(2.0)
    bucket.check(2.0)
    assert bucket.memory._known[0].result is None


@pytest.mark.parametrize(("rows", "replaced"), [(1023, False), (1024, True)])
def test_gradients_below_4_mib_are_left_alone(rows: int, replaced: bool, make_bucket: Any) -> None:
    bucket = make_bucket(torch.nn.Parameter(torch.zeros(rows, 1024)))
    assert (bucket.memory._known[0].result is not None) == replaced
    fresh = []
    handle = bucket.parameter.register_post_accumulate_grad_hook(lambda weight: fresh.append(weight.grad.data_ptr()))
    bucket.backward(2.0)
    handle.remove()
    assert (bucket.check(2.0) != fresh[0]) == replaced
