"""GradientSynchronizer where a rank cannot make memory that all reach: all take the next best way, and say so once."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from emulated_gpu import EmulatedGpu  # noqa: E402
from emulated_gradients import gradients_on  # noqa: E402
from rank_processes import run_processes  # noqa: E402
from rank_threads import outcomes, values  # noqa: E402
from synchronizer_cases import (  # noqa: E402
    SMALL,
    Branches,
    assert_close,
    expected,
    gradients,
    loss_of,
    same_bits,
    seeded,
)

import dcomm  # noqa: E402
from dcomm.torch import GradientSynchronizer, agreement, buckets  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

SCRIPT = Path(__file__).with_name("synchronizer_memory_ranks.py")
SETTINGS = {"DCOMM_CUDA_CHANNELS": "2", "DCOMM_CUDA_SLOT_BYTES": "4096"}
NOTICE = "dcomm: GradientSynchronizer: gradients "
IN_SLOTS = NOTICE + "are in ordinary memory and are copied through slots: "
BY_HOST = NOTICE + "on GPUs go through the host after backward: "


def notices(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith(NOTICE)]


def fail_at(gpu: EmulatedGpu, call: int) -> None:
    """This call of the driver from here on fails; the windows of ranks that are threads take one and more each."""
    gpu.library.emulated_process(3, -1, call)


# ---- Between processes: one rank fails ----


@pytest.mark.parametrize("broken_rank", [0, 1])
@pytest.mark.parametrize(
    ("how", "notice", "reason"),
    [
        ("window", IN_SLOTS, "the fake refuses"),
        ("no way", BY_HOST, "the ranks have no way in common to map each other's GPU memory"),
    ],
)
def test_processes_agree(emulated_gpu: EmulatedGpu, how: str, notice: str, reason: str, broken_rank: int) -> None:
    args = {"library": str(emulated_gpu.path), "how": how, "broken_rank": broken_rank, "options": {}}
    results = run_processes(2, SCRIPT, "on_gpu", args, env=SETTINGS, timeout=110)
    in_slots = notice == IN_SLOTS
    for result in results:
        assert result.returncode == 0, result
        assert result.value["same"], result
        assert not result.value["kept_plan"], result  # laid out anew in the order in which gradients came
        assert not result.value["shared"], result
        assert result.value["launched"] == in_slots, result
        assert result.value["overlaps"] == in_slots, result
    assert [result.err.count(NOTICE) for result in results] == [1, 0], results
    assert results[0].err.count(notice) == 1, results[0]
    assert reason in results[0].err, results[0]


@pytest.mark.parametrize("how", ["window", "no way"])
@pytest.mark.parametrize(
    "options", [{"wire_dtype": "bfloat16", "error_feedback": True}, {"deterministic": True}], ids=["feedback", "bits"]
)
def test_other_modes_keep_their_bits(emulated_gpu: EmulatedGpu, how: str, options: dict[str, Any]) -> None:
    args = {"library": str(emulated_gpu.path), "how": how, "broken_rank": 1, "options": options}
    for result in run_processes(2, SCRIPT, "on_gpu", args, env=SETTINGS, timeout=110):
        assert result.returncode == 0, result
        assert result.value["same"], result
        assert not result.value["shared"], result


def test_processes_keep_their_first_order(emulated_gpu: EmulatedGpu) -> None:
    """Memory for a second layout, after the first step, is not there: no reason to leave the memory that is."""
    args = {"library": str(emulated_gpu.path), "how": "relaid", "broken_rank": 1, "options": {}}
    for result in run_processes(2, SCRIPT, "on_gpu", args, env=SETTINGS, timeout=110):
        assert result.returncode == 0, result
        assert result.value["same"], result
        assert result.value["shared"], result
        assert result.value["kept_plan"], result
        assert result.err.count(NOTICE) == 0, result


def test_on_the_cpu() -> None:
    results = run_processes(2, SCRIPT, "on_cpu", {"broken_rank": 1}, timeout=110)
    for result in results:
        assert result.returncode == 0, result
        assert result.value == {"same": True, "shared": False}, result
    assert [result.err.count(IN_SLOTS) for result in results] == [1, 0], results


# ---- Ranks that are threads ----


def train(comms: list[Any], **options: Any) -> tuple[list[list[Any]], list[Any]]:
    """Gradients of some steps, all backward passes in one thread, as torch runs those of one GPU."""
    models = [seeded(Branches) for _ in comms]
    syncs = values(comms, lambda comm: GradientSynchronizer(models[comm.rank], comm, **SMALL, **options))
    found: list[list[Any]] = [[] for _ in comms]
    for step in range(4):
        torch.autograd.backward([loss_of(model, step, rank) for rank, model in enumerate(models)])
        values(comms, lambda comm: syncs[comm.rank].finish())
        for rank, model in enumerate(models):
            found[rank] += gradients(model)
            assert_close(gradients(model), expected(models[0], len(comms), step))
            model.zero_grad()
    for sync in syncs:
        sync.close()
    return found, syncs


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_threads_on_a_gpu(emulated_gpu: EmulatedGpu, caplog: pytest.LogCaptureFixture, world_size: int) -> None:
    comms = dcomm.init_threads(world_size, device=0)
    with gradients_on(emulated_gpu), caplog.at_level(logging.WARNING, "dcomm"):
        fail_at(emulated_gpu, 0)
        found, syncs = train(comms)
        fail_at(emulated_gpu, -1)
        right, others = train(comms)
    assert not any(sync.gradients_are_shared for sync in syncs)
    assert all(sync.gradients_are_shared for sync in others)
    assert all(sync._launcher.started and not sync._launcher.ran for sync in syncs)
    for mine, theirs in zip(found, right, strict=True):
        assert same_bits([mine, theirs])
    assert len(notices(caplog)) == 1
    assert notices(caplog)[0].startswith(IN_SLOTS)
    for comm in comms:
        comm.close()


def test_threads_that_the_gpu_cannot_hold(
    emulated_gpu: EmulatedGpu, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More blocks than are resident at once: through the host, in finish(), whatever overlap says."""
    monkeypatch.setenv("DCOMM_CUDA_CHANNELS", "33")
    comms, before = dcomm.init_threads(2), emulated_gpu.num_launched
    with gradients_on(emulated_gpu), caplog.at_level(logging.WARNING, "dcomm"):
        found, syncs = train(comms, overlap=True)
    assert emulated_gpu.num_launched == before
    assert not any(sync._overlap for sync in syncs)
    assert not any(sync.gradients_are_shared for sync in syncs)
    assert same_bits(found)
    assert len(notices(caplog)) == 1
    assert notices(caplog)[0].startswith(BY_HOST)
    assert "thread blocks at once" in notices(caplog)[0]
    for comm in comms:
        comm.close()


@pytest.mark.parametrize("on_gpu", [True, False])
def test_no_memory_at_all(emulated_gpu: EmulatedGpu, on_gpu: bool) -> None:
    """Of one rank only: all raise the same, and the communicator is still of use."""
    comms = dcomm.init_threads(2, device=0 if on_gpu else None)

    def allocate(comm: Any, nbytes: int, device: Any, is_shared: bool) -> Any:
        if is_shared:
            raise dcomm.CudaError("none") if on_gpu else dcomm.SharedMemoryError("none")
        return make(comm, nbytes, device, is_shared)

    def ordinary(nbytes: int, device: Any) -> Any:
        calls.append(nbytes)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.zeros(nbytes, dtype=torch.uint8)

    make, calls = buckets._allocate, list[int]()
    with ExitStack() as stack:
        if on_gpu:
            stack.enter_context(gradients_on(emulated_gpu))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(buckets, "_allocate", allocate)
        patch.setattr(buckets, "_ordinary", ordinary)
        found = outcomes(comms, lambda comm: GradientSynchronizer(seeded(Branches), comm, **SMALL))
    for error in found:
        assert type(error) is (dcomm.CudaError if on_gpu else dcomm.SharedMemoryError), error
        assert "out of memory" in str(error)
        assert str(error) == str(found[0])
    values(comms, lambda comm: comm.barrier())
    for comm in comms:
        comm.close()


def test_a_model_on_another_gpu(emulated_gpu: EmulatedGpu) -> None:
    """No reason to go another way: all ranks raise, also those whose model is where it should be."""
    comms = dcomm.init_threads(2, device=0)
    with gradients_on(emulated_gpu), pytest.MonkeyPatch.context() as patch:
        places = iter(["cuda:0", "cuda:1"])
        patch.setattr(agreement, "find_device", lambda model: torch.device(next(places)))
        for error in outcomes(comms, lambda comm: GradientSynchronizer(seeded(Branches), comm)):
            assert isinstance(error, ValueError), error
            assert "the model is on cuda:1, but comm is bound to cuda:0" in str(error)
    for comm in comms:
        comm.close()
