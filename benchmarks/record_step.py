"""Records what happens when in one training step with GradientSynchronizer; tools/draw_step.py draws it.

python benchmarks/record_step.py --overlap --json benchmarks/results/bucketing_step.json
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from step_models import WORKLOADS

import dcomm
import dcomm.torch
from dcomm.bench.core_state import probe
from dcomm.bench.machine import describe


def run_rank(rank: int, args: argparse.Namespace, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", store, rank=rank, world_size=args.ranks, timeout=timedelta(seconds=60))
    comm = dcomm.init(rank=rank, world_size=args.ranks, store=dist.distributed_c10d._get_default_store())
    workload = WORKLOADS[args.workload]
    torch.manual_seed(0)
    model = workload.model()
    sync = dcomm.torch.GradientSynchronizer(
        model, comm, overlap=args.overlap, record_events=True, bucket_bytes=args.bucket_bytes
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=workload.lr)
    batch = workload.batch(rank)
    for _ in range(args.steps):
        dist.barrier()
        sync.mark("forward")
        loss = workload.loss(model, batch)
        sync.mark("backward")
        loss.backward()
        sync.finish()
        optimizer.step()
        optimizer.zero_grad()
    Path(folder, f"{rank}.json").write_text(json.dumps(sync.timeline()), encoding="utf-8")
    sync.close()
    comm.close()
    dist.destroy_process_group()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--overlap", action="store_true", help="reduce beside backward, whatever CPUs there are")
    add("-n", "--ranks", type=int, default=2, help="rank processes")
    add("--workload", choices=WORKLOADS, default="mlp")
    add("--bucket-bytes", type=int, default=4 << 20)
    add("--steps", type=int, default=8, help="the last one is kept")
    add("--json", type=Path, required=True, metavar="FILE")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="record-step-") as folder:
        mp.spawn(run_rank, (args, folder), nprocs=args.ranks)
        events = [json.loads(Path(folder, f"{rank}.json").read_text(encoding="utf-8")) for rank in range(args.ranks)]
    begin = min(event[0] for mine in events for event in mine)
    for mine in events:
        for event in mine:
            event[0] -= begin  # nanoseconds of one clock: the ranks are on one host
    report = describe(
        shlex.join(["python", "benchmarks/record_step.py", *sys.argv[1:]]), {"torch": torch.__version__}, ""
    )
    report |= {"title": WORKLOADS[args.workload].title, "state": probe().name, "events": events}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
