"""Who averages the gradients of data parallelism: DDP itself, DDP with a hook of dcomm's, or dcomm without DDP."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from train_report import say
from training import Job, import_dcomm_torch

HOOKS = {
    "default": None,  # DDP's own all-reduce through the process group.
    "dcomm": "all_reduce_hook",
    "dcomm-fp16": "fp16_hook",
    "dcomm-bf16": "bf16_hook",
}
SYNCHRONIZERS: dict[str, dict[str, Any]] = {  # No DDP: the settings of dcomm's GradientSynchronizer.
    "synchronizer": {},
    "synchronizer-fp16": {"wire_dtype": "float16"},
    "deterministic": {"deterministic": True},
}


def find_dcomm(name: str) -> Any:
    """The module that `name` needs, or None for DDP's own way."""
    return None if name == "default" else import_dcomm_torch(f"--hook {name}")


@dataclass(frozen=True)
class Exchange:
    """How gradients are averaged: what to call in place of the model, and what completes a step."""

    model: torch.nn.Module
    no_sync: Callable[[], AbstractContextManager[None]]
    finish: Callable[[], None]
    buffer_bytes: Callable[[], int]  # Gradients and what is held beside them.
    close: Callable[[], None]


def make_exchange(model: torch.nn.Module, job: Job, name: str) -> Exchange:
    """Collective."""
    dcomm_torch = find_dcomm(name)
    if name in SYNCHRONIZERS:
        store = dist.group.WORLD.get_group_store()  # type: ignore[union-attr]
        comm = importlib.import_module("dcomm").init(
            rank=job.rank, world_size=job.world_size, store=store, group_name=name
        )
        sync = dcomm_torch.GradientSynchronizer(model, comm, **SYNCHRONIZERS[name])

        def close() -> None:
            sync.close()
            comm.close()

        return Exchange(
            model, sync.no_sync, sync.finish, lambda: max(sync.gradient_bytes, sync.accumulation_bytes), close
        )
    ddp = DistributedDataParallel(model, device_ids=[job.device] if job.device.type == "cuda" else None)
    hook = HOOKS[name]
    if hook is not None:
        ddp.register_comm_hook(dcomm_torch.HookState(), getattr(dcomm_torch, hook))
    # DDP keeps the gradients and, in buckets, a copy of them.
    num_bytes = 2 * sum(p.numel() * p.element_size() for p in model.parameters())
    return Exchange(ddp, ddp.no_sync, lambda: None, lambda: num_bytes, lambda: None)


def print_diff(hook_name: str) -> None:
    if hook_name in SYNCHRONIZERS:
        settings = "".join(f", {key}={value!r}" for key, value in SYNCHRONIZERS[hook_name].items())
        say("\nwhat your own training loop needs:\n")
        say("--- a/train.py")
        say("+++ b/train.py")
        say("@@ -1,2 +1,5 @@")
        say("+import dcomm.torch")
        say(f"+sync = dcomm.torch.GradientSynchronizer(model, dcomm.init(){settings})")
        say(" loss.backward()")
        say("+sync.finish()")
        say(" optimizer.step()")
        return
    say("\nwhat your own DistributedDataParallel script needs:\n")
    say("--- a/train.py")
    say("+++ b/train.py")
    say("@@ -1,1 +1,3 @@")
    say("+import dcomm.torch")
    say(" ddp = DistributedDataParallel(model)")
    say(f"+ddp.register_comm_hook(dcomm.torch.HookState(), dcomm.torch.{HOOKS[hook_name]})")
