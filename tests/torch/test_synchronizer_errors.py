"""What GradientSynchronizer refuses, and how it tells ranks that differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from rank_threads import run_threads, thread_outcomes  # noqa: E402
from synchronizer_cases import SMALL, Branches, loss_of, seeded  # noqa: E402
from torch import nn  # noqa: E402

import dcomm  # noqa: E402
from dcomm.torch import GradientSynchronizer  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def test_sparse_gradients() -> None:
    model = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Linear(3, 1))
    with dcomm.init_threads(1)[0] as comm:
        sync = GradientSynchronizer(model, comm)
        with pytest.raises(TypeError, match=r"parameter '0.weight' has a torch.sparse_coo gradient.*sparse=False"):
            model(torch.tensor([1, 2])).sum().backward()
        sync.close()


def test_bad_arguments() -> None:
    model = nn.Linear(3, 2)
    with dcomm.init_threads(1)[0] as comm:
        cases: list[tuple[type[Exception], str, Callable[[], Any]]] = [
            (TypeError, r"model is a list: expected a torch.nn.Module", lambda: GradientSynchronizer([], comm)),
            (TypeError, r"comm is a NoneType: expected a dcomm.Comm", lambda: GradientSynchronizer(model, None)),
            *[
                (error, text, lambda options=options: GradientSynchronizer(model, comm, **options))
                for error, text, options in [
                    (ValueError, "bucket_bytes=0: expected a positive", {"bucket_bytes": 0}),
                    (ValueError, "bucket_bytes='big': expected a positive", {"bucket_bytes": "big"}),
                    (ValueError, "bucket_bytes=True: expected a positive", {"bucket_bytes": True}),
                    (ValueError, "wire_dtype='int8': expected", {"wire_dtype": "int8"}),
                    (ValueError, "wire_dtype='float64': expected", {"wire_dtype": "float64"}),
                    (ValueError, "average='mean': expected", {"average": "mean"}),
                    (ValueError, "'microbatches' needs deterministic", {"average": "microbatches"}),
                    (TypeError, "deterministic=1: expected True or False", {"deterministic": 1}),
                    (ValueError, "leave one of them out", {"deterministic": True, "wire_dtype": "fp16"}),
                ]
            ],
            (
                ValueError,
                "'weight' is on the meta device.*to_empty",
                lambda: GradientSynchronizer(nn.Linear(3, 2, device="meta"), comm),
            ),
            (
                ValueError,
                "'weight' is a lazy parameter.*run one forward",
                lambda: GradientSynchronizer(nn.LazyLinear(2), comm),
            ),
            (
                ValueError,
                "no parameter that requires a gradient",
                lambda: GradientSynchronizer(nn.Linear(3, 2).requires_grad_(False), comm),
            ),
            (
                TypeError,
                "parameter 'weight' is float8_e5m2: expected one of float32",
                lambda: GradientSynchronizer(nn.Linear(3, 2).to(torch.float8_e5m2), comm),
            ),
        ]
        for error, text, call in cases:
            with pytest.raises(error, match=text):
                call()
        sync = GradientSynchronizer(model, comm)
        for call in (sync.timeline, lambda: sync.mark("forward")):
            with pytest.raises(RuntimeError, match="record_events=True"):
                call()
        sync.close()


@pytest.mark.parametrize(
    ("device", "dtype", "text"),
    [
        ("cuda", torch.float64, "'weight' is torch.float64 on cuda:0: on a GPU gradients of float32"),
        ("xpu", torch.float32, "'weight' is on xpu:0: expected the cpu or a GPU"),
    ],
)
def test_what_cannot_be_summed_on_a_device_is_refused(device: str, dtype: torch.dtype, text: str) -> None:
    class Elsewhere(nn.Module):
        def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
            class Fake:
                shape = (2,)
                requires_grad = True
                layout = torch.strided
                is_cuda = device == "cuda"

                def is_contiguous(self) -> bool:
                    return True

            fake: Any = Fake()
            fake.device, fake.dtype = torch.device(device, 0), dtype
            return iter([("weight", fake)])

    with dcomm.init_threads(1)[0] as comm, pytest.raises(TypeError, match=text):
        GradientSynchronizer(Elsewhere(), comm)


MODELS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], str]] = {
    "shape": (lambda: nn.Linear(4, 2), {}, r"'weight' \(2, 3\) float32 on cpu; rank 2 has parameter 'weight' \(2, 4\)"),
    "dtype": (lambda: nn.Linear(3, 2).double(), {}, r"float32 on cpu; rank 2 has parameter 'weight' \(2, 3\) float64"),
    "count": (lambda: nn.Linear(3, 2, bias=False), {}, r"'bias' \(2,\) float32 on cpu; rank 2 has nothing more"),
    "frozen": (lambda: nn.Linear(3, 2).requires_grad_(False), {}, r"rank 2 has parameter 'weight' \(2, 3\) .* frozen"),
    "settings": (lambda: nn.Linear(3, 2), {"average": False}, r"average=True, .*; rank 2 has .*average=False"),
    "device": (lambda: nn.Linear(3, 2, device="meta"), {}, r"on cpu; rank 2 has parameter 'weight' \(2, 3\) .* meta"),
}


@pytest.mark.parametrize("name", MODELS)
def test_ranks_that_differ_are_told_so_and_the_communicator_lives(name: str) -> None:
    make, options, text = MODELS[name]

    def body(comm: dcomm.Communicator) -> float:
        last = comm.rank == 2
        with pytest.raises(dcomm.MismatchError, match=f"rank 0 has .*{text}"):
            GradientSynchronizer(make() if last else nn.Linear(3, 2), comm, **(options if last else {}))
        return float(comm.all_reduce(np.ones(1, np.float32))[0])

    assert run_threads(3, body) == [3.0] * 3


def test_parameters_and_buffers_come_from_rank_0() -> None:
    class Buffered(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((3, 2), value).t())
            self.register_buffer("mean", torch.full((4,), value))
            self.register_buffer("count", torch.tensor(int(value)))
            self.register_buffer("flags", torch.tensor([value > 0]))
            self.register_buffer("small", torch.full((3,), int(value), dtype=torch.int16))
            self.register_buffer("none", torch.zeros(0))

    def body(comm: dcomm.Communicator) -> list[list[float]]:
        found = []
        for broadcast in (True, False):
            model = Buffered(float(comm.rank))
            GradientSynchronizer(model, comm, broadcast=broadcast).close()
            found.append([float(t.flatten()[-1]) for t in model.state_dict().values() if t.numel()])
        return found

    for rank, found in enumerate(run_threads(3, body)):
        assert found == [[0.0] * 5, [float(rank)] * 3 + [float(rank > 0)] + [float(rank)]]


def test_a_failed_collective_raises_its_own_error() -> None:
    def body(comm: dcomm.Communicator, overlap: bool, where: str) -> Any:
        model = seeded(Branches)
        sync = GradientSynchronizer(model, comm, overlap=overlap, **SMALL)
        loss_of(model, 0, comm.rank).backward()
        sync.finish()
        model.zero_grad()
        if comm.rank == 1:
            comm.close()
            return None
        with pytest.raises(dcomm.PeerLostError, match="rank 1"):
            if where == "finish":
                with sync.no_sync():
                    loss_of(model, 1, comm.rank).backward()
                sync.finish()
            else:
                loss_of(model, 1, comm.rank).backward()
        with pytest.raises(dcomm.PeerLostError):
            sync.finish()
        sync.close()
        return "raised"

    for overlap, where in ((True, "backward"), (True, "finish"), (False, "finish")):
        outcomes = thread_outcomes(2, lambda comm, overlap=overlap, where=where: body(comm, overlap, where))
        assert outcomes == ["raised", None]
