"""deterministic=True: one global batch gives the same bits on any number of ranks; and ranks that are processes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import importlib.util  # noqa: E402
import signal  # noqa: E402

from rank_processes import process_values, run_processes  # noqa: E402
from rank_threads import run_threads  # noqa: E402
from torch import nn  # noqa: E402

import dcomm  # noqa: E402
from dcomm.torch import GradientSynchronizer  # noqa: E402
from dcomm.torch.accumulation import BinaryCounter  # noqa: E402

SCRIPT = Path(__file__).with_name("synchronizer_ranks.py")
_spec = importlib.util.spec_from_file_location("synchronizer_ranks", SCRIPT)
assert _spec is not None
assert _spec.loader is not None
synchronizer_ranks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(synchronizer_ranks)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---- The promise -------------------------------------------------------------------------------------------


def test_one_sha256_of_the_weights_on_1_2_4_and_8_ranks() -> None:
    def shas(world_size: int, **settings: Any) -> set[str]:
        return set(run_threads(world_size, lambda comm: synchronizer_ranks.train_gpt(comm, **settings), timeout=100))

    found = shas(1, deterministic=True)
    for world_size, bucket_bytes in [(2, "auto"), (4, 700), (8, 5000)]:
        found |= shas(world_size, deterministic=True, bucket_bytes=bucket_bytes)
    found |= set(process_values(2, SCRIPT, "train_in_processes", timeout=100))
    print(found)
    assert len(found) == 1

    # What the default mode gives: right, but of other bits for every number of ranks with sums of its own.
    assert len(shas(1, steps=10) | shas(2, steps=10) | shas(4, steps=10)) == 3


# ---- The tree ----------------------------------------------------------------------------------------------


def tree_sum(terms: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    """The canonical order as DECISIONS and csrc/schedule/canonical.h have it, written down independently."""
    if len(terms) == 1:
        return terms[0]
    half = 1 << (len(terms) - 1).bit_length() - 1
    left, right = tree_sum(terms[:half]), tree_sum(terms[half:])
    if left is None or right is None:
        return left if right is None else right
    return left + right


def terms_of(count: int, seed: int, absent: float = 0.3, shape: tuple[int, ...] = (50,)) -> list[torch.Tensor | None]:
    generator = torch.Generator().manual_seed(seed)
    terms: list[torch.Tensor | None] = []
    for _ in range(count):
        term = torch.randn(shape, generator=generator) * 10 ** torch.randint(-4, 4, shape, generator=generator)
        term.view(-1)[::7] = -0.0
        terms.append(None if float(torch.rand(1, generator=generator)) < absent else term)
    return terms


def bits(tensor: torch.Tensor) -> list[int]:
    return tensor.contiguous().view(torch.int32).flatten().tolist()


@pytest.mark.parametrize("absent", [0.0, 0.3, 0.9])
def test_binary_counter_is_the_canonical_tree(absent: float) -> None:
    home = torch.full((50,), float("nan"))
    counter = BinaryCounter(home)
    differs = False
    for count in range(1, 40):
        terms = terms_of(count, count, absent)
        given = [None if term is None else term.clone() for term in terms]
        most = 0
        for number, term in enumerate(given):
            most = max(most, counter.num_held + 1)
            counter.add(term)
            assert counter.num_held <= (number + 1).bit_count()
        if count.bit_count() == 1 and terms[0] is not None:
            assert counter._levels[-1][0] is home  # the oldest sum lies where the result will
        assert most <= math.ceil(math.log2(count)) + 1
        wanted = tree_sum(terms)
        assert counter.result() is (wanted is not None)
        assert counter.num_held == counter.num_terms == 0
        assert bits(home) == bits(torch.full((50,), -0.0) if wanted is None else wanted)
        for term, kept in zip(terms, given, strict=True):
            assert term is None or bits(term) == bits(kept)  # gradients may share memory: none is written
        present = [term for term in terms if term is not None]
        differs = differs or (len(present) > 3 and bits(sum(present[1:], present[0])) != bits(home))
    assert differs or absent == 0.9  # from a sum in sequence


def reduced(
    world_size: int, terms: Sequence[torch.Tensor | None], loss_factor: float = 1.0, **settings: Any
) -> list[int]:
    """The gradient's bits for these microbatches on so many ranks; the same on all of them."""
    shape = next(term.shape for term in terms if term is not None)
    mine = len(terms) // world_size

    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(shape))
            self.other = nn.Parameter(torch.zeros(3))

        def forward(self, term: torch.Tensor | None) -> torch.Tensor:
            total = self.other.sum()
            return total if term is None else total + (self.weight * term).sum()

    def body(comm: dcomm.Communicator) -> list[int]:
        model = Given()
        with GradientSynchronizer(model, comm, deterministic=True, **settings) as sync:
            for _ in range(2):
                for term in terms[comm.rank * mine : (comm.rank + 1) * mine]:
                    (model(term) * loss_factor).backward()
                sync.finish()
                found = bits(model.weight.grad)
                assert sync.accumulation_bytes <= (math.ceil(math.log2(mine)) + 1) * sync.gradient_bytes
                model.zero_grad()
        return found

    results = run_threads(world_size, body)
    assert all(result == results[0] for result in results)
    return results[0]


@pytest.mark.parametrize("absent", [0.0, 0.4])
def test_which_numbers_of_ranks_and_microbatches_agree(absent: float) -> None:
    """n ranks with k microbatches each, n * k = 12: equal where k is a power of two or n is 1, and only there."""
    terms = terms_of(12, 5, absent)
    total = tree_sum(terms)
    assert total is not None
    mean = bits(total / 12)
    for world_size in (1, 3, 6, 12):
        assert reduced(world_size, terms, average="microbatches") == mean, world_size
        assert reduced(world_size, terms, average=False) == bits(total), world_size
    for world_size in (3, 6, 12):  # k is a power of two: dividing the losses by it is exact
        assert reduced(world_size, terms, world_size / 12) == mean, world_size
    if absent == 0.0:
        for world_size in (2, 4):
            assert reduced(world_size, terms, average="microbatches") != mean


def test_any_number_of_ranks_agrees_on_a_power_of_two_of_microbatches() -> None:
    for world_size in (3, 5, 7):
        terms = terms_of(4 * world_size, world_size)
        total = tree_sum(terms)
        assert total is not None
        for bucket_bytes in ("auto", 64):
            found = reduced(world_size, terms, average="microbatches", bucket_bytes=bucket_bytes)
            assert found == bits(total / len(terms))


def test_large_gradients() -> None:
    terms = terms_of(6, 1, 0.0, (70_001,))
    total = tree_sum(terms)
    assert total is not None
    assert reduced(3, terms, average="microbatches") == bits(total / 6)


# ---- The mode's other promises -----------------------------------------------------------------------------


def test_half_precision_gradients_are_summed_in_float32() -> None:
    def body(comm: dcomm.Communicator) -> tuple[list[float], Any]:
        model = nn.Linear(6, 1, bias=False, dtype=torch.bfloat16)
        with GradientSynchronizer(model, comm, deterministic=True, average=False) as sync:
            mine = 8 // comm.world_size
            for number in range(comm.rank * mine, (comm.rank + 1) * mine):
                # 256 + 1 is 256 in bfloat16: a sum in it would stay there.
                model(torch.full((1, 6), 256.0 if number == 0 else 1.0, dtype=torch.bfloat16)).sum().backward()
            sync.finish()
            return model.weight.grad.flatten().tolist(), model.weight.grad.dtype

    for world_size in (1, 2, 8):
        results = run_threads(world_size, body)
        assert results == [([264.0] * 6, torch.bfloat16)] * world_size


def test_gradients_that_share_memory() -> None:
    """Backward gives both parameters the very same memory here."""

    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.zeros(4, 4))
            self.b = nn.Parameter(torch.zeros(16))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return ((self.a.view(-1) + self.b.view(-1)) * x).sum()

    with dcomm.init_threads(1)[0] as comm:
        model = Twins()
        sync = GradientSynchronizer(model, comm, deterministic=True)
        shared = False
        for number in range(6):
            handle = model.b.register_post_accumulate_grad_hook(lambda p: None)
            model(torch.full((16,), float(number))).backward()
            handle.remove()
        sync.finish()
        plain = Twins()
        plain(torch.ones(16)).backward()
        shared = plain.a.grad.data_ptr() == plain.b.grad.data_ptr()
        assert shared, "torch copies now: this test tests nothing"
        assert model.a.grad.flatten().tolist() == model.b.grad.tolist() == [15.0] * 16
        sync.close()


@pytest.mark.parametrize("set_to_none", [True, False])
def test_unused_parameters_and_no_sync(set_to_none: bool) -> None:
    def body(comm: dcomm.Communicator) -> list[Any]:
        layers = nn.ModuleList(nn.Linear(2, 1, bias=False) for _ in range(3))
        sync = GradientSynchronizer(layers, comm, deterministic=True)
        found = []
        for _ in range(2):
            with sync.no_sync():
                layers[0](torch.ones(1, 2)).sum().backward()
            layers[comm.rank](torch.ones(1, 2)).sum().backward()  # layer 0 or 1; nobody uses layer 2
            sync.finish()
            found.append([None if layer.weight.grad is None else float(layer.weight.grad[0, 0]) for layer in layers])
            layers.zero_grad(set_to_none=set_to_none)
        sync.close()
        return found

    assert run_threads(2, body) == [[[1.5, 0.5, None]] * 2] * 2


def test_ranks_need_not_run_equally_many_microbatches() -> None:
    def body(comm: dcomm.Communicator) -> float:
        model = nn.Linear(1, 1, bias=False)
        sync = GradientSynchronizer(model, comm, deterministic=True, average="microbatches")
        for _ in range(comm.rank):
            model(torch.ones(1, 1)).sum().backward()
        sync.finish()
        return float(model.weight.grad)

    assert run_threads(3, body) == [1.0] * 3


# ---- Ranks that are processes ------------------------------------------------------------------------------


@pytest.mark.long
def test_processes_agree_with_ddp_and_name_a_dead_rank(tmp_path: Path) -> None:
    env = {"GLOO_SOCKET_IFNAME": "lo"}
    results = run_processes(2, SCRIPT, "beside_ddp", {"folder": str(tmp_path)}, env=env, timeout=100)
    assert results[0].returncode == 0, results[0]
    assert results[1].returncode == -signal.SIGKILL, results[1]
    assert results[0].value["equal"]
    assert results[0].value["num_buckets"] > 2
    assert "rank 1" in results[0].value["error"]
    assert "died" in results[0].value["error"]
