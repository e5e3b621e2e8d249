"""What travels in a training step of each kind of parallelism: dcomm's own counters against the formula.

    python benchmarks/communication_volume.py --json benchmarks/results/communication_volume.json

Models of feed-forward blocks on the "dcomm" backend, one step after two to warm up; bytes that a rank puts on the wire,
the mean of all ranks. Formulas: docs/parallelism.md. Exit status: 0; 1 a rank failed; 2 a measured volume is more than
2% away from its formula.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from dcomm.bench.machine import describe
from dcomm.torch import process_group

WIDTH, HIDDEN, BLOCKS, ROWS, MICROBATCHES = 256, 1024, 4, 512, 4
NEAR = 0.02

Step = Callable[[], None]


class Block(nn.Module):
    """A feed-forward block without biases, so that formulas are short."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(x)))


def blocks(number: int = BLOCKS) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(*(Block() for _ in range(number)))


def step_of(model: nn.Module) -> Step:
    x = torch.randn(ROWS, WIDTH, requires_grad=True)

    def step() -> None:
        model(x).square().mean().backward()
        model.zero_grad(set_to_none=True)

    return step


def data_parallel() -> Step:
    return step_of(nn.parallel.DistributedDataParallel(blocks(), bucket_cap_mb=4))


def sharded() -> Step:
    from torch.distributed.fsdp import fully_shard

    model = blocks()
    for block in model:
        fully_shard(block)
    return step_of(fully_shard(model))


def tensor_parallel() -> Step:
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    model = blocks()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model:
        parallelize_module(block, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    return step_of(model)


def pipeline() -> Step:
    from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

    rank, size = dist.get_rank(), dist.get_world_size()
    stage = PipelineStage(blocks(BLOCKS // size), rank, size, torch.device("cpu"))
    schedule = ScheduleGPipe(stage, n_microbatches=MICROBATCHES, loss_fn=lambda out, _: out.square().mean())
    x = torch.randn(ROWS, WIDTH)

    def step() -> None:
        schedule.step(*([x] if rank == 0 else []), **({"target": x} if rank == size - 1 else {}))
        stage.submod.zero_grad(set_to_none=True)

    return step


def hybrid() -> Step:
    """Data parallel (FSDP2) over one half of the mesh, tensor parallel over the other."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    mesh = init_device_mesh("cpu", (dist.get_world_size() // 2, 2), mesh_dim_names=("dp", "tp"))
    model = blocks()
    for block in model:
        parallelize_module(block, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
        fully_shard(block, mesh=mesh["dp"])
    return step_of(fully_shard(model, mesh=mesh["dp"]))


def expected_bytes(kind: str, n: int) -> float:
    """Per rank and step. P: bytes of the parameters, A: of a block's activations."""
    parameters = 4.0 * BLOCKS * 2 * WIDTH * HIDDEN
    activations = 4.0 * ROWS * WIDTH
    share = (n - 1) / n
    half = (n // 2 - 1) / (n // 2) if n > 2 else 0.0
    return {
        "data": 2 * share * parameters,
        "sharded": 3 * share * parameters,
        "tensor": BLOCKS * 2 * 2 * share * activations,
        "pipeline": 2 * share * activations,
        "hybrid": 3 * half * parameters / 2 + BLOCKS * 2 * 2 * 0.5 * activations,
    }[kind]


KINDS: dict[str, tuple[int, str, Callable[[], Step]]] = {
    "data": (2, "DDP: gradients reduced", data_parallel),
    "data, 4 ranks": (4, "DDP: gradients reduced", data_parallel),
    "sharded": (2, "FSDP2: parameters gathered twice, gradients scattered", sharded),
    "tensor": (2, "tensor parallel: activations reduced once forward, once backward", tensor_parallel),
    "pipeline": (2, "pipeline: activations sent forward, their gradients back", pipeline),
    "hybrid": (4, "FSDP2 over 2 x tensor parallel over 2", hybrid),
}


def sent_bytes() -> int:
    groups = list(process_group._live)
    return sum(comm.stats()["num_sent_bytes"] for group in groups for comm in (group._comm, group._messages))


def run_rank(rank: int, kind: str, folder: str) -> None:
    torch.set_num_threads(1)
    world_size, _, make = KINDS[kind]
    store = dist.FileStore(f"{folder}/store", world_size)
    dist.init_process_group("dcomm", store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=60))
    step = make()
    for _ in range(2):
        step()
    dist.barrier()
    before = sent_bytes()
    step()
    sent = sent_bytes() - before
    dist.barrier()
    Path(folder, f"{rank}.json").write_text(json.dumps(sent), encoding="utf-8")
    dist.destroy_process_group()


def measure(kind: str) -> dict[str, Any]:
    world_size, text, _ = KINDS[kind]
    with tempfile.TemporaryDirectory(prefix="communication-volume-") as folder:
        torch.multiprocessing.spawn(run_rank, (kind, folder), nprocs=world_size)
        sent = [json.loads(Path(folder, f"{rank}.json").read_text(encoding="utf-8")) for rank in range(world_size)]
    expected = expected_bytes(kind.partition(",")[0], world_size)
    measured = sum(sent) / world_size
    return {
        "kind": kind,
        "ranks": world_size,
        "what": text,
        "measured_bytes": measured,
        "expected_bytes": expected,
        "by_rank": sent,
        "near": abs(measured - expected) <= NEAR * expected,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kinds", default=";".join(KINDS), help="separated by ';'")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    try:
        rows = [measure(kind) for kind in args.kinds.split(";")]
    except (torch.multiprocessing.ProcessRaisedException, torch.multiprocessing.ProcessExitedException) as error:
        print(error, file=sys.stderr)
        return 1
    command = shlex.join(["python", "benchmarks/communication_volume.py", *(sys.argv[1:] if argv is None else argv)])
    report = describe(command, {"torch": torch.__version__}, "") | {"volumes": rows}
    for row in rows:
        ratio = row["measured_bytes"] / row["expected_bytes"]
        print(
            f"{row['kind']:16}{row['measured_bytes'] / 1e6:10.3f} MB, formula {row['expected_bytes'] / 1e6:10.3f}, "
            f"ratio {ratio:.4f}"
        )
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0 if all(row["near"] for row in rows) else 2


if __name__ == "__main__":
    sys.exit(main())
