"""Rank processes of test_hooks_cuda.py and tests/gpu/test_hooks_on_gpu.py: DDP whose gradients are on a GPU.

library: that of the emulated GPU; None: the machine's own.
"""

# No `from __future__ import annotations`: DDP compares the annotations of hooks with the classes themselves.
import contextlib
import copy
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

sys.path.append(str(Path(__file__).parent))
from hook_ranks import HOOKS, Branches, start, stop

import dcomm
import dcomm.torch

SMALL_BUCKETS = {"bucket_cap_mb": 0.01}


@contextlib.contextmanager
def gpu(library: str | None, kinds: int = 3, fails_at: int = -1) -> Iterator[Any]:
    """The stand-in's record of streams; None on the machine's own GPU. kinds, fails_at: of the emulated driver."""
    if library is None:
        yield None
        return
    from emulated_gpu import EmulatedGpu
    from emulated_torch import torch_on

    device = EmulatedGpu(Path(library))
    device.library.emulated_process(kinds, -1, fails_at)
    with device.in_use(), torch_on(device) as streams:
        yield streams


def place(model: torch.nn.Module, library: str | None) -> torch.nn.Module:
    return model if library is not None else model.cuda()


def device_of(library: str | None) -> str:
    return "cpu" if library is not None else "cuda"


def refuse(*args: Any, **kwargs: Any) -> None:
    raise RuntimeError("torch's all-reduce was called")


def train(rank: int, world_size: int, folder: str, library: str | None, mode: dict[str, Any]) -> dict[str, Any]:
    """Trains one model with DDP alone and a copy with the hook; how far their gradients are from each other."""
    start(rank, world_size, folder)
    with gpu(library) as streams:
        plain = place(Branches(), library)
        models = {"ddp": plain, "dcomm": copy.deepcopy(plain)}
        ddps = {name: DistributedDataParallel(model, **mode.get("ddp", {})) for name, model in models.items()}
        state = dcomm.torch.HookState(wire_dtype=mode.get("wire_dtype"), overlap=mode.get("overlap", True))
        ddps["dcomm"].register_comm_hook(state, HOOKS[mode.get("hook", "all_reduce")])
        optimizers = {name: torch.optim.SGD(model.parameters(), lr=0.01) for name, model in models.items()}
        generator = torch.Generator().manual_seed(1000 + rank)
        worst, bitwise = 0.0, True
        for _ in range(mode.get("steps", 4)):
            x = torch.randn(16, 33, generator=generator).to(device_of(library))
            for name, ddp in ddps.items():
                optimizers[name].zero_grad()
                ddp(x, None).pow(2).sum().backward()
            for ours, theirs in zip(models["dcomm"].parameters(), models["ddp"].parameters(), strict=True):
                assert ours.grad is not None
                assert theirs.grad is not None
                bitwise = bitwise and torch.equal(ours.grad, theirs.grad)
                scale = float(theirs.grad.abs().max())
                worst = max(worst, float((ours.grad - theirs.grad).abs().max()) / scale)
                ours.grad.copy_(theirs.grad)
            for optimizer in optimizers.values():
                optimizer.step()
        found = {"worst": worst, "bitwise": bitwise, "communicator": state.communicator is not None}
        if streams is not None:
            found["num_launched"] = streams.gpu.num_launched
            found["num_futures"] = len(streams.completed)
            found["num_on_side_stream"] = sum(stream is not None for stream in streams.completed)
        state.close()
        ddps["dcomm"](x, None).pow(2).sum().backward()  # makes a new communicator
        assert (state.communicator is not None) == found["communicator"]
        state.close()
    stop()
    return found


def without_torchs_all_reduce(rank: int, world_size: int, folder: str, library: str | None) -> list[float]:
    start(rank, world_size, folder)
    dist.all_reduce = refuse
    torch_library = torch.library.Library("c10d", "IMPL")
    for operator in ("allreduce_", "allreduce_coalesced_"):
        torch_library.impl(operator, refuse, device_of(library).upper(), allow_override=True)
    with gpu(library):
        ddp = DistributedDataParallel(place(torch.nn.Linear(20, 3), library))
        state = dcomm.torch.HookState()
        ddp.register_comm_hook(state, dcomm.torch.all_reduce_hook)
        for step in range(3):
            ddp(torch.full((4, 20), float(rank + step), device=device_of(library))).sum().backward()
        result = [float(value) for value in ddp.module.bias.grad]
        state.close()
    dist.destroy_process_group()  # gloo's threads do not survive the interpreter
    return result


def delegated(
    rank: int, world_size: int, folder: str, library: str | None, how: str, broken_rank: int
) -> dict[str, Any]:
    """On one rank dcomm cannot use the GPU, or at one of the driver's calls: all leave it to the process group."""
    start(rank, world_size, folder)
    mine = rank == broken_rank
    if how == "setting" and mine:
        os.environ["DCOMM_CUDA_CHANNELS"] = "many"
    kinds = 1 + broken_rank if how == "windows" and mine else 3
    if how == "windows" and not mine:
        kinds = 2 - broken_rank
    with gpu(library, kinds, 7 if how == "driver" and mine else -1) as streams:
        no_cuda_part = how == "no CUDA part" and mine
        if no_cuda_part:
            dcomm._core._use_cuda_library("")  # the build's own: none
        dtype = torch.float64 if how == "float64" else torch.float32
        plain = Branches().to(dtype)
        models = [plain, copy.deepcopy(plain)]
        ddps = [DistributedDataParallel(model, **SMALL_BUCKETS) for model in models]
        state = dcomm.torch.HookState()
        ddps[1].register_comm_hook(state, dcomm.torch.fp16_hook)
        same = True
        for step in range(3):
            for ddp in ddps:
                ddp(torch.full((4, 33), float(rank + step), dtype=dtype), None).sum().backward()
            pairs = zip(models[0].parameters(), models[1].parameters(), strict=True)
            same = same and all(torch.equal(a.grad, b.grad) for a, b in pairs)
        found = {
            "same": same,
            "communicator": state.communicator is not None,
            "num_launched": streams.gpu.num_launched,
        }
        state.close()
    stop()
    return found


def scaled(rank: int, world_size: int, folder: str, library: str | None, on_gpu: bool, hook: str) -> list[Any]:
    """AMP: in some steps one rank's gradients overflow. What each step did: whether weights changed, and the scale."""
    start(rank, world_size, folder)
    with gpu(library) if on_gpu else contextlib.nullcontext():
        device = device_of(library) if on_gpu else "cpu"
        model = torch.nn.Linear(6, 2).to(device)
        ddp = DistributedDataParallel(model)
        state = dcomm.torch.HookState()
        ddp.register_comm_hook(state, HOOKS[hook])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        scaler = torch.amp.GradScaler(device, init_scale=1024.0, growth_interval=1000)
        steps: list[Any] = []
        for step in range(6):
            before = model.weight.detach().clone()
            x = torch.full((1, 6), 1.0 + rank, device=device)
            if step == 2 and rank == 1:
                x.fill_(float("inf"))
            if step == 4 and rank == 0:
                x.fill_(1e38)  # times the scale: inf
            scaler.scale(ddp(x).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            steps.append([bool((model.weight != before).any()), scaler.get_scale()])
        steps.append(model.weight.detach().cpu().flatten().tolist())
        state.close()
    stop()
    return steps
