"""Models and synchronizers that are copied, saved, closed, dropped and left in the middle of a step."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from rank_threads import run_threads  # noqa: E402
from synchronizer_cases import SMALL, Branches, assert_close, expected, gradients, loss_of, seeded  # noqa: E402
from torch import nn  # noqa: E402

import dcomm  # noqa: E402
from dcomm.torch import GradientSynchronizer  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_model_stays_an_ordinary_model() -> None:
    def body(comm: dcomm.Communicator) -> None:
        model = seeded(Branches)
        names = list(model.state_dict())
        sync = GradientSynchronizer(model, comm)
        loss_of(model, 0, comm.rank).backward()
        sync.finish()
        assert list(model.state_dict()) == names
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
            operations = comm.stats()["num_operations"]
            loss_of(copied, 0, comm.rank).backward()  # a copy has no hooks
            assert comm.stats()["num_operations"] == operations
        for action in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match=r"keep its \.settings and make a new one"):
                action(sync)
        again = GradientSynchronizer(copied, comm, **sync.settings)
        assert again.settings == sync.settings

    run_threads(2, body)


def test_close_and_drop_remove_the_hooks() -> None:
    def body(comm: dcomm.Communicator) -> None:
        model = seeded(Branches)
        for how in ("close", "drop"):
            sync = GradientSynchronizer(model, comm)
            assert all(len(p._post_accumulate_grad_hooks) > 0 for p in model.parameters())
            if how == "close":
                sync.close()
                sync.close()
                with pytest.raises(RuntimeError, match="closed: make a new one"):
                    sync.finish()
            del sync
            assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
            operations = comm.stats()["num_operations"]
            loss_of(model, 0, comm.rank).backward()
            assert comm.stats()["num_operations"] == operations

    run_threads(2, body)


def test_a_forgotten_finish_is_noticed() -> None:
    model = nn.Linear(3, 1)
    with dcomm.init_threads(1)[0] as comm:
        sync = GradientSynchronizer(model, comm)
        for step in range(3):
            if step == 1:
                with pytest.warns(RuntimeWarning, match=r"finish\(\) was not called"):
                    model(torch.ones(1, 3)).sum().backward()
            else:  # it is said once
                model(torch.ones(1, 3)).sum().backward()
            model.zero_grad()
        sync.finish()


def test_a_dropped_step_leaves_no_trace() -> None:
    def body(comm: dcomm.Communicator) -> list[Any]:
        model = seeded(Branches)
        sync = GradientSynchronizer(model, comm, **SMALL)
        loss_of(model, 5, comm.rank).backward()
        sync.finish()
        model.zero_grad()
        loss_of(model, 0, comm.rank).backward()
        sync.finish()
        return gradients(model)

    assert_close(run_threads(2, body)[0], expected(seeded(Branches), 2, 0))
