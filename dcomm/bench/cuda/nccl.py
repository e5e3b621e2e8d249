"""The rival "nccl": torch's ProcessGroupNCCL, several ranks on one GPU (NCCL 2.30 and later). Not run yet."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from dcomm.bench.cuda.case import CudaCase
from dcomm.bench.cuda.engine import Call, Engine, Pairs
from dcomm.bench.cuda.sides import Process

LEAST_VERSION = (2, 30)
OPS = {"sum": "SUM", "avg": "AVG"}
SETTINGS = {"NCCL_MULTI_RANK_GPU_ENABLE": "1"}


def why_not() -> str:
    """Why this rival cannot be measured here, and what to do; "" where it can."""
    import torch

    if not torch.distributed.is_nccl_available():
        return f"torch {torch.__version__} was built without NCCL; install a build with CUDA"
    version = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
    if tuple(version[:2]) < LEAST_VERSION:
        shown = ".".join(map(str, version))
        return f"NCCL {shown} refuses two ranks on a GPU; it takes 2.30: pip install -U nvidia-nccl-cu{_cuda_major()}"
    return ""


def _cuda_major() -> str:
    import torch

    return str(torch.version.cuda).partition(".")[0]


class Nccl(Process):
    """One rank, on torch's current stream."""

    def __init__(self, comm: Any, engine: Engine, world_size: int, store: str) -> None:
        """Join the group; `store`: a file that the ranks share."""
        super().__init__(comm, engine, world_size, store)
        import torch

        dist: Any = torch.distributed
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = timedelta(seconds=60)
        self._dist = dist
        self._group = dist.ProcessGroupNCCL(dist.FileStore(store, world_size), comm.rank, world_size, options)
        self.versions = {"nccl": ".".join(map(str, torch.cuda.nccl.version()))}  # type: ignore[no-untyped-call]

    def call(self, case: CudaCase, pairs: Pairs) -> Call:
        """In place."""
        ((x, _),) = pairs
        options, tensors = self._dist.AllreduceOptions(), [x]
        options.reduceOp = getattr(self._dist.ReduceOp, OPS[case.redop])
        return lambda: self._group.allreduce(tensors, options).wait()
