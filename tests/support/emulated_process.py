"""For rank processes that have an emulated GPU each."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from emulated_gpu import EmulatedGpu
from numpy.typing import NDArray

import dcomm

VMM, IPC = 1, 2  # csrc/launch/cuda_api.h


@contextlib.contextmanager
def emulated(
    library: str, rank: int, world_size: int, *, kinds: int = VMM | IPC, gpu: int = -1, fails_at: int = -1
) -> Iterator[tuple[EmulatedGpu, dcomm.Communicator]]:
    """A GPU and a communicator. gpu: which one other processes take it for; fails_at: a call of its driver."""
    device = EmulatedGpu(Path(library))
    device.library.emulated_process(kinds, gpu, fails_at)
    with device.in_use(), dcomm.init(rank=rank, world_size=world_size) as comm:
        yield device, comm


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def numbers(rank: int, count: int) -> NDArray[Any]:
    """Whole ones, of which sums are exact in any order."""
    return ((np.arange(count) * 7 + rank * 13) % 31 - 15).astype(np.float32)
