"""Rank processes of test_backend_cuda.py and tests/gpu/test_backend_on_gpu.py: the "dcomm" backend with CUDA tensors.

library: that of the emulated GPU; None: the machine's own.
"""

# No `from __future__ import annotations`: as in hook_gpu_ranks.py.
import copy
import itertools
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

sys.path.append(str(Path(__file__).parent))
from backend_ranks import start
from hook_gpu_ranks import device_of, gpu, place
from hook_ranks import Branches

COUNT = 300


def full(library: str | None, value: float, num_blocks: int = 1, wide: bool = False) -> torch.Tensor:
    """wide: not contiguous."""
    if wide:
        return torch.full((num_blocks * COUNT, 2), float(value), device=device_of(library))[:, 0]
    return torch.full((num_blocks * COUNT,), float(value), device=device_of(library))


def one_round(rank: int, n: int, library: str | None, later: bool, wide: bool) -> list[str]:
    """Each kind of call once: what differs from the right values."""
    total = float(sum(range(n)))

    def make(value: float, num_blocks: int = 1) -> torch.Tensor:
        return full(library, value, num_blocks)

    def blocks(first: float, step: float = 1.0) -> torch.Tensor:
        return torch.cat([make(first + step * r) for r in range(n)])

    mine = full(library, rank, 1, wide)
    x, mean, y, root, share, got = (full(library, rank, 1, wide) for _ in range(6))
    parts = [full(library, 0, 1, wide) for _ in range(n)]
    whole, swapped, shares = make(0, n), make(0, n), make(0)
    how: dict[str, Any] = {"async_op": later}
    works = {
        "all_reduce": dist.all_reduce(x, **how),
        "avg": dist.all_reduce(mean, dist.ReduceOp.AVG, **how),
        "broadcast": dist.broadcast(y, n - 1, **how),
        "reduce": dist.reduce(root, 0, **how),
        "all_gather": dist.all_gather(parts, mine, **how),
        "all_gather_into_tensor": dist.all_gather_into_tensor(whole, mine, **how),
        "reduce_scatter": dist.reduce_scatter(share, [make(rank + r) for r in range(n)], **how),
        "reduce_scatter_tensor": dist.reduce_scatter_tensor(shares, blocks(rank), **how),
        "all_to_all_single": dist.all_to_all_single(swapped, blocks(10 * rank), **how),
    }
    wrong = [f"{name}: {work}" for name, work in works.items() if (work is not None) != later]
    works["send"] = dist.isend(mine, (rank + 1) % n)  # the first message of a group takes all ranks
    works["recv"] = dist.irecv(got, (rank - 1) % n)
    for work in works.values():
        if work is not None:
            work.wait()
    torch.cuda.current_stream().synchronize()
    for name, found, right in (
        ("all_reduce", x, make(total)),
        ("avg", mean, make(total / n)),
        ("broadcast", y, make(n - 1)),
        ("reduce", root, make(total if rank == 0 else rank)),
        ("all_gather", torch.cat(parts), blocks(0)),
        ("all_gather_into_tensor", whole, blocks(0)),
        ("reduce_scatter", share, make(total + n * rank)),
        ("reduce_scatter_tensor", shares, make(total + n * rank)),
        ("all_to_all_single", swapped, blocks(rank, 10)),
        ("message", got, make((rank - 1) % n)),
    ):
        if not torch.equal(found, right):
            wrong.append(f"{name} later={later} wide={wide}: {found[:2].tolist()} for {right[:2].tolist()}")
    return wrong


def collectives(rank: int, world_size: int, folder: str, library: str | None) -> list[str]:
    """Calls that are done at once and later, of contiguous tensors and of others."""
    start(rank, world_size, folder)
    wrong: list[str] = []
    with gpu(library):
        for later, wide in itertools.product((False, True), (False, True)):
            wrong += one_round(rank, world_size, library, later, wide)
    dist.destroy_process_group()
    return wrong


def beside(rank: int, world_size: int, folder: str, library: str, wide: bool) -> dict[str, Any]:
    """Emulated only. Rank 1's part is late: what rank 0's stream and host do meanwhile, and what they see later."""
    from emulated_gpu import EmulatedGpu
    from emulated_torch import torch_on
    from emulated_torch_streams import current, make_stream

    start(rank, world_size, folder)
    store = dist.FileStore(f"{folder}/told", world_size)
    device = EmulatedGpu(Path(library))
    device.library.emulated_process(3, -1, -1)
    with device.in_use(), torch_on(device, host_follows=False) as streams:
        stream, reader = make_stream(device), make_stream(device)
        with current(stream):
            warm = torch.zeros(4)
            dist.all_reduce(warm)
            stream.synchronize()
            memory = torch.full((COUNT, 2), rank + 1.0)
            x = memory[:, 0] if wide else memory.view(-1)
            seen, later, in_future = (torch.zeros_like(memory) for _ in range(3))
            word = stream.emulated.hold() if rank == 1 else None
            work = dist.all_reduce(x, async_op=True)
            future = work.get_future()
            found: dict[str, Any] = {"completed_at_once": work.is_completed()}
            if rank == 0:
                stream.emulated.copy(seen.numpy(), memory.numpy())
                stream.synchronize()  # no part of the operation has begun
                found["still_open"] = not work.is_completed()
            work.wait()
            stream.emulated.copy(later.numpy(), memory.numpy())
            reader.wait_stream(streams.completed[-1])  # as who waits for the future does
            reader.emulated.copy(in_future.numpy(), memory.numpy())
            store.set(f"waited/{rank}", "1")
            store.wait(["waited/0", "waited/1"])
            if word is not None:
                word.fill(1)
            stream.synchronize()
            future.wait()
            reader.synchronize()
            found |= {
                "seen": seen[0].tolist(),
                "later": later[0].tolist(),
                "future": in_future[0].tolist(),
                "on_side": streams.completed[-1] not in (None, stream),
                "completed": work.is_completed(),
                "success": work.is_success(),
            }
    dist.destroy_process_group()
    return found


def train(rank: int, world_size: int, folder: str, library: str | None) -> dict[str, Any]:
    """DDP without a hook on this backend, beside DDP on gloo with a copy of the model on the CPU."""
    start(rank, world_size, folder)
    gloo = dist.new_group(backend="gloo")
    same, worst = True, 0.0
    with gpu(library) as streams:
        plain = Branches()
        ours = DistributedDataParallel(place(copy.deepcopy(plain), library), bucket_cap_mb=0.01)
        theirs = DistributedDataParallel(plain, process_group=gloo, bucket_cap_mb=0.01)
        for step in range(3):
            x = torch.full((4, 33), float(rank + step))
            ours(x.to(device_of(library)), None).sum().backward()
            theirs(x, None).sum().backward()
            for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
                assert mine.grad is not None
                assert other.grad is not None
                same = same and torch.equal(mine.grad.cpu(), other.grad)
                worst = max(worst, float((mine.grad.cpu() - other.grad).abs().max()))
        found = {"same": same, "worst": worst}
        if streams is not None:
            found["num_futures"] = len(streams.completed)
            found["all_on_side"] = all(stream is not None for stream in streams.completed)
            found["num_launched"] = streams.gpu.num_launched
    dist.destroy_process_group()
    return found
