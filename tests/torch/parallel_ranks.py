"""Rank processes of test_backend_parallel.py: what PyTorch builds on a process group, run on any backend.

Every case trains for a few steps with fixed numbers and returns losses and weights, to be compared between backends.
"""

# No `from __future__ import annotations`: DDP compares the annotations of hooks with the classes themselves.
import copy
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn.parallel import DistributedDataParallel

import dcomm.torch

Tensors = dict[str, torch.Tensor]
STEPS = 3
WIDTH = 32


class Block(nn.Module):
    """A feed-forward block with a residual, as transformers have."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Net(nn.Module):
    """Blocks in a row."""

    def __init__(self, num_blocks: int = 4) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.blocks = nn.Sequential(*(Block() for _ in range(num_blocks)))
        self.head = nn.Linear(WIDTH, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(x))


class Branches(nn.Module):
    """A layer that a step may leave unused, and a buffer that is averaged."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.first = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.sides = nn.ModuleList(nn.Linear(WIDTH, 8) for _ in range(2))

    def forward(self, x: torch.Tensor, side: int = 0) -> torch.Tensor:
        return self.sides[side](torch.relu(self.norm(self.first(x))))


def batch(step: int, index: int, rows: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * step + index)
    x = torch.randn(rows, WIDTH, generator=generator)
    return x, torch.randint(0, 8, (rows,), generator=generator)


def full(tensor: torch.Tensor) -> torch.Tensor:
    from torch.distributed.tensor import DTensor

    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.detach().clone()


def train(model: nn.Module, index: int, call: Callable[..., torch.Tensor] | None = None, steps: int = STEPS) -> Tensors:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for step in range(steps):
        x, target = batch(step, index)
        loss = F.cross_entropy(call(x, step) if call else model(x), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(full(loss))
    return {"losses": torch.stack(losses), **{name: full(value) for name, value in model.state_dict().items()}}


def ddp(rank: int, **options: Any) -> Tensors:
    return train(DistributedDataParallel(Net(), bucket_cap_mb=0.01, **options), rank)


def ddp_unused(rank: int) -> Tensors:
    model = DistributedDataParallel(Branches(), find_unused_parameters=True)
    return train(model, rank, lambda x, step: model(x, side=step % 2))


def ddp_hook(rank: int, name: str) -> Tensors:
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook

    model = DistributedDataParallel(Net(), bucket_cap_mb=0.01 if name != "power_sgd" else 25)
    if name == "power_sgd":
        state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=2, start_powerSGD_iter=2)
        model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    elif name == "dcomm":
        model.register_comm_hook(dcomm.torch.HookState(), dcomm.torch.all_reduce_hook)
    else:
        theirs = getattr(default_hooks, f"{name}_compress_hook")

        # Under its own name torch takes the bfloat16 one with NCCL only.
        def compress(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
            return theirs(state, bucket)

        model.register_comm_hook(None, compress)
    return train(model, rank, steps=5)


def ddp_join(rank: int) -> Tensors:
    """Ranks with other numbers of batches."""
    model = DistributedDataParallel(Net())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with model.join():
        for step in range(2 + rank):
            x, target = batch(step, rank)
            F.cross_entropy(model(x), target).backward()
            optimizer.step()
            optimizer.zero_grad()
    return {name: full(value) for name, value in model.state_dict().items()}


def zero(rank: int) -> Tensors:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = DistributedDataParallel(Net())
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, lr=1e-2)
    for step in range(STEPS):
        x, target = batch(step, rank)
        F.cross_entropy(model(x), target).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: full(value) for name, value in model.state_dict().items()}


def fsdp(rank: int, mesh: DeviceMesh | None = None, mixed: bool = False) -> Tensors:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    model = Net()
    options: dict[str, Any] = {"mesh": mesh} if mesh is not None else {}
    if mixed:
        options["mp_policy"] = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for block in model.blocks:
        fully_shard(block, **options)
    fully_shard(model, **options)
    result = train(model, rank, lambda x, _: model(x).float())
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    return result | {"norm": full(norm)}


def plan_of(sequence: bool) -> Callable[[Block, DeviceMesh], None]:
    from torch.distributed.tensor import Shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        SequenceParallel,
        parallelize_module,
    )

    def apply(block: Block, mesh: DeviceMesh) -> None:
        if sequence:
            plan: dict[str, Any] = {
                "norm": SequenceParallel(sequence_dim=0),
                "up": ColwiseParallel(input_layouts=Shard(0)),
                "down": RowwiseParallel(output_layouts=Shard(0), use_local_output=False),
            }
        else:
            plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
        parallelize_module(block, mesh, plan)

    return apply


def tensor_parallel(rank: int, mesh: DeviceMesh, sequence: bool = False, index: int = 0) -> Tensors:
    from torch.distributed.tensor import DTensor, Replicate, Shard

    model = Net(2)
    apply = plan_of(sequence)
    for block in model.blocks:
        apply(block, mesh)

    def forward(x: torch.Tensor, _: int) -> torch.Tensor:
        if not sequence:
            return model(x)
        hidden = DTensor.from_local(x, mesh, [Replicate()]).redistribute(mesh, [Shard(0)])
        return model.head(model.blocks(hidden).full_tensor())

    return train(model, index, forward)


def hybrid(rank: int, mesh: DeviceMesh) -> Tensors:
    """FSDP2 over one dimension of the mesh, tensor parallelism over the other."""
    from torch.distributed.fsdp import fully_shard

    model = Net(2)
    apply = plan_of(False)
    for block in model.blocks:
        apply(block, mesh["tp"])
        fully_shard(block, mesh=mesh["dp"])
    fully_shard(model, mesh=mesh["dp"])
    return train(model, mesh["dp"].get_local_rank())


def pipeline(
    rank: int, name: str, mesh: DeviceMesh, tp: DeviceMesh | None = None, dp: DeviceMesh | None = None
) -> Tensors:
    """A pipeline over `mesh`, its blocks tensor-parallel over `tp`, its gradients averaged over `dp`."""
    from torch.distributed.pipelining import PipelineStage
    from torch.distributed.pipelining.schedules import Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B

    group = mesh.get_group()
    place, num_ranks = mesh.get_local_rank(), mesh.size()
    per_rank = 2 if name == "interleaved" else 1
    num_stages = num_ranks * per_rank
    parts = [list(each) for each in torch.tensor_split(torch.arange(4), num_stages)]
    net = Net(4)
    modules = []
    for index in range(place, num_stages, num_ranks):
        layers: list[nn.Module] = [net.blocks[int(i)] for i in parts[index]]
        if tp is not None:
            for layer in layers:
                plan_of(False)(layer, tp)  # type: ignore[arg-type]
        if index == num_stages - 1:
            layers.append(net.head)
        modules.append(nn.Sequential(*layers))
    stages = [
        PipelineStage(module, place + i * num_ranks, num_stages, torch.device("cpu"), group=group)
        for i, module in enumerate(modules)
    ]
    losses: list[torch.Tensor] = []
    make: Any = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B, "interleaved": ScheduleInterleaved1F1B}[name]
    schedule = make(stages if per_rank > 1 else stages[0], n_microbatches=4, loss_fn=F.cross_entropy)
    own = nn.ModuleList(modules)
    optimizer = torch.optim.SGD(own.parameters(), lr=1e-2)
    for step in range(STEPS):
        x, target = batch(step, dp.get_local_rank() if dp is not None else 0)
        inputs = (x,) if place == 0 else ()
        last = {"target": target, "losses": losses} if place == num_ranks - 1 else {}
        schedule.step(*inputs, **last)
        if dp is not None:
            for parameter in own.parameters():
                grad = parameter.grad
                assert grad is not None
                dist.all_reduce(grad.to_local() if hasattr(grad, "to_local") else grad, group=dp.get_group())
        optimizer.step()
        optimizer.zero_grad()
    result = {f"{place}.{key}": full(value) for key, value in own.state_dict().items()}
    if losses:
        result["losses"] = torch.stack(losses).detach()
    return result


def checkpoint(rank: int, folder: str) -> Tensors:
    """Save a sharded model, and load it into another one."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
    from torch.distributed.fsdp import fully_shard

    saved, loaded = fully_shard(Net()), fully_shard(Net())
    train(saved, rank)
    dcp.save({"model": get_model_state_dict(saved)}, checkpoint_id=f"{folder}/checkpoint")
    state = {"model": get_model_state_dict(loaded)}
    dcp.load(state, checkpoint_id=f"{folder}/checkpoint")
    set_model_state_dict(loaded, state["model"])
    for one, other in zip(saved.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(full(one), full(other))
    return {name: full(value) for name, value in loaded.state_dict().items()}


def functional(rank: int, compiled: bool) -> Tensors:
    """Functional collectives, as they are and under torch.compile."""
    import torch.distributed._functional_collectives as funcol

    group = dist.group.WORLD
    size = dist.get_world_size()

    def chain(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        total = funcol.all_reduce(x, "sum", group)
        gathered = funcol.all_gather_tensor(total + x, 0, group)
        scattered = funcol.reduce_scatter_tensor(gathered * 2, "avg", 0, group)
        exchanged = funcol.all_to_all_single(gathered, None, None, group)
        return total, gathered, scattered, exchanged

    run = torch.compile(chain, fullgraph=True) if compiled else chain
    x = torch.arange(4.0 * size) + rank
    names = ("total", "gathered", "scattered", "exchanged")
    return {name: full(value) for name, value in zip(names, run(x), strict=True)}


def compiled_ddp(rank: int) -> Tensors:
    model = DistributedDataParallel(Net(2))
    step = torch.compile(model, backend="aot_eager")
    return train(model, rank, lambda x, _: step(x))


def local_sgd(rank: int) -> Tensors:
    """A group for each half of the ranks, and the model averaged over all."""
    from torch.distributed.algorithms.model_averaging import averagers

    model = Net()
    result = train(model, rank)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)  # those without a gradient are left out
    averagers.PeriodicModelAverager(period=1, warmup_steps=0).average_parameters(model.parameters())
    return result | {name: full(value) for name, value in model.state_dict().items()}


def case_of(name: str, rank: int, folder: str) -> Tensors:
    world_size = dist.get_world_size()

    def flat() -> DeviceMesh:
        return init_device_mesh("cpu", (world_size,))

    def two() -> DeviceMesh:
        return init_device_mesh("cpu", (world_size // 2, 2), mesh_dim_names=("dp", "tp"))

    def three(dp: int, tp: int, pp: int, schedule: str) -> Tensors:
        mesh = init_device_mesh("cpu", (dp, pp, tp), mesh_dim_names=("dp", "pp", "tp"))
        return pipeline(rank, schedule, mesh["pp"], mesh["tp"], mesh["dp"])

    cases: dict[str, Callable[[], Tensors]] = {
        "ddp": lambda: ddp(rank),
        "ddp static": lambda: ddp(rank, static_graph=True),
        "ddp views": lambda: ddp(rank, gradient_as_bucket_view=True),
        "ddp unused": lambda: ddp_unused(rank),
        "ddp join": lambda: ddp_join(rank),
        "ddp fp16": lambda: ddp_hook(rank, "fp16"),
        "ddp bf16": lambda: ddp_hook(rank, "bf16"),
        "ddp power_sgd": lambda: ddp_hook(rank, "power_sgd"),
        "ddp dcomm hook": lambda: ddp_hook(rank, "dcomm"),
        "ddp compiled": lambda: compiled_ddp(rank),
        "zero": lambda: zero(rank),
        "local sgd": lambda: local_sgd(rank),
        "fsdp": lambda: fsdp(rank),
        "fsdp mixed": lambda: fsdp(rank, mixed=True),
        "hsdp": lambda: fsdp(rank, two()),
        "tp": lambda: tensor_parallel(rank, flat()),
        "tp sequence": lambda: tensor_parallel(rank, flat(), sequence=True),
        "dp x tp": lambda: hybrid(rank, two()),
        "pp gpipe": lambda: pipeline(rank, "gpipe", flat()),
        "pp 1f1b": lambda: pipeline(rank, "1f1b", flat()),
        "pp interleaved": lambda: pipeline(rank, "interleaved", flat()),
        "dp x pp": lambda: three(2, 1, world_size // 2, "gpipe"),
        "tp x pp": lambda: three(1, 2, world_size // 2, "1f1b"),
        "dp x tp x pp": lambda: three(2, 2, world_size // 4, "1f1b"),
        "checkpoint": lambda: checkpoint(rank, folder),
        "functional": lambda: functional(rank, compiled=False),
        "functional compiled": lambda: functional(rank, compiled=True),
    }
    return cases[name]()


def run(rank: int, world_size: int, folder: str, backend: str, cases: list[str]) -> Any:
    """Each case's tensors into a file; what it raised instead."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", world_size)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=60))
    results: dict[str, Tensors] = {}
    for name in cases:
        results[name] = copy.deepcopy(case_of(name, rank, folder))
        dist.barrier()
    torch.save(results, f"{folder}/{rank}.pt")
    calls = dist.group.WORLD._get_sequence_number_for_group() if backend == "dcomm" else 0
    dist.destroy_process_group()
    return calls
