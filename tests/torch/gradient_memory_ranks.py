"""Rank processes of test_gradient_memory.py: what DDP's gradients are, and where, with memory that is used again."""

# No `from __future__ import annotations`: DDP compares the annotations of hooks with the classes themselves.
import contextlib
import copy
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

sys.path.append(str(Path(__file__).parent))
from hook_ranks import start, stop
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import dcomm.torch
from dcomm.torch import gradient_memory
from dcomm.torch.bucket_memory import BucketMemory

NUM_STEPS = 8


class Model(torch.nn.Module):
    """Gradients of 64 KiB and more, one of them channels_last, and a branch that a step can leave out."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(64, 64, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
        self.first = torch.nn.Linear(64, 600)
        self.branch = torch.nn.Linear(600, 600)

    def forward(self, x: torch.Tensor, use_branch: bool = True) -> torch.Tensor:
        h = torch.tanh(self.first(self.convolution(x).mean((2, 3))))
        return self.branch(h) if use_branch else h


class Checkpointed(Model):
    """Whose branch is computed again by a backward pass inside the backward pass."""

    def forward(self, x: torch.Tensor, use_branch: bool = True) -> torch.Tensor:
        h = torch.tanh(self.first(self.convolution(x).mean((2, 3))))
        return checkpoint(self.branch, h, use_reentrant=True)


class Pair:
    """A model under DDP alone and its copy with the hook, fed alike; `equal` tells whether all gradients were.

    With a half-precision wire the first has the hook, too, without reuse: DDP alone would have other bits.
    """

    def __init__(
        self, rank: int, dtype: torch.dtype, settings: dict[str, Any], ddp: dict[str, Any], model: type[Model]
    ) -> None:
        plain = model().to(dtype)
        self.models = [plain, copy.deepcopy(plain)]
        self.ddps = [DistributedDataParallel(model, bucket_cap_mb=0.5, **ddp) for model in self.models]
        self.state = dcomm.torch.HookState(**settings)
        self.ddps[1].register_comm_hook(self.state, dcomm.torch.all_reduce_hook)
        self.other_state: Any = None
        if "wire_dtype" in settings:
            self.other_state = dcomm.torch.HookState(**settings | {"reuse_gradients": False})
            self.ddps[0].register_comm_hook(self.other_state, dcomm.torch.all_reduce_hook)
        self.generator = torch.Generator().manual_seed(rank)
        self.dtype = dtype
        self.equal = True

    def step(self, *, zero: bool = True, sync: bool = True, use_branch: bool = True) -> None:
        x = torch.randn(2, 64, 5, 5, generator=self.generator).to(self.dtype)
        for model, ddp in zip(self.models, self.ddps, strict=True):
            if zero:
                model.zero_grad()
            with contextlib.nullcontext() if sync else ddp.no_sync():
                ddp(x, use_branch).pow(2).mean().backward()
        self.check()

    def check(self) -> None:
        for expected, found in zip(self.models[0].parameters(), self.models[1].parameters(), strict=True):
            same = expected.grad is found.grad if expected.grad is None else torch.equal(expected.grad, found.grad)
            self.equal = self.equal and same and (found.grad is None or found.grad.stride() == expected.grad.stride())

    @property
    def weight(self) -> torch.Tensor:
        return self.models[1].branch.weight


def reuse(rank: int, pair: Pair) -> dict[str, Any]:
    places = []
    large = [p for p in pair.models[1].parameters() if p.numel() * p.element_size() >= gradient_memory._LEAST_BYTES]
    for _ in range(NUM_STEPS):
        pair.step()
        kept = [torch.empty(p.shape, dtype=pair.dtype) for p in large]  # what freed gradients would make room for
        places.append([p.grad.data_ptr() for p in large])
        del kept
    known = pair.state._gradients._known.values()
    results = [bucket.result for bucket in known if bucket.result is not None]
    in_results = sum(len(result.holders) for result in results)
    for _ in range(2):
        pair.step(zero=False)
    pair.state.close()
    before = pair.weight.grad.clone()
    survives_close = torch.equal(before, pair.weight.grad)
    return {
        "in_results": in_results,
        "has_results": bool(results),
        "same_places": all(seen == places[-1] for seen in places[4:]),
        "survives_close": survives_close,
    }


def plain_steps(rank: int, pair: Pair) -> dict[str, Any]:
    for _ in range(NUM_STEPS):
        pair.step()
    return {}


def uneven(rank: int, pair: Pair, keep: bool) -> dict[str, Any]:
    """Rank 1 has more steps (DDP's join); rank 0 stands in for it with zeros, outside of any backward pass."""
    inputs = [torch.randn(2, 64, 5, 5, generator=pair.generator) for _ in range(NUM_STEPS + 4 * rank)]
    runs: list[list[torch.Tensor]] = []
    unchanged = True
    for model, ddp in zip(pair.models, pair.ddps, strict=True):
        runs.append([])
        with ddp.join():
            for x in inputs:
                model.zero_grad()
                ddp(x).pow(2).mean().backward()
                runs[-1] += [p.grad.clone() for p in model.parameters()]
            held = [p.grad for p in model.parameters()] if keep else []
            copies = [grad.clone() for grad in held]
            if not keep:
                model.zero_grad()
        unchanged = unchanged and all(torch.equal(a, b) for a, b in zip(held, copies, strict=True))
    return {"unchanged": unchanged, "same": all(torch.equal(a, b) for a, b in zip(*runs, strict=True))}


def moved(rank: int, pair: Pair) -> dict[str, Any]:
    """DDP moves its buckets on rank 1, or so it seems: what was registered there is other memory."""
    register = BucketMemory._register
    if rank == 1:
        BucketMemory._register = lambda self, known, tensor: register(self, known, tensor.clone())  # type: ignore[method-assign]
    found = reuse(rank, pair)
    BucketMemory._register = register  # type: ignore[method-assign]
    return found


def hold(rank: int, pair: Pair) -> dict[str, Any]:
    """Gradients of earlier steps that a program keeps, in four ways."""
    ways = [lambda g: g, lambda g: g.detach(), lambda g: g[3:5].T, lambda g: g.numpy()]
    held, copies = [], []
    for step in range(2 * NUM_STEPS):
        pair.step()
        if (step // 2 + rank) % 4 != 0:  # now on one rank only, now on both, now on none
            held.append(ways[step % len(ways)](pair.weight.grad))
            copies.append(copy.deepcopy(held[-1]))
        if step % 5 == 4:
            assert all(bool((a == b).all()) for a, b in zip(held, copies, strict=True))
            held.clear()
            copies.clear()
    for _ in range(4):
        pair.step()
    return {"unchanged": all(bool((a == b).all()) for a, b in zip(held, copies, strict=True))}


def own_buffers(rank: int, pair: Pair) -> dict[str, Any]:
    """p.grad are views of a program's own flat buffer, or a tensor that it keeps."""
    for _ in range(3):
        pair.step()
    flat = torch.zeros(pair.weight.numel() + 5)
    bias = pair.models[1].first.weight
    mine = torch.zeros_like(bias)
    for _ in range(3):
        pair.models[1].zero_grad()
        flat.zero_()
        mine.zero_()
        pair.weight.grad = flat[5:].view(pair.weight.shape)
        bias.grad = mine
        pair.models[0].zero_grad()
        pair.step(zero=False)
    inside = pair.weight.grad.untyped_storage().data_ptr() == flat.data_ptr()
    return {"inside": inside and bias.grad is mine and bool(mine.any())}


def passes(rank: int, pair: Pair) -> dict[str, Any]:
    """Accumulation, and a parameter that no rank uses in the pass that reduces: DDP leaves its gradient alone."""
    for _ in range(3):
        pair.step()
        pair.step(zero=False, sync=False)
        pair.step(zero=False)
        pair.step(sync=False)
        pair.step(zero=False, use_branch=False)
        for model in pair.models:
            model.branch.weight.grad = 2 * model.branch.weight.grad  # unlike the memory lent last
        before = pair.weight.grad.clone()
        pair.step(zero=False, use_branch=False)
        assert torch.equal(before, pair.weight.grad)
    return {}


def run(rank: int, world_size: int, folder: str, cases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    start(rank, world_size, folder)
    gradient_memory._LEAST_BYTES = 64 * 1024  # small models will do
    results = {}
    for name, case in cases.items():
        dtype = getattr(torch, case.get("dtype", "float32"))
        settings = case.get("settings", {}) | (case.get("rank1", {}) if rank == 1 else {})
        pair = Pair(rank, dtype, settings, case.get("ddp", {}), globals()[case.get("model", "Model")])
        results[name] = globals()[case["what"]](rank, pair, **case.get("args", {})) | {"equal": pair.equal}
        dist.barrier()
        pair.state.close()
        if pair.other_state is not None:
            pair.other_state.close()
    stop()
    return results
