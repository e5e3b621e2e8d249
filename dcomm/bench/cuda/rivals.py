"""Which rivals there are, what each can be asked, and what it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dcomm.bench import gloo
from dcomm.bench.cuda import composites, nccl, symm_mem
from dcomm.bench.cuda.gloo_staged import GlooStaged
from dcomm.bench.cuda.sides import MakeSide, Process, Threads


def _no_gloo() -> str:
    import torch

    if torch.distributed.is_available() and torch.distributed.is_gloo_available():
        return ""
    return f"torch {torch.__version__} was built without gloo; install a build of pytorch.org"


@dataclass(frozen=True)
class Rival:
    """A rival of dcomm's all-reduce."""

    name: str
    mode: str  # which of dcomm's tables it stands in
    make: MakeSide
    ops: tuple[str, ...]
    variants: dict[bool, tuple[str, ...]]  # by whether they are in place; the fastest counts
    can_capture: bool = True
    why_not: Callable[[], str] = str  # why it cannot be measured here, "" where it can
    settings: dict[str, str] = field(default_factory=dict)  # of its processes' environment


RIVALS = {
    rival.name: rival
    for rival in (
        Rival("torch", "threads", composites.Composites, ("sum",), dict.fromkeys((False, True), composites.NAMES)),
        Rival(
            "symm_mem",
            "processes",
            symm_mem.SymmMem,
            ("sum",),
            symm_mem.VARIANTS,
            why_not=symm_mem.why_not,
            settings=symm_mem.SETTINGS,
        ),
        # Through torch NCCL has no out-of-place call; a copy before it would not be its own time.
        Rival(
            "nccl",
            "processes",
            nccl.Nccl,
            tuple(nccl.OPS),
            {True: ("",)},
            why_not=nccl.why_not,
            settings=nccl.SETTINGS,
        ),
        Rival(
            "gloo",
            "processes",
            GlooStaged,
            ("sum",),
            {True: tuple(f"{threads}t" for threads in gloo.THREADS)},
            can_capture=False,
            why_not=_no_gloo,
        ),
    )
}
SIDES: dict[str, Any] = {
    "threads": Threads,
    "processes": Process,
    **{name: rival.make for name, rival in RIVALS.items()},
}


def is_one_process(side: str) -> bool:
    """Whether one child process plays all ranks."""
    return side in ("threads", "torch")
