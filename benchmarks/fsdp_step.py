"""Measures what FSDP2 gains where the "dcomm" process group allocates its buffers, beside gloo.

    python benchmarks/fsdp_step.py --json benchmarks/results/fsdp_step.json

collectives  all_gather_into_tensor in place and reduce_scatter_tensor (float32, sum) of what FSDP2 sends at a time:
             "direct", of tensors of the group's allocate_tensor; "staged", of ordinary ones, through slots; gloo.
step         forward, backward and AdamW of layers Linear(1024), each sharded by itself (fully_shard), with and without
             set_allocate_memory_from_process_group_for_comm(True), and on gloo.

A round measures all of them in turn; its time is the median of the calls on the slowest rank. Every result is checked,
and that "direct" was direct and "staged" was not. Exit status: 0; 1 wrong values, the wrong way, or a rank failed.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch_backend import slowest

from dcomm.bench.machine import describe

WAYS = ("direct", "staged", "gloo")
WIDTH = 1024


class Group:
    """One way of doing it: a process group of its own, and where its buffers come from."""

    def __init__(self, way: str, ranks: int) -> None:
        self.way = way
        self.group: Any = dist.new_group(list(range(ranks)), backend="gloo" if way == "gloo" else "dcomm")

    def tensor(self, count: int) -> torch.Tensor:
        if self.way != "direct":
            return torch.empty(count)
        tensor: torch.Tensor = self.group.allocate_tensor(count, dtype=torch.float32, device="cpu")
        return tensor

    def num_direct(self) -> int:
        return 0 if self.way == "gloo" else int(self.group.communicator.stats()["num_direct"])


def median_ms(call: Callable[[], Any], prepare: Callable[[], Any], calls: int) -> float:
    times = []
    for _ in range(calls + 1):
        prepare()
        dist.barrier()
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[1:])


def collectives(
    group: Group, nbytes: int
) -> dict[str, tuple[Callable[[], Any], Callable[[], Any], Callable[[], bool]]]:
    """By name: the call, what fills its arrays before, and whether its result is right."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    block = nbytes // 4 // world_size
    whole, part = group.tensor(block * world_size), torch.empty(block)
    own = whole[rank * block : (rank + 1) * block]
    total = float(sum(range(1, world_size + 1)))
    return {
        "all_gather": (
            lambda: dist.all_gather_into_tensor(whole, own, group=group.group),
            lambda: own.fill_(rank + 1),
            lambda: whole[::block].tolist() == [peer + 1.0 for peer in range(world_size)],
        ),
        "reduce_scatter": (
            lambda: dist.reduce_scatter_tensor(part, whole, group=group.group),
            lambda: whole.fill_(rank + 1),
            lambda: bool((part == total).all()),
        ),
    }


def fsdp_step(group: Group, layers: int) -> Callable[[], Any]:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = DeviceMesh.from_group(group.group, "cpu")
    torch.manual_seed(1)
    model = torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH) for _ in range(layers)))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_allocate_memory_from_process_group_for_comm(group.way == "direct")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    x = torch.randn(64, WIDTH)

    def step() -> None:
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(args: argparse.Namespace) -> dict[str, Any]:
    groups = [Group(way, args.ranks) for way in WAYS]
    calls = {group.way: {mib: collectives(group, int(mib * 2**20)) for mib in args.mib} for group in groups}
    steps = {group.way: fsdp_step(group, args.layers) for group in groups}
    found: dict[str, dict[str, list[float]]] = {}

    def note(what: str, group: Group, ms: float, before: int) -> None:
        found.setdefault(what, {}).setdefault(group.way, []).append(ms)
        if (group.num_direct() > before) != (group.way == "direct"):
            raise RuntimeError(f"{what}, {group.way}: {group.num_direct() - before} operations were direct")

    for number in range(args.rounds):
        for mib in args.mib:
            for name in ("all_gather", "reduce_scatter"):
                for group in groups:
                    call, prepare, is_right = calls[group.way][mib][name]
                    before = group.num_direct()
                    ms = median_ms(call, prepare, args.calls)
                    if not is_right():
                        raise RuntimeError(f"{name} of {mib} MiB, {group.way}: wrong values")
                    note(f"{name} of {mib:g} MiB", group, ms, before)
        for group in groups:
            before = group.num_direct()
            ms = median_ms(steps[group.way], lambda: None, args.steps)
            if number or args.rounds == 1:  # the first one also makes FSDP2's state
                note(f"step of {args.layers} layers", group, ms, before)
    return found


def run_rank(rank: int, args: argparse.Namespace, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", args.ranks)
    timeout = timedelta(seconds=args.seconds)
    dist.init_process_group("dcomm", store=store, rank=rank, world_size=args.ranks, timeout=timeout)
    Path(folder, f"{rank}.json").write_text(json.dumps(measure(args)), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=15, help="of a collective in a round")
    parser.add_argument("--steps", type=int, default=5, help="training steps of a way in a round")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--mib", type=float, nargs="+", default=[1, 4, 16], help="of the whole tensors")
    parser.add_argument("--seconds", type=float, default=60, help="the groups' timeout")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="fsdp-step-") as folder:
        try:
            torch.multiprocessing.spawn(run_rank, (args, folder), nprocs=args.ranks)
        except (torch.multiprocessing.ProcessRaisedException, torch.multiprocessing.ProcessExitedException) as error:
            print(error, file=sys.stderr)
            return 1
        ranks = [json.loads(Path(folder, f"{rank}.json").read_text(encoding="utf-8")) for rank in range(args.ranks)]
    found = slowest(ranks)
    rows = [{"what": what, **{way: round(statistics.median(ms[way]), 3) for way in WAYS}} for what, ms in found.items()]
    command = shlex.join(["python", "benchmarks/fsdp_step.py", *(sys.argv[1:] if argv is None else argv)])
    report = describe(command, {"torch": torch.__version__}, "") | {"ranks": args.ranks, "rows": rows, "rounds": found}
    for row in rows:
        print(f"{row['what']:28}" + "".join(f"{way:>8} {row[way]:9.3f} ms" for way in WAYS))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
