"""What a rank of benchmarks/torch_backend.py measures: latencies of 8 bytes, and training steps."""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from argparse import Namespace
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
import torch.nn.parallel

from dcomm.torch import ProcessGroup
from dcomm.torch.group_work import DoneWork

CALLS = {"dcomm": 1000, "gloo": 100, "no-op": 1000}
DELAY_S = 0.008
OPERATORS = "functional operators, inference"
# torch's autograd kernels, which are Python, only pass on without gradients, and are not called in inference.
CONTEXTS: dict[str, Callable[[], Any]] = {
    "functional, no_grad": torch.no_grad,
    "functional, inference": torch.inference_mode,
    "functional operators, no_grad": torch.no_grad,
    OPERATORS: torch.inference_mode,
}
LAYERS, WIDTH, BATCH = 18, 512, 384  # three layers make a bucket
NONE, NOTHING = "no communication", "a group that does nothing"
OVERLAPPED, BLOCKING = "dcomm", "dcomm, in the calling thread"
LONGER = {name: f"{name}, all-reduces {1e3 * DELAY_S:.0f} ms longer" for name in (OVERLAPPED, BLOCKING)}


class NoOp(ProcessGroup):
    """A group whose all-reduce does nothing: what is left is torch's own way to a group written in Python."""

    def allreduce(self, tensors: Any, opts: Any = None, *more: Any, **named: Any) -> Any:
        return DoneWork(tensors) if opts.asyncOp else None


def latency_calls(group: Any) -> dict[str, Callable[[], Any]]:
    x = torch.zeros(2)
    name = group.group_name
    all_reduce, wait = torch.ops._c10d_functional.all_reduce.default, torch.ops._c10d_functional.wait_tensor.default

    def later() -> None:
        work = dist.all_reduce(x, group=group, async_op=True)
        assert work is not None
        work.wait()

    def functional() -> None:
        funcol.wait_tensor(funcol.all_reduce(x, "sum", name))

    def operators() -> None:
        wait(all_reduce(x, "sum", name))

    return {
        "all_reduce": lambda: dist.all_reduce(x, group=group),
        "async": later,
        "functional": functional,
        "functional operators": operators,
        **{label: operators if "operators" in label else functional for label in CONTEXTS},
    }


def median_us(call: Callable[[], Any], calls: int) -> float:
    times = []
    for _ in range(calls + calls // 5):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e6 * statistics.median(times[calls // 5 :])


def check(group: dist.ProcessGroup) -> None:
    x = torch.full((2,), dist.get_rank() + 1.0)
    dist.all_reduce(x, group=group)
    found = [x.tolist(), funcol.wait_tensor(funcol.all_reduce(x, "sum", group)).tolist()]
    total = sum(range(1, dist.get_world_size() + 1))
    if found != [[total] * 2, [total * dist.get_world_size()] * 2]:
        raise RuntimeError(f"wrong results: {found} for {total} and {dist.get_world_size()} times that")


def measure_latency(groups: dict[str, Any], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Microseconds of a call, by group and call, for each round."""
    calls = {name: latency_calls(group) for name, group in groups.items()}
    found: dict[str, dict[str, list[float]]] = {name: {call: [] for call in calls[name]} for name in groups}
    for _ in range(rounds):
        for name, group in groups.items():
            if not isinstance(group, NoOp):
                check(group)
            for label, call in calls[name].items():
                dist.barrier()
                with CONTEXTS.get(label, contextlib.nullcontext)():
                    found[name][label].append(median_us(call, CALLS[name]))
    return found


def model_of(group: ProcessGroup) -> Any:
    """DDP over layers that make six equal buckets: were the last one small, it would wait for the one before it."""
    torch.manual_seed(1)
    layers = [torch.nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)]
    return torch.nn.parallel.DistributedDataParallel(
        torch.nn.Sequential(*layers), process_group=group, bucket_cap_mb=2.5
    )


def measure_steps(rounds: int, steps: int) -> dict[str, list[float]]:
    """Milliseconds of a step, by variant, for each round."""
    models: dict[str, Any] = {}
    for name in (NONE, NOTHING, OVERLAPPED, BLOCKING, *LONGER.values()):
        group = dist.new_group(list(range(dist.get_world_size())))
        assert isinstance(group, ProcessGroup)
        if name == NOTHING:
            group.__class__ = NoOp
        group._overlap = BLOCKING not in name  # what DCOMM_ASYNC=0 does
        group.communicator._core._inject_delay(DELAY_S if name in LONGER.values() else 0.0)
        models[name] = model_of(group)
    x = torch.randn(BATCH, WIDTH)
    found: dict[str, list[float]] = {name: [] for name in models}
    for number in range(rounds + 1):
        for name, model in models.items():
            dist.barrier()
            start = time.perf_counter()
            for _ in range(steps):
                with model.no_sync() if name == NONE else contextlib.nullcontext():
                    model(x).sum().backward()
                model.zero_grad(set_to_none=True)
            if number:  # DDP rebuilds its buckets in the first one
                found[name].append(1e3 * (time.perf_counter() - start) / steps)
    return found


def run_rank(rank: int, args: Namespace, folder: str) -> None:
    """Body of a rank; what it has found is in `folder` then."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", args.ranks)
    dist.init_process_group(
        "dcomm", store=store, rank=rank, world_size=args.ranks, timeout=timedelta(seconds=args.seconds)
    )
    ranks = list(range(args.ranks))
    nothing = dist.new_group(ranks)
    nothing.__class__ = NoOp
    groups = {"dcomm": dist.group.WORLD, "gloo": dist.new_group(ranks, backend="gloo"), "no-op": nothing}
    found = {"latency": measure_latency(groups, args.rounds), "steps": measure_steps(args.rounds, args.steps)}
    Path(folder, f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()
    time.sleep(0.1)
    dist.destroy_process_group()
