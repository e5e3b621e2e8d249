"""The ways of averaging gradients that benchmarks/ddp_step.py compares, each as a function that makes one step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from step_models import Workload
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

import dcomm
import dcomm.torch

FLOOR = "no_sync"
GLOO = "ddp + gloo"
# With gradient_as_bucket_view=True: gradients are parts of DDP's buckets, and nothing is copied out of them.
VIEWS_GLOO = "ddp views + gloo"
BUCKET_SIZES = (1, 4, 8, 25, 64)  # MiB: what "auto" of the synchronizer chooses from


class Trainer:
    """One variant with a model and an optimizer of its own."""

    def __init__(self, name: str, workload: Workload) -> None:
        self.name = name
        self.workload = workload
        torch.manual_seed(0)
        self.model = workload.model()
        self.batch = workload.batch(dist.get_rank())
        self.wrapped: nn.Module = self.model
        self.during: Callable[[], Any] = contextlib.nullcontext  # around forward and backward
        self.finish: Callable[[], Any] = lambda: None
        self.is_settled: Callable[[], bool] = lambda: True  # False: the first steps still differ from the later ones
        self.sync: dcomm.torch.GradientSynchronizer | None = None
        self.states: list[Any] = []  # to be closed
        _KINDS[name](self)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=workload.lr)

    def step(self) -> Tensor:
        self.optimizer.zero_grad()
        with self.during():
            loss = self.workload.loss(self.wrapped, self.batch)
            loss.backward()
        self.finish()
        self.optimizer.step()
        return loss

    def settle(self, steps: int) -> None:
        """At least so many steps, until all is found out that is found out in the first ones; weights as before."""
        before = [parameter.detach().clone() for parameter in self.model.parameters()]
        while steps > 0 or not self.is_settled():
            self.step()
            steps -= 1
        with torch.no_grad():  # so that all variants train for equally many steps
            for parameter, value in zip(self.model.parameters(), before, strict=True):
                parameter.copy_(value)

    def close(self) -> None:
        for state in self.states:
            state.close()


def _ddp(trainer: Trainer, hook: Any = None, *, views: bool = False, **settings: Any) -> DistributedDataParallel:
    ddp = DistributedDataParallel(trainer.model, gradient_as_bucket_view=views)
    if hook is not None:
        state = dcomm.torch.HookState(**settings)
        trainer.states.append(state)
        ddp.register_comm_hook(state, hook)
    trainer.wrapped = ddp
    return ddp


def _no_sync(trainer: Trainer) -> None:
    trainer.during = _ddp(trainer).no_sync


def _gloo_fp16(trainer: Trainer) -> None:
    ddp = _ddp(trainer)
    ddp.register_comm_hook(None, default_hooks.fp16_compress_hook)


def _synchronizer(trainer: Trainer, **settings: Any) -> None:
    store = dist.distributed_c10d._get_default_store()
    comm = dcomm.init(
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        store=store,
        group_name=trainer.name,
        deterministic=settings.get("deterministic", False),
    )
    sync = dcomm.torch.GradientSynchronizer(trainer.model, comm, **settings)
    trainer.sync = sync
    trainer.is_settled = lambda: sync.bucket_bytes is not None
    trainer.states += [sync, comm]
    trainer.finish = sync.finish


_KINDS: dict[str, Callable[[Trainer], Any]] = {
    FLOOR: _no_sync,
    GLOO: _ddp,
    VIEWS_GLOO: lambda trainer: _ddp(trainer, views=True),
    "ddp + gloo + fp16_compress_hook": _gloo_fp16,
    "ddp + dcomm": lambda trainer: _ddp(trainer, dcomm.torch.all_reduce_hook),
    "ddp + dcomm, reuse_gradients=False": lambda trainer: _ddp(
        trainer, dcomm.torch.all_reduce_hook, reuse_gradients=False
    ),
    "ddp views + dcomm": lambda trainer: _ddp(trainer, dcomm.torch.all_reduce_hook, views=True),
    "ddp views + dcomm, overlap=False": lambda trainer: _ddp(
        trainer, dcomm.torch.all_reduce_hook, views=True, overlap=False
    ),
    "ddp views + dcomm fp16": lambda trainer: _ddp(trainer, dcomm.torch.fp16_hook, views=True),
    "ddp + dcomm auto": lambda trainer: _ddp(trainer, dcomm.torch.all_reduce_hook, policy="auto"),
    "ddp views + dcomm auto": lambda trainer: _ddp(trainer, dcomm.torch.all_reduce_hook, views=True, policy="auto"),
    "ddp views + dcomm auto fp16": lambda trainer: _ddp(trainer, dcomm.torch.fp16_hook, views=True, policy="auto"),
    "synchronizer": _synchronizer,
    "synchronizer fp16": lambda trainer: _synchronizer(trainer, wire_dtype="float16"),
    "synchronizer fp16 error feedback": lambda trainer: _synchronizer(
        trainer, wire_dtype="float16", error_feedback=True
    ),
    **{f"synchronizer {size} MiB": partial(_synchronizer, bucket_bytes=size << 20) for size in BUCKET_SIZES},
    "synchronizer deterministic": lambda trainer: _synchronizer(trainer, deterministic=True),
}
VARIANTS = tuple(_KINDS)
