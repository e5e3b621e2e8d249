"""Rank processes of test_recommendation.py: DDP over gloo with a hook that chooses."""

# No `from __future__ import annotations`: DDP compares the annotations of hooks with the classes themselves.
import copy
import logging
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import dcomm
import dcomm.torch
from dcomm.torch import recommendation

sys.path.append(str(Path(__file__).parent))
from hook_ranks import start, stop

WIRES = {"all_reduce": dcomm.torch.all_reduce_hook, "fp16": dcomm.torch.fp16_hook}


def layers() -> torch.nn.Module:
    return torch.nn.Sequential(*[torch.nn.Linear(50, 50) for _ in range(6)], torch.nn.Linear(50, 45))


class Clock:
    """What each candidate takes, in ms, by the bytes of the bucket; nothing else takes time."""

    def __init__(self, table: dict[str, dict[str, float]]) -> None:
        self.table = table
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


def with_times(table: dict[str, Any]) -> Any:
    """Let the candidates take the times of the table: small buckets "small", others "large"; rank 1 half as long."""
    clock = Clock(table)
    make = recommendation.candidates

    def candidates(comm: dcomm.Communicator, group: Any, bucket: torch.Tensor, wires: Any) -> dict[str, Any]:
        ms = clock.table["small" if bucket.numel() < 4000 else "large"]
        found = make(comm, group, bucket, wires)

        def slow(name: str) -> Any:
            def way() -> None:
                found[name]()
                clock.now += 1e-3 * ms[name] * (1 if comm.rank == 0 else 0.5)

            return way

        return {name: slow(name) for name in found}

    return mock.patch.multiple(recommendation, candidates=candidates, time=clock)


def train(rank: int, hook: str, views: bool) -> dict[str, Any]:
    """Beside DDP without hook: gradients, who averaged what, and what was said."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("dcomm").addHandler(handler)
    plain = layers()
    ours = copy.deepcopy(plain)
    options: dict[str, Any] = {"bucket_cap_mb": 0.015, "gradient_as_bucket_view": views}
    reference, ddp = DistributedDataParallel(plain, **options), DistributedDataParallel(ours, **options)
    state = dcomm.torch.HookState(policy="auto")
    sizes: list[list[int]] = [[]]

    def watching(state: dcomm.torch.HookState, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        sizes[-1].append(bucket.buffer().numel())
        return WIRES[hook](state, bucket)

    ddp.register_comm_hook(state, watching)
    generator = torch.Generator().manual_seed(rank)
    same, worst, operations = True, 0.0, []
    for _ in range(8):
        x = torch.randn(4, 50, generator=generator)
        for model in (reference, ddp):
            model.zero_grad()
            model(x).square().sum().backward()
        assert state.communicator is not None
        operations.append(state.communicator.stats()["num_operations"])
        sizes.append([])
        for a, b in zip(plain.parameters(), ours.parameters(), strict=True):
            same = same and torch.equal(a.grad, b.grad)
            worst = max(worst, float((a.grad - b.grad).abs().max() / a.grad.abs().max()))
    found = state.recommendation
    assert found is not None
    logging.getLogger("dcomm").removeHandler(handler)
    state.close()
    return {
        "choices": {verdict.count: verdict.choice for verdict in found.verdicts},
        "reasons": [verdict.reason for verdict in found.verdicts],
        "sizes": sizes[-2],
        "same": same,
        "worst": worst,
        "last_step": operations[-1] - operations[-2],
        "lines": lines,
        "pays": found.compressing_pays,
    }


def ask(rank: int, world_size: int) -> dict[str, Any]:
    """recommend() of a model, with a group and with a communicator, and of DDP's own buckets."""
    model = layers()
    ddp = DistributedDataParallel(layers(), bucket_cap_mb=0.015)
    real: list[list[int]] = [[]]

    def watching(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        real[-1].append(bucket.buffer().numel())
        return dcomm.torch.all_reduce_hook(state, bucket)

    ddp.register_comm_hook(dcomm.torch.HookState(), watching)
    for _ in range(3):
        ddp(torch.ones(1, 50)).sum().backward()
        real.append([])
    comm = dcomm.init(rank=rank, world_size=world_size, store=dist.group.WORLD.get_group_store())
    answers = {
        "group": dcomm.torch.recommend(model),
        "communicator": dcomm.torch.recommend(model, comm, allow_wire=("fp16", "bf16")),
        "no wire": dcomm.torch.recommend(model, comm, allow_wire=()),
        "ddp": dcomm.torch.recommend(ddp),
    }
    comm.close()
    return {
        "real": sorted(set(real[-2]), reverse=True),
        "ddp": [verdict.count for verdict in answers["ddp"].verdicts],
        "tried": {name: list(found.verdicts[0].times_ms) for name, found in answers.items()},
        "texts": {name: str(found) for name, found in answers.items()},
    }


def run(rank: int, world_size: int, folder: str, cases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Everything in one launch: importing torch twice takes longer."""
    start(rank, world_size, folder)
    found = {}
    for name, case in cases.items():
        with with_times(case["times"]):
            found[name] = train(rank, case["hook"], case["views"])
    found["ask"] = ask(rank, world_size)
    stop()
    return found
