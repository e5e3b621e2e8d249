"""What the training examples share: common options, ranks and devices, process groups, the timed loop, leaving.

An example parses its options (`RankZeroParser`, `add_common_options`), chooses a device, and trains inside
`process_group(job, backend)`; `train_loop` times its steps, shows them and averages the losses over the ranks.
`run_main` turns a function of (args, job) into a program. Tables and curves are in train_report.py.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous
from train_report import Progress, Run, say

Batch = TypeVar("Batch")
GROUP_NUMBERS = itertools.count()


@dataclass(frozen=True)
class Job:
    """This process's place among the ranks, and where it computes."""

    rank: int
    world_size: int
    launched: bool
    device: torch.device
    backend: str

    @property
    def is_first(self) -> bool:
        return self.rank == 0


class UserError(Exception):
    """Something the caller can put right; the message says how."""


class RankZeroParser(argparse.ArgumentParser):
    """Speaks once per job, not once per rank."""

    def _print_message(self, message: str, file: Any = None) -> None:
        if int(os.environ.get("RANK", "0")) == 0:
            super()._print_message(message, file)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        if message:
            self._print_message(message, sys.stderr)
        leave(status)


def leave(status: int) -> NoReturn:
    """Exits; where all ranks fail alike, the others let rank 0 speak before torchrun ends the job.

    Threads of torch's gloo outlive their group, and one that still frees a tensor while the interpreter ends aborts the
    process: so the interpreter is not ended in order.
    """
    if status and int(os.environ.get("RANK", "0")) > 0:
        time.sleep(3)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def at_least(smallest: int) -> Any:
    def whole_number(text: str) -> int:
        value = int(text)
        if value < smallest:
            raise argparse.ArgumentTypeError(f"{value} is below {smallest}")
        return value

    return whole_number


def add_common_options(parser: argparse.ArgumentParser, *, steps: int, batch_size: int, lr: float, out: str) -> None:
    """Options that mean the same in every example; `batch_size` is per rank."""
    add = parser.add_argument
    devices = ("auto", "cpu", "cuda")
    add("--device", choices=devices, default="auto", help="auto: one GPU per rank where there are enough")
    add("--steps", type=at_least(1), default=steps, help="optimizer steps")
    add("--seed", type=int, default=0)
    add("--batch-size", type=at_least(1), default=batch_size, help="samples per rank and step")
    add("--lr", type=float, default=lr, help="peak learning rate")
    add("--threads", type=at_least(1), default=1, help="intra-op threads per rank on the CPU")
    add("--timeout", type=at_least(1), default=120, help="seconds until a collective gives up")
    add("--out", type=Path, default=Path(out), metavar="DIR", help="where loss.png goes")
    add("--json", type=Path, metavar="PATH", help="write what came out, with machine, date, command and commit, here")


def choose_device(args: argparse.Namespace) -> Job:
    """Reads torchrun's environment and decides; the caller prints it first of all."""
    launched = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    rank, world_size = (int(os.environ[key]) for key in ("RANK", "WORLD_SIZE")) if launched else (0, 1)
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    num_local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    num_gpus = torch.cuda.device_count()
    one_each = num_gpus >= num_local_ranks
    if args.device == "cuda" and num_gpus == 0:
        raise UserError("--device cuda: torch sees no GPU here; use --device cpu or leave it out")
    if args.device == "cpu" or (args.device == "auto" and not one_each):
        torch.set_num_threads(args.threads)
        return Job(rank, world_size, launched, torch.device("cpu"), "gloo")
    device = torch.device("cuda", local_rank % num_gpus)
    torch.cuda.set_device(device)
    # Equal seeds shall give equal losses on a GPU too; cuBLAS reads its variable when it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    return Job(rank, world_size, launched, device, "nccl" if one_each else "gloo")


def describe(job: Job, args: argparse.Namespace) -> str:
    if job.device.type == "cuda":
        where = f"{job.device} ({torch.cuda.get_device_name(job.device)})"
    else:
        where = f"cpu (intra-op threads per rank: {args.threads})"
    group = f"ranks: {job.world_size}, process group: {getattr(args, 'backend', None) or job.backend}"
    return f"device: {where}, {group}, torch {torch.__version__}"


@contextmanager
def process_group(job: Job, backend: str, *, timeout_s: int) -> Iterator[None]:
    """torch.distributed's default group on `backend` ("dcomm" as well); several after one another are allowed.

    Collective, at both ends: no rank leaves while another one still needs it.
    """
    if backend == "dcomm":
        import_dcomm_torch("--backend dcomm")
    timeout = timedelta(seconds=timeout_s)
    launcher = next(rendezvous("env://", timeout=timeout))[0] if job.launched else dist.HashStore()  # type: ignore[attr-defined]
    # Every group has keys of its own in the launcher's store, which outlives them.
    store = torch.distributed.distributed_c10d.PrefixStore(f"group {next(GROUP_NUMBERS)}", launcher)
    dist.init_process_group(backend, timeout=timeout, store=store, rank=job.rank, world_size=job.world_size)
    yield
    dist.barrier()
    dist.destroy_process_group()


def import_dcomm_torch(option: str) -> Any:
    """dcomm.torch, which also makes "dcomm" known as a backend. Only here is it imported.

    Raises:
        UserError: it is not installed; names `option`.
    """
    try:
        return importlib.import_module("dcomm.torch")
    except ImportError as error:
        raise UserError(
            f"{option}: cannot import dcomm.torch ({error}); "
            "install it with `pip install .` in the repository, or choose torch's own"
        ) from error


def backends_of(args: argparse.Namespace) -> list[str]:
    """What an example with --compare trains on, one after the other."""
    return ["gloo", "dcomm"] if args.compare else ["dcomm"]


def part_of_epoch(num_samples: int, step: int, args: argparse.Namespace, job: Job) -> Tensor:
    """Which samples this rank takes in a step: a slice of the epoch's order, which the seed and the epoch determine."""
    steps_per_epoch = num_samples // (args.batch_size * job.world_size)
    epoch, place = divmod(step, steps_per_epoch)
    order = torch.randperm(num_samples, generator=torch.Generator().manual_seed(args.seed + 1 + epoch))
    first = (place * job.world_size + job.rank) * args.batch_size
    return order[first : first + args.batch_size]


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def gather(values: list[float], job: Job) -> Tensor:
    """(world_size, len(values)) float64 on the CPU, rows in rank order on every rank."""
    mine = torch.tensor(values, dtype=torch.float64, device=job.device)
    rows = [torch.empty_like(mine) for _ in range(job.world_size)]
    dist.all_gather(rows, mine)
    return torch.stack(rows).cpu()


@dataclass
class Loop:
    """A training under way: what `train_loop` hands to its callback."""

    run: Run
    job: Job
    progress: Progress
    local_losses: list[float] = field(default_factory=list)

    def gather_losses(self) -> None:
        """Collective: brings `run.losses`, means over the ranks, up to date."""
        if self.local_losses:
            self.run.losses += gather(self.local_losses, self.job).mean(dim=0).tolist()
            self.local_losses.clear()


def train_loop(
    run: Run,
    job: Job,
    prepare: Callable[[int], Batch],
    step: Callable[[int, Batch], float],
    *,
    num_steps: int,
    first_step: int = 0,
    last_step: int | None = None,
    after: Callable[[int, Loop], None] = lambda done, loop: None,
) -> None:
    """Steps `first_step` to `last_step` (exclusive; `num_steps` if None) of a training of `num_steps`; collective.

    Calls `step(index, prepare(index))`, which returns this rank's loss, and times it without `prepare`; then
    `after(done, loop)` with the number of steps done, to validate, note or save. Fills `run.step_ms` and `run.losses`.
    """
    progress = Progress(run, first_step=first_step, num_steps=num_steps, show=job.is_first)
    loop = Loop(run, job, progress)
    with progress:
        for index in range(first_step, num_steps if last_step is None else last_step):
            batch = prepare(index)
            start = clock(job.device)
            loss = step(index, batch)
            run.step_ms.append((clock(job.device) - start) * 1e3)
            loop.local_losses.append(loss)
            progress.update(index + 1, loss)
            after(index + 1, loop)
    loop.gather_losses()


def run_main(args: argparse.Namespace, execute: Callable[[argparse.Namespace, Job], int]) -> NoReturn:
    """The program: the device is said first of all, a UserError once, and `execute` gives the exit status."""
    try:
        job = choose_device(args)
        if job.is_first:
            say(describe(job, args))
        status = execute(args, job)
    except UserError as error:
        if int(os.environ.get("RANK", "0")) == 0:
            print(f"error: {error}", file=sys.stderr, flush=True)
        status = 2
    leave(status)
