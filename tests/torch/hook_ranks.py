"""Rank processes of test_hooks.py: DDP over gloo, with and without dcomm's hooks."""

# No `from __future__ import annotations`: DDP compares the annotations of hooks with the classes themselves.
import contextlib
import copy
import os
import pickle
import signal
import statistics
import time
from typing import Any

import torch
import torch.distributed as dist
from rank_main import mark
from torch.nn.parallel import DistributedDataParallel

import dcomm
import dcomm.bootstrap
import dcomm.torch
from dcomm.torch.completer import Completer

HOOKS = {
    "all_reduce": dcomm.torch.all_reduce_hook,
    "fp16": dcomm.torch.fp16_hook,
    "bf16": dcomm.torch.bf16_hook,
    "fp8": dcomm.torch.fp8_hook,
}


def start(rank: int, world_size: int, folder: str) -> None:
    torch.manual_seed(5)  # the same weights everywhere
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)


def stop() -> None:
    """Leave together. DDP keeps gloo's threads alive beyond destroy_process_group; a tensor that they release while the
    interpreter exits would abort the process ("terminate called without an active exception", torch 2.13)."""
    dist.barrier()
    time.sleep(0.1)
    dist.destroy_process_group()


class Branches(torch.nn.Module):
    """Three layers, and two branches of which a step uses one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(33, 70)
        self.branches = torch.nn.ModuleList(torch.nn.Linear(70, 41) for _ in range(2))
        self.last = torch.nn.Linear(41, 7)

    def forward(self, x: torch.Tensor, branch: int | None) -> torch.Tensor:
        h = torch.relu(self.first(x))
        used = self.branches if branch is None else [self.branches[branch]]
        return self.last(torch.tanh(sum(layer(h) for layer in used)))


def local_mean_abs(model: torch.nn.Module, x: torch.Tensor, branch: int | None) -> list[torch.Tensor]:
    """Mean over ranks of |gradient|, element by element."""
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(model(x, branch).pow(2).sum(), parameters, allow_unused=True)
    result = []
    for parameter, gradient in zip(parameters, gradients, strict=True):
        mean = torch.zeros_like(parameter) if gradient is None else gradient.abs()
        dist.all_reduce(mean)
        result.append(mean / dist.get_world_size())
    return result


def compare_one(rank: int, mode: dict[str, Any]) -> dict[str, Any]:
    """Trains one model with DDP alone and a copy with the hook; how far their gradients are from each other."""
    options = dict(mode.get("ddp", {}))
    dtype = getattr(torch, mode.get("dtype", "float32"))
    plain = Branches().to(dtype)
    models = {"ddp": plain, "dcomm": copy.deepcopy(plain)}
    ddps = {name: DistributedDataParallel(model, **options) for name, model in models.items()}
    state = dcomm.torch.HookState(wire_dtype=mode.get("wire_dtype"))
    ddps["dcomm"].register_comm_hook(state, HOOKS[mode.get("hook", "all_reduce")])
    optimizers = {name: torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9) for name, model in models.items()}
    generator = torch.Generator().manual_seed(1000 + rank)
    worst, bitwise = 0.0, True
    for step in range(mode.get("steps", 4)):
        micro_steps = 2 if mode.get("accumulate") else 1
        inputs = [torch.randn(16, 33, generator=generator).to(dtype) for _ in range(micro_steps)]
        branch = step % 2 if mode.get("unused") else None
        mean_abs = [sum(parts) for parts in zip(*(local_mean_abs(plain, x, branch) for x in inputs), strict=True)]
        for name, ddp in ddps.items():
            optimizers[name].zero_grad(set_to_none=not mode.get("accumulate"))
            for i, x in enumerate(inputs):
                quiet = ddp.no_sync() if i + 1 < micro_steps else contextlib.nullcontext()
                with quiet:
                    ddp(x, branch).pow(2).sum().backward()
        for ours, theirs, scale in zip(models["dcomm"].parameters(), models["ddp"].parameters(), mean_abs, strict=True):
            if ours.grad is None or theirs.grad is None:
                assert ours.grad is theirs.grad
                continue
            bitwise = bitwise and torch.equal(ours.grad, theirs.grad)
            error = (ours.grad.double() - theirs.grad.double()).abs()
            assert bool((error[scale == 0] == 0).all())
            worst = max(worst, float((error / scale.double().clamp_min(1e-30)).max()))
            if not mode.get("keep_apart"):
                ours.grad.copy_(theirs.grad)  # so that the next step compares gradients at equal weights
        for optimizer in optimizers.values():
            optimizer.step()
    assert state.communicator is not None
    operations = state.communicator.stats()["num_operations"]
    pickled = pickle.loads(pickle.dumps(state))
    assert pickled.communicator is None
    assert pickled.wire_dtype == state.wire_dtype
    state.close()
    assert state.communicator is None
    ddps["dcomm"](inputs[0], branch).pow(2).sum().backward()
    assert state.communicator is not None  # a new one, made at the next bucket
    state.close()
    return {"worst": worst, "bitwise": bitwise, "operations": operations}


def compare(rank: int, world_size: int, folder: str, modes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    start(rank, world_size, folder)
    results = {name: compare_one(rank, mode) for name, mode in modes.items()}
    stop()
    return results


def refuse(*args: Any, **kwargs: Any) -> None:
    raise RuntimeError("torch's all-reduce was called")


def train_without_torchs_all_reduce(rank: int, world_size: int, folder: str, use_hook: bool) -> list[float]:
    start(rank, world_size, folder)
    dist.all_reduce = refuse
    library = torch.library.Library("c10d", "IMPL")  # DDP's reducer is C++ and meets no Python name
    for operator in ("allreduce_", "allreduce_coalesced_"):
        library.impl(operator, refuse, "CPU", allow_override=True)
    ddp = DistributedDataParallel(torch.nn.Linear(20, 3))
    if use_hook:
        ddp.register_comm_hook(dcomm.torch.HookState(), dcomm.torch.all_reduce_hook)
    for step in range(3):
        ddp(torch.full((4, 20), float(rank + step))).sum().backward()
    dist.destroy_process_group()  # gloo's threads do not survive the interpreter
    return [float(value) for value in ddp.module.bias.grad]


class SlowBackward(torch.autograd.Function):
    """Stands for the rest of a backward pass that takes WORK_S, without needing a core."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        time.sleep(0.03)
        return gradient


def overlap(rank: int, world_size: int, folder: str, blocking: bool) -> dict[str, float]:
    """Milliseconds: the hook's return, and a step with and without a delay of 20 ms in the collective."""
    start(rank, world_size, folder)
    ddp = DistributedDataParallel(torch.nn.Linear(100, 100))
    state = dcomm.torch.HookState()
    returns_ms: list[float] = []

    def hook(state: dcomm.torch.HookState, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        begin = time.perf_counter()
        future = dcomm.torch.all_reduce_hook(state, bucket)
        if blocking:
            future.wait()
        returns_ms.append(1e3 * (time.perf_counter() - begin))
        return future

    ddp.register_comm_hook(state, hook)
    x = torch.randn(8, 100, requires_grad=True)

    def step() -> float:
        dist.barrier()
        loss = ddp(SlowBackward.apply(x)).sum()
        begin = time.perf_counter()
        loss.backward()
        return 1e3 * (time.perf_counter() - begin)

    for _ in range(3):
        step()
    returns_ms.clear()
    assert state.communicator is not None
    steps_ms: dict[float, list[float]] = {0.0: [], 0.02: []}
    for _ in range(12):  # interleaved, so that both meet the same noise
        for delay, found in steps_ms.items():
            state.communicator._core._inject_delay(delay)
            found.append(step())
    stop()
    return {
        "returns_ms": statistics.median(returns_ms),
        "plain_ms": statistics.median(steps_ms[0.0]),
        "delayed_ms": statistics.median(steps_ms[0.02]),
    }


def lose_a_peer(rank: int, world_size: int, folder: str, victim: int) -> dict[str, Any]:
    start(rank, world_size, folder)
    ddp = DistributedDataParallel(torch.nn.Sequential(*[torch.nn.Linear(64, 64) for _ in range(4)]), bucket_cap_mb=0.02)
    ddp.register_comm_hook(dcomm.torch.HookState(), dcomm.torch.all_reduce_hook)
    for step in range(6):
        loss = ddp(torch.ones(2, 64)).sum()
        if step == 5:
            if rank == victim:
                mark("dying")
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                begin = time.monotonic()
                loss.backward()
            except RuntimeError as error:
                return {"text": str(error), "seconds": time.monotonic() - begin}
        loss.backward()
    return {"text": "no error"}


def on_several_hosts(rank: int, world_size: int, folder: str) -> dict[str, Any]:
    dcomm.bootstrap.host_identity = lambda: f"host {rank}"
    start(rank, world_size, folder)
    plain = Branches()
    models = [plain, copy.deepcopy(plain)]
    ddps = [DistributedDataParallel(model, bucket_cap_mb=0.01) for model in models]
    state = dcomm.torch.HookState()
    ddps[1].register_comm_hook(state, dcomm.torch.all_reduce_hook)
    same = True
    for step in range(4):
        for ddp in ddps:
            ddp(torch.full((4, 33), float(rank + step)), None).sum().backward()
        same = same and all(
            torch.equal(a.grad, b.grad) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True)
        )
    stop()
    return {"same": same, "communicator": state.communicator is not None}


def chained_collectives(rank: int, world_size: int, folder: str) -> dict[str, float]:
    """Callbacks of futures that block on further collectives, three deep; first bare, then in a DDP hook."""
    start(rank, world_size, folder)
    comm = dcomm.init(rank=rank, world_size=world_size, store=dist.group.WORLD.get_group_store())
    completer = Completer()

    def summed(x: torch.Tensor, depth: int) -> torch.futures.Future[torch.Tensor]:
        future = completer.future_of(comm.all_reduce(x, async_op=True), x)
        if depth == 0:
            return future
        return future.then(lambda done: summed(done.value(), depth - 1).wait())

    x = torch.ones(10)
    for _ in range(20):
        x.fill_(1.0)
        x = summed(x, 3).wait()
    completer.close()
    comm.close()

    state = dcomm.torch.HookState()

    def twice(state: dcomm.torch.HookState, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        def again(done: torch.futures.Future[torch.Tensor]) -> torch.Tensor:
            return dcomm.torch.all_reduce_hook(state, bucket).wait()

        return dcomm.torch.all_reduce_hook(state, bucket).then(again)

    ddp = DistributedDataParallel(torch.nn.Linear(5, 2))
    ddp.register_comm_hook(state, twice)
    for _ in range(5):
        ddp.zero_grad()
        ddp(torch.full((1, 5), float(rank))).sum().backward()
    stop()
    return {"depth": float(x[0]), "gradient": float(ddp.module.weight.grad[0, 0])}


def leave_without_destroy(rank: int, world_size: int, folder: str, how: str) -> None:
    start(rank, world_size, folder)
    ddp = DistributedDataParallel(Branches(), bucket_cap_mb=0.01)
    state = dcomm.torch.HookState()
    ddp.register_comm_hook(state, dcomm.torch.all_reduce_hook)
    for _ in range(3):
        ddp(torch.ones(4, 33), None).sum().backward()
    globals()["kept"] = (ddp, state)
    if how == "pending":  # operations that nobody will ever answer
        assert state.communicator is not None
        assert state._completer is not None
        x = torch.ones(1000)
        if rank == 0:
            globals()["future"] = state._completer.future_of(state.communicator.all_reduce(x, async_op=True), x)
    elif how == "exception":
        raise KeyError("on purpose")
