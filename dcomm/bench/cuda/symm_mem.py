"""The rival "symm_mem": torch symmetric memory among processes whose devices overlap. Not run yet."""

from __future__ import annotations

from typing import Any

from dcomm.bench.cuda.case import CudaCase
from dcomm.bench.cuda.engine import Call, Engine, Pairs
from dcomm.bench.cuda.sides import Process

SETTINGS = {"TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES": "1"}
# torch.ops.symm_mem, by whether they are in place.
VARIANTS = {False: ("one_shot_all_reduce_out", "two_shot_all_reduce_out"), True: ("two_shot_all_reduce_",)}


def why_not() -> str:
    """Why this rival cannot be measured here, and what to do; "" where it can."""
    import torch

    for name in (name for names in VARIANTS.values() for name in names):
        if not hasattr(torch.ops.symm_mem, name):
            return f"torch {torch.__version__} has no symm_mem::{name}; install torch 2.11 or later"
    return ""


class SymmMem(Process):
    """One rank. The input lies in symmetric memory already: its copy there, which a caller may need, is not counted."""

    def __init__(self, comm: Any, engine: Engine, world_size: int, store: str) -> None:
        """Join a group; `store`: a file that the ranks share."""
        super().__init__(comm, engine, world_size, store)
        import torch

        dist: Any = torch.distributed
        shared = dist.FileStore(store, world_size)
        dist.init_process_group("gloo", store=shared, rank=comm.rank, world_size=world_size)
        self._group = dist.group.WORLD.group_name

    def pairs(self, case: CudaCase) -> Pairs:
        """A collective: the input is mapped by all ranks."""
        import torch
        import torch.distributed._symmetric_memory as symmetric

        dtype = getattr(torch, case.dtype)
        x = symmetric.empty(case.count, dtype=dtype, device=torch.device("cuda", 0))
        symmetric.rendezvous(x, self._group)
        return [(x, x if case.in_place else self._engine.device.empty(case.count, case.dtype))]

    def call(self, case: CudaCase, pairs: Pairs) -> Call:
        """One of VARIANTS."""
        import torch

        ((x, out),) = pairs
        operator = getattr(torch.ops.symm_mem, case.variant)
        if case.in_place:
            return lambda: operator(x, "sum", self._group)
        return lambda: operator(x, "sum", self._group, out)

    def close(self) -> None:
        """The group."""
        import torch

        torch.distributed.destroy_process_group()
