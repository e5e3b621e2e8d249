"""dcomm in a PyTorch training loop.

>>> import dcomm.torch
>>> ddp.register_comm_hook(dcomm.torch.HookState(), dcomm.torch.all_reduce_hook)   # doctest: +SKIP
>>> torch.distributed.init_process_group("dcomm")    # DDP, FSDP, tensor and pipeline parallel   # doctest: +SKIP
>>> sync = dcomm.torch.GradientSynchronizer(model, comm)    # any loop, without DDP   # doctest: +SKIP
>>> y = dcomm.torch.functional.all_reduce(x, comm)          # in models, torch.compile'd or not   # doctest: +SKIP

Importing this module imports torch; the core of dcomm links none of it, so one build serves every torch >= 2.11.
"""

import importlib
from types import ModuleType

from dcomm.torch.group_monitored import monitored_barrier
from dcomm.torch.hooks import HookState, all_reduce_hook, bf16_hook, fp8_hook, fp16_hook
from dcomm.torch.process_group import ProcessGroup, register
from dcomm.torch.recommendation import Recommendation, recommend
from dcomm.torch.synchronizer import GradientSynchronizer

register()

__all__ = [
    "GradientSynchronizer",
    "HookState",
    "ProcessGroup",
    "Recommendation",
    "all_reduce_hook",
    "bf16_hook",
    "fp8_hook",
    "fp16_hook",
    "functional",
    "monitored_barrier",
    "recommend",
]


def __getattr__(name: str) -> ModuleType:
    """Import `functional` on first use: it touches parts of torch that hooks must not depend on."""
    if name != "functional":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module("dcomm.torch.functional")
