"""The rank processes of benchmarks/ddp_step.py: one group for each variant, which makes steps when it is asked to."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from step_models import WORKLOADS
from step_variants import VARIANTS, Trainer

ANSWER_S = 120


class RankError(Exception):
    """A rank failed."""


class Group:
    """One variant: rank processes of its own, which do nothing while another variant is measured.

    A variant that keeps its gradients in place and one that allocates them anew in every step leave the allocator in
    different states; in one process they would measure each other.
    """

    def __init__(self, name: str, workload: str, ranks: int, folder: str) -> None:
        self.name = name
        context = mp.get_context("spawn")
        self.pipes = []
        self.processes = []
        for rank in range(ranks):
            mine, theirs = context.Pipe()
            process = context.Process(target=serve, args=(rank, ranks, name, workload, folder, theirs), daemon=True)
            process.start()
            theirs.close()  # so that the end of a rank ends the wait for its answer
            self.pipes.append(mine)
            self.processes.append(process)

    def ask(self, *order: Any) -> list[Any]:
        """Give all ranks an order; their answers.

        Raises:
            RankError: A rank failed or is silent.
        """
        for pipe in self.pipes:
            pipe.send(order)
        answers = []
        for rank, pipe in enumerate(self.pipes):
            try:
                answer = pipe.recv() if pipe.poll(ANSWER_S) else RankError("no answer in time")
            except EOFError:
                answer = RankError("it ended")
            if isinstance(answer, Exception):
                raise RankError(f"{self.name}: rank {rank}: {answer}")
            answers.append(answer)
        return answers

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.close()  # the ranks end by themselves, and are ended if they do not
        for process in self.processes:
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join(10)


def serve(rank: int, ranks: int, name: str, workload: str, folder: str, pipe: Any) -> None:
    """One rank of one variant: carries out orders until the parent closes the pipe."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = f"file://{folder}/{VARIANTS.index(name)}"
    dist.init_process_group("gloo", store, rank=rank, world_size=ranks, timeout=timedelta(seconds=60))
    trainer = Trainer(name, WORKLOADS[workload])
    with contextlib.suppress(EOFError, ConnectionResetError):
        while True:
            order, *arguments = pipe.recv()
            try:
                pipe.send(ORDERS[order](trainer, *arguments))
            except Exception as error:
                pipe.send(RankError(f"{type(error).__name__}: {error}"))
    trainer.close()
    dist.destroy_process_group()


def timed_steps(trainer: Trainer, steps: int, warm: int) -> list[float]:
    """Milliseconds of each step on this rank, after some that do not count."""
    for _ in range(warm):
        trainer.step()
    dist.barrier()
    found = []
    for _ in range(steps):
        start = time.perf_counter()
        trainer.step()
        found.append(1e3 * (time.perf_counter() - start))
    return found


def steps_of_sizes(trainer: Trainer, sizes: list[int], first: int, steps: int, warm: int) -> list[list[float]]:
    """For each bucket size as :func:`timed_steps`; sizes take turns by step, pass after pass from another one."""
    found: list[list[float]] = [[] for _ in sizes]
    for number in range(steps):
        for place in range(len(sizes)):
            index = (first + number + place) % len(sizes)
            use_bucket_bytes(trainer, sizes[index])
            found[index] += timed_steps(trainer, 1, 0 if number or place else warm)
    return found


def leave_weights(trainer: Trainer, path: str) -> str:
    """The SHA-256 of all weights; rank 0 leaves them at `path`, too."""
    weights = np.concatenate([parameter.detach().numpy().ravel() for parameter in trainer.model.parameters()])
    if dist.get_rank() == 0:
        np.save(path, weights)
    return hashlib.sha256(weights.tobytes()).hexdigest()


def bucket_bytes(trainer: Trainer) -> int | None:
    """Of a synchronizer."""
    return None if trainer.sync is None else trainer.sync.bucket_bytes


def use_bucket_bytes(trainer: Trainer, size: int) -> None:
    """From the next step on, in place of what "auto" has chosen."""
    assert trainer.sync is not None
    trainer.sync.load_state_dict({**trainer.sync.state_dict(), "bucket_bytes": size})
    if trainer.sync.bucket_bytes != size:
        raise RankError(f"buckets are {trainer.sync.bucket_bytes} bytes, not {size}")


ORDERS: dict[str, Callable[..., Any]] = {
    "settle": Trainer.settle,
    "bucket_bytes": bucket_bytes,
    "steps": timed_steps,
    "steps_of_sizes": steps_of_sizes,
    "weights": leave_weights,
}
