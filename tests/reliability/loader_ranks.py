"""Rank processes of test_forks.py: training steps fed by a DataLoader whose workers are forked from the rank."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from descriptors import descriptors
from rank_main import mark
from torch.utils.data import DataLoader, Dataset

import dcomm


class Samples(Dataset[torch.Tensor]):
    """Each tells how many of its parent's dcomm descriptors the worker has, and whether the parent's communicator
    refused it."""

    def __init__(self, length: int, comm: dcomm.Communicator, of_dcomm: set[str]) -> None:
        self.length = length
        self.comm = comm
        self.of_dcomm = of_dcomm
        self.refused: bool | None = None

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.refused is None:
            calls: tuple[Callable[[], Any], ...] = (
                lambda: self.comm.all_reduce(np.ones(3)),
                lambda: self.comm.all_reduce(np.ones(3), async_op=True),
                self.comm.barrier,
            )
            self.refused = all(map(is_refused, calls))
        return torch.tensor([float(index), len(self.of_dcomm & descriptors()), float(self.refused), os.getpid()])


def is_refused(call: Callable[[], Any]) -> bool:
    try:
        call()
    except dcomm.ForkedProcessError:
        return True
    return False


def train(rank: int, world_size: int, steps: int) -> dict[str, Any]:
    """`steps` batches from four forked workers, each averaged over the ranks; or until another rank is lost."""
    before = descriptors()
    comm = dcomm.init(rank=rank, world_size=world_size, timeout=40)
    comm.all_reduce(np.ones(3), async_op=True).wait()  # the progress thread runs when the workers are forked
    of_dcomm = descriptors() - before
    samples = Samples(2 * steps, comm, of_dcomm)
    loader = DataLoader(samples, batch_size=2, num_workers=4, multiprocessing_context="fork", timeout=60)
    held = refused = done = 0
    ended: dict[str, Any]
    workers: set[int] = set()
    try:
        for step, batch in enumerate(loader):
            x = batch[:, 0].numpy().copy()
            comm.all_reduce(x, "avg", timeout=30)
            assert (x == [2 * step, 2 * step + 1]).all(), (step, x)
            comm.all_reduce(np.ones(10_000, np.float32), async_op=True).wait()
            held = max(held, int(batch[:, 1].max()))
            refused += int(batch[:, 2].sum())
            workers |= {int(pid) for pid in batch[:, 3]}
            done = step + 1
            if done == 50:
                mark("training")
    except dcomm.DcommError as error:
        ended = {"error": type(error).__name__, "text": str(error), "at_ns": time.monotonic_ns()}
    else:
        ended = {"error": None}
    comm.close()
    return {
        **ended,
        "steps": done,
        "of_dcomm": len(of_dcomm),
        "held_by_workers": held,
        "refused": refused,
        "workers": sorted(workers),
    }
