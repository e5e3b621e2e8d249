"""dcomm.torch.functional: values, gradients, torch.compile, order, errors, on rank processes."""

from __future__ import annotations

import functools
import gc
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from rank_processes import process_values  # noqa: E402
from rank_threads import run_threads  # noqa: E402

import dcomm  # noqa: E402

pytestmark = pytest.mark.timeout(175)  # seconds on a quiet machine; compilers are slow on a busy one

SCRIPT = Path(__file__).with_name("operator_ranks.py")
PARTS = re.findall(r'"(operator_\w+)"', re.search(r"^PARTS = (.*)$", SCRIPT.read_text(), re.MULTILINE)[1])
ALL_CHECKS = [
    name
    for part in PARTS
    for name in re.findall(r"^@check\ndef (\w+)", SCRIPT.with_name(f"{part}.py").read_text(), re.MULTILINE)
]
INDUCTOR = [name for name in ALL_CHECKS if name.endswith("_inductor")]
AOT = [name for name in ALL_CHECKS if name not in INDUCTOR]
CHECKS_PER_LAUNCH = 7


def outcomes(world_size: int, names: list[str], folder: Path) -> list[Any]:
    # A cache of this run alone: what an earlier state of the code compiled must not be found in it.
    env = {
        "TORCHINDUCTOR_CACHE_DIR": str(folder),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "DCOMM_TIMEOUT_S": "100",  # one rank compiles while another waits
    }
    return process_values(world_size, SCRIPT, "run", {"names": names}, env=env, timeout=165)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Any]]:
    """Outcomes of a check. A launch runs several: importing torch twice takes longer than most of them."""
    launches = [AOT[start : start + CHECKS_PER_LAUNCH] for start in range(0, len(AOT), CHECKS_PER_LAUNCH)] + [INDUCTOR]

    @functools.cache
    def launch(index: int) -> list[Any]:
        return outcomes(2, launches[index], tmp_path_factory.mktemp("two"))

    return lambda name: launch(next(index for index, names in enumerate(launches) if name in names))


@pytest.mark.parametrize(
    "name",
    [name if name in AOT[:CHECKS_PER_LAUNCH] else pytest.param(name, marks=pytest.mark.long) for name in ALL_CHECKS],
)
def test_two_ranks(two_ranks: Callable[[str], list[Any]], name: str) -> None:
    for rank, result in enumerate(two_ranks(name)):
        assert not result[name], f"rank {rank}:\n{result[name]}"


@pytest.mark.long
def test_four_ranks(tmp_path: Path) -> None:
    names = ["values_and_gradients", "order", "tensor_parallel"]
    for rank, result in enumerate(outcomes(4, names, tmp_path)):
        for name in names:
            assert not result[name], f"rank {rank}, {name}:\n{result[name]}"


def test_ranks_that_are_threads() -> None:
    from dcomm.torch import functional

    def body(comm: dcomm.Communicator) -> list[float]:
        x = torch.full((3,), comm.rank + 1.0, requires_grad=True)
        y = functional.all_reduce(x, comm) * functional.sum_over_ranks(functional.sum_gradients(x, comm), comm)
        y.sum().backward()
        return [y[0].item(), x.grad[0].item()]

    # s * s with s = 6; one factor sums over the ranks what each computes, of the other each holds the whole: 18 + 18.
    assert run_threads(3, body) == [[36.0, 36.0]] * 3


def test_handles_differ_and_do_not_keep_communicators() -> None:
    first, second = dcomm.init(rank=0, world_size=1), dcomm.init(rank=0, world_size=1)
    assert first._handle != second._handle
    alive = weakref.ref(first)
    first.close()
    del first
    gc.collect()
    assert alive() is None
    second.close()
