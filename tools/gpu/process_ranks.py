"""Rank processes of processes.py, all on one GPU."""

from __future__ import annotations

import os
import time
from typing import Any

import torch
from rank_main import error_of, mark

import dcomm

COUNTS = {"one_shot": 2048, "two_shot": 1 << 18}  # of float32
MESSAGE_COUNTS = (0, 1000, 1 << 20)  # of float32: the last is more than the slots of a pair hold
# The ranks wait for each other so often in an operation, each time for the GPU to turn to another process.
HANDOFFS = {"one_shot": 1, "two_shot": 2}


def handoffs(rank: int, world_size: int, num_operations: int) -> dict[str, Any]:
    """Results against the host executor's, and the time of an operation."""
    found: dict[str, Any] = {}
    torch.ones(8, device="cuda").sum().item()  # the context is made before the clock starts
    with dcomm.init(rank=rank, world_size=world_size) as comm:
        for algo, count in COUNTS.items():
            x = torch.randn(count, generator=torch.Generator().manual_seed(rank))
            expected = comm.all_reduce(x.clone(), algo=algo)
            mine = x.cuda()
            out = torch.empty_like(mine)

            def call(mine: torch.Tensor = mine, out: torch.Tensor = out, algo: str = algo) -> None:
                comm.all_reduce(mine, out=out, algo=algo)

            def num_wrong(out: torch.Tensor = out, expected: torch.Tensor = expected) -> int:
                return int(torch.count_nonzero(out.cpu().view(torch.int32) != expected.view(torch.int32)))

            comm.barrier()
            start = time.perf_counter()
            call()
            torch.cuda.synchronize()
            first_ms = 1e3 * (time.perf_counter() - start)
            comm.barrier()
            start = time.perf_counter()
            for _ in range(num_operations):
                call()
            torch.cuda.synchronize()
            elapsed_ms = 1e3 * (time.perf_counter() - start)
            wrong = num_wrong()
            for _ in range(num_operations):  # looked at one by one
                out.fill_(float("nan"))
                call()
                wrong += num_wrong()
            ms = elapsed_ms / num_operations
            found[algo] = {
                "num_wrong": wrong,
                "first_ms": round(first_ms, 3),
                "ms_per_operation": round(ms, 4),
                "ms_per_handoff": round(ms / HANDOFFS[algo], 4),
            }
        comm.barrier()
    return found


def messages(rank: int, world_size: int, num_operations: int) -> list[dict[str, Any]]:
    """Rank 0 and 1 play ping-pong: what comes back is what was sent, and the time of one way. Others look on."""
    found = []
    with dcomm.init(rank=rank, world_size=world_size) as comm:
        comm.all_reduce(torch.ones(8, device="cuda"))  # of all ranks: makes the windows
        for count in MESSAGE_COUNTS:
            sent = torch.randn(count, generator=torch.Generator().manual_seed(count))
            x = sent.cuda() if rank == 0 else torch.zeros(count, device="cuda")

            def ping_pong(x: torch.Tensor = x) -> None:
                if rank == 0:
                    comm.send(x, 1)
                    x.zero_()
                    comm.recv(x, 1)
                elif rank == 1:
                    comm.recv(x, 0)
                    comm.send(x, 0)

            ping_pong()
            torch.cuda.synchronize()
            comm.barrier()
            start = time.perf_counter()
            for _ in range(num_operations):
                ping_pong()
            torch.cuda.synchronize()
            ms = 1e3 * (time.perf_counter() - start) / (2 * num_operations)
            wrong = int(torch.count_nonzero(x.cpu() != sent)) if rank < 2 else 0
            found.append({"count": count, "num_wrong": wrong, "ms_per_message": round(ms, 4)})
        comm.barrier()
    return found


def killed(rank: int, world_size: int) -> dict[str, Any]:
    """Rank 1 waits to be killed; the others wait for it on the GPU."""
    with dcomm.init(rank=rank, world_size=world_size) as comm:
        x = torch.ones(1 << 18, device="cuda")
        comm.all_reduce(x)
        torch.cuda.synchronize()
        if rank == 1:
            mark("ready")
            time.sleep(120)
            return {}

        def wait() -> None:
            comm.all_reduce(x, timeout=30)
            mark("ready")
            torch.cuda.synchronize()  # until the kernel has given up
            comm.all_reduce(x, timeout=30)

        error = error_of(wait)
        total = float(torch.ones(1000, device="cuda").sum())
        torch.cuda.synchronize()
        return {**error, "next_call_works": total == 1000, "pid": os.getpid()}
