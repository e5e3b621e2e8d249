"""Rank processes of test_cuda_process_messages.py, both on one GPU."""

from __future__ import annotations

from typing import Any

import torch
from rank_main import error_of

import dcomm


def messages(rank: int, world_size: int) -> int:
    """How many elements came wrong: of all lengths around packs and slots, of several dtypes, from 0 to 1 and back."""
    wrong = 0
    with dcomm.init(rank=rank, world_size=world_size) as comm:
        comm.all_reduce(torch.ones(8, device="cuda"))  # makes the windows
        for turn, count in enumerate((0, 1, 7, 1000, 65536 + 3, (4 << 20) + 5)):
            dtype = (torch.float32, torch.bfloat16, torch.int64, torch.uint8)[turn % 4]
            there, back = (torch.arange(count, device="cuda").add(i).to(dtype) for i in (3, 5))
            got = torch.zeros_like(there)
            if rank == 0:
                comm.send(there, 1, tag=turn)
                comm.recv(got, 1)
            else:
                comm.recv(got, 0, tag=turn)
                comm.send(back, 0)
            wrong += int(torch.count_nonzero(got != (back if rank == 0 else there)))
        comm.barrier()
    return wrong


def differ(rank: int, world_size: int) -> dict[str, Any]:
    """The tags do."""
    with dcomm.init(rank=rank, world_size=world_size) as comm:
        x = torch.ones(100_000, device="cuda")
        comm.all_reduce(x)
        torch.cuda.synchronize()
        comm.barrier()

        def go_on() -> None:
            if rank == 0:
                comm.send(x, 1)
            else:
                comm.recv(x, 0, tag=1)
            torch.cuda.synchronize()
            comm.all_reduce(x)
            torch.cuda.synchronize()
            comm.all_reduce(x)

        return error_of(go_on)
