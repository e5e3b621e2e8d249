"""Rank processes of test_backend.py: torch.distributed over the "dcomm" backend, every value checked."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import dcomm.torch

sys.path.append(str(Path(__file__).parent))
import backend_rare

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INTEGERS = (torch.int8, torch.uint8, torch.int32, torch.int64)
COMPLEX = (torch.complex64, torch.complex128)
LOGICAL = (torch.bool,)
OTHERS = (torch.int16, torch.float8_e4m3fn)  # only moved
SHAPES: tuple[tuple[int, ...], ...] = ((), (0,), (1,), (3, 5), (40_000,))


def start(rank: int, world_size: int, folder: str, backend: str = "dcomm") -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", world_size)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=60))


def values(rank: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """What rank `rank` passes: small numbers, so that sums and products of every dtype are exact."""
    count = int(torch.Size(shape).numel())
    numbers = (torch.arange(count) * 7 + rank * 3) % 3 + (rank + 1) % 2
    if dtype.is_complex:
        return torch.complex(numbers.double(), (numbers + rank).double()).to(dtype).reshape(shape)
    return numbers.to(dtype).reshape(shape)


def layouts(make: Callable[[], torch.Tensor]) -> Iterator[torch.Tensor]:
    """A tensor as it is, and with other strides: every second element of a wider one, and transposed."""
    yield make()
    plain = make()
    if plain.dim():
        wide = torch.zeros(*plain.shape[:-1], 2 * plain.shape[-1], dtype=plain.dtype)
        wide[..., ::2] = plain
        yield wide[..., ::2]
    if plain.dim() == 2:
        yield plain.t().contiguous().t()


def same(got: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal bit for bit."""
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return False
    bits = [
        torch.tensor([], dtype=torch.uint8)
        if each.numel() == 0
        else torch.empty(each.numel(), dtype=each.dtype).copy_(each.reshape(-1)).view(torch.uint8)
        for each in (got, expected)
    ]
    return torch.equal(*bits)


class Check:
    """Counts comparisons and keeps what differed."""

    def __init__(self) -> None:
        self.count = 0
        self.wrong: list[str] = []

    def __call__(self, got: torch.Tensor, expected: torch.Tensor, *what: Any) -> None:
        self.count += 1
        if not same(got, expected):
            self.wrong.append(f"{what}: {got.reshape(-1)[:4].tolist()} for {expected.reshape(-1)[:4].tolist()}")


def finish(work: Any) -> None:
    if work is not None:
        work.wait()


OPS = {
    "SUM": (lambda xs: torch.stack(xs).sum(0, dtype=xs[0].dtype), (*FLOATS, *INTEGERS, *COMPLEX, *LOGICAL)),
    "AVG": (lambda xs: average(torch.stack(xs).sum(0, dtype=xs[0].dtype), len(xs)), (*FLOATS, *COMPLEX)),
    "PRODUCT": (lambda xs: torch.stack(xs).prod(0, dtype=xs[0].dtype), (*FLOATS, *INTEGERS, *LOGICAL)),
    "MIN": (lambda xs: torch.stack(xs).amin(0), (*FLOATS, *INTEGERS, *LOGICAL)),
    "MAX": (lambda xs: torch.stack(xs).amax(0), (*FLOATS, *INTEGERS, *LOGICAL)),
    "BAND": (lambda xs: itertools.accumulate(xs, torch.bitwise_and), (*INTEGERS, *LOGICAL)),
    "BOR": (lambda xs: itertools.accumulate(xs, torch.bitwise_or), (*INTEGERS, *LOGICAL)),
    "BXOR": (lambda xs: itertools.accumulate(xs, torch.bitwise_xor), (*INTEGERS, *LOGICAL)),
}


def average(total: torch.Tensor, count: int) -> torch.Tensor:
    if total.is_complex():  # by parts: torch's division of a complex number rounds otherwise
        return torch.view_as_complex(average(torch.view_as_real(total), count))
    return (total.double() / count).to(total.dtype)


def expected_of(op: str, xs: list[torch.Tensor]) -> torch.Tensor:
    result = OPS[op][0](xs)
    return result if isinstance(result, torch.Tensor) else list(result)[-1]


def reductions(rank: int, world_size: int, folder: str) -> Any:
    """all_reduce, reduce and reduce_scatter of every operation, dtype, shape, layout, now and later."""
    start(rank, world_size, folder)
    check = Check()
    for op, (_, dtypes) in OPS.items():
        torch_op = getattr(dist.ReduceOp, op)
        for dtype, shape, later in itertools.product(dtypes, SHAPES, (False, True)):
            xs = [values(peer, shape, dtype) for peer in range(world_size)]
            want = expected_of(op, xs)
            for x in layouts(lambda: values(rank, shape, dtype)):  # noqa: B023
                what = (op, dtype, shape, x.stride(), later)
                finish(dist.all_reduce(x, torch_op, async_op=later))
                check(x, want, "all_reduce", *what)
            x = values(rank, shape, dtype)
            root = world_size - 1
            finish(dist.reduce(x, root, torch_op, async_op=later))
            check(x, want if rank == root else values(rank, shape, dtype), "reduce", op, dtype, shape)
            if shape:
                rows = [
                    torch.cat([values(peer + block, shape, dtype) for block in range(world_size)])
                    for peer in range(world_size)
                ]
                wanted = expected_of(op, [each.chunk(world_size)[rank] for each in rows]) if shape[0] else xs[0]
                out = torch.empty(shape, dtype=dtype)
                finish(dist.reduce_scatter_tensor(out, rows[rank], torch_op, async_op=later))
                check(out, wanted.reshape(shape), "reduce_scatter_tensor", op, dtype, shape)
                for apart in layouts(lambda: torch.empty(shape, dtype=dtype)):  # noqa: B023
                    blocks = [each.clone() for each in rows[rank].chunk(world_size)] if shape[0] else [out] * world_size
                    finish(dist.reduce_scatter(apart, blocks, torch_op, async_op=later))
                    check(apart, wanted.reshape(shape), "reduce_scatter", op, dtype, shape, apart.stride())
    dist.destroy_process_group()
    return check.count, check.wrong


def moves(rank: int, world_size: int, folder: str) -> Any:
    """What only moves: every dtype, also those that are not reduced."""
    start(rank, world_size, folder)
    check = Check()
    for dtype, shape, later in itertools.product(
        (*FLOATS, *INTEGERS, *COMPLEX, *OTHERS, torch.bool), SHAPES, (False, True)
    ):
        what = (dtype, shape, later)
        xs = [values(peer, shape, dtype) for peer in range(world_size)]
        for x in layouts(lambda: values(rank, shape, dtype)):  # noqa: B023
            finish(dist.broadcast(x, world_size - 1, async_op=later))
            check(x, xs[-1], "broadcast", x.stride(), *what)
        for x in layouts(lambda: values(rank, shape, dtype)):  # noqa: B023
            outs = [torch.zeros(shape, dtype=dtype) for _ in xs]
            finish(dist.all_gather(outs, x, async_op=later))
            for peer, out in enumerate(outs):
                check(out, xs[peer], "all_gather", peer, *what)
            outs = [torch.zeros(shape, dtype=dtype) for _ in xs] if rank == 0 else None
            finish(dist.gather(x, outs, 0, async_op=later))
            for peer, out in enumerate(outs or []):
                check(out, xs[peer], "gather", peer, *what)
        for out in layouts(lambda: torch.zeros(shape, dtype=dtype)):  # noqa: B023
            finish(dist.scatter(out, xs if rank == 0 else None, 0, async_op=later))
            check(out, xs[rank], "scatter", out.stride(), *what)
        outs = [torch.zeros(shape, dtype=dtype) for _ in xs]
        ins = [values(rank + peer, shape, dtype) for peer in range(world_size)]
        finish(dist.all_to_all(outs, ins, async_op=later))
        for peer, out in enumerate(outs):
            check(out, values(peer + rank, shape, dtype), "all_to_all", peer, *what)
        whole = torch.zeros((world_size, *shape), dtype=dtype)
        finish(dist.all_gather_into_tensor(whole, xs[rank], async_op=later))
        check(whole, torch.stack(xs), "all_gather_into_tensor", *what)
    for later in (False, True):
        uneven(check, rank, world_size, later)
    dist.destroy_process_group()
    return check.count, check.wrong


def uneven(check: Check, rank: int, world_size: int, later: bool) -> None:
    """Blocks of other lengths for every pair of ranks, empty ones among them, and of dtypes that travel as bytes."""
    for dtype in (torch.float32, torch.int16):
        sends = [(rank + peer) % 3 for peer in range(world_size)]
        receives = [(peer + rank) % 3 for peer in range(world_size)]
        x = torch.cat([torch.full((rows, 2), 10 * rank + peer, dtype=dtype) for peer, rows in enumerate(sends)])
        out = torch.zeros((sum(receives), 2), dtype=dtype)
        want = torch.cat([torch.full((rows, 2), 10 * peer + rank, dtype=dtype) for peer, rows in enumerate(receives)])
        finish(dist.all_to_all_single(out, x, receives, sends, async_op=later))
        check(out, want, "uneven all_to_all_single", dtype, later)
        outs = [torch.zeros((rows, 2), dtype=dtype) for rows in receives]
        finish(dist.all_to_all(outs, list(x.split(sends)), async_op=later))
        check(torch.cat(outs), want, "uneven all_to_all", dtype, later)
        outs = [torch.zeros(peer + 1, dtype=dtype) for peer in range(world_size)]
        finish(dist.all_gather(outs, torch.full((rank + 1,), rank, dtype=dtype), async_op=later))
        for peer, each in enumerate(outs):
            check(each, torch.full((peer + 1,), peer, dtype=dtype), "uneven all_gather", dtype, later)
    ins = [torch.full((peer + 1,), rank + peer, dtype=torch.float32) for peer in range(world_size)]
    out = torch.zeros(rank + 1)
    finish(dist.reduce_scatter(out, ins, async_op=later))
    check(out, torch.full((rank + 1,), float(sum(range(world_size)) + world_size * rank)), "uneven reduce_scatter")


def premul(rank: int, world_size: int, folder: str) -> Any:
    """PREMUL_SUM with a number and with a tensor as its factor."""
    start(rank, world_size, folder)
    check = Check()
    total = torch.full((5,), sum(0.5 * (peer + 1) for peer in range(world_size)))
    for factor in (0.5, torch.tensor([0.5])):
        op = dist._make_nccl_premul_sum(factor)
        x = torch.full((5,), rank + 1.0)
        dist.all_reduce(x, op)
        check(x, total, "all_reduce", factor)
        rows, out = torch.full((5 * world_size,), rank + 1.0), torch.zeros(5)
        dist.reduce_scatter_tensor(out, rows, op)
        check(out, total, "reduce_scatter", factor)
        check(rows, torch.full((5 * world_size,), rank + 1.0), "input", factor)
    dist.destroy_process_group()
    return check.count, check.wrong


def groups(rank: int, world_size: int, folder: str) -> Any:
    """Subgroups, meshes, object collectives, coalescing, and a second start in the same process."""
    from torch.distributed.device_mesh import init_device_mesh

    found: dict[str, Any] = {}
    for turn in range(2):
        start(rank, world_size, f"{folder}/{turn}")
        group = dist.new_group([0, world_size - 1])
        x = torch.ones(3)
        if rank in (0, world_size - 1):
            dist.all_reduce(x, group=group)
        mesh = init_device_mesh("cpu", (world_size // 2, 2), mesh_dim_names=("outer", "inner"))
        y = torch.tensor([float(rank)])
        dist.all_reduce(y, group=mesh.get_group("inner"))
        with dist._coalescing_manager(async_ops=True) as manager:
            parts = [torch.ones(4) * (i + rank) for i in range(3)]
            for part in parts:
                dist.all_reduce(part)
        manager.wait()
        objects: list[Any] = [None] * world_size
        dist.all_gather_object(objects, {"rank": rank, "text": "x" * (1000 * rank)})
        shared = [objects, None] if rank == 0 else [None, None]
        dist.broadcast_object_list(shared, 0)
        found[f"turn {turn}"] = (
            x.tolist(),
            y.tolist(),
            [part[0].item() for part in parts],
            [each["rank"] for each in shared[0]],
            dist.get_backend(),
            len(dcomm.torch.process_group._live),
        )
        found[f"turn {turn}, rarer calls"] = backend_rare.run(rank, world_size)
        dist.destroy_process_group()
    return found


def messages(rank: int, world_size: int, folder: str) -> Any:
    """send, recv, isend and irecv in every direction, with tags, among collectives that do not wait for them."""
    start(rank, world_size, folder)
    check = Check()
    for dtype, count in itertools.product((torch.float32, torch.int16, torch.bool), (0, 3, 70_000)):
        after, before = (rank + 1) % world_size, (rank - 1) % world_size
        got = torch.zeros(count, dtype=dtype)
        late = dist.irecv(got, before, tag=7)
        dist.all_reduce(torch.ones(2))  # does not wait for the receive
        works = [dist.isend(values(rank + tag, (count,), dtype), after, tag=tag) for tag in (5, 6, 7)]
        assert late is not None
        late.wait()
        check(got, values(before + 7, (count,), dtype), "irecv", dtype, count)
        for tag in (6, 5):
            other = torch.zeros(2 * count, dtype=dtype)[::2]
            dist.recv(other, before, tag=tag)
            check(other, values(before + tag, (count,), dtype), "recv", dtype, count, tag)
        for work in works:
            assert work is not None
            work.wait()
        pairs = [dist.P2POp(dist.isend, values(rank, (count,), dtype), after)]
        into = torch.zeros(count, dtype=dtype)
        pairs.append(dist.P2POp(dist.irecv, into, before))
        for work in dist.batch_isend_irecv(pairs):
            work.wait()
        check(into, values(before, (count,), dtype), "batch_isend_irecv", dtype, count)
    dist.barrier()
    dist.destroy_process_group()
    return check.count, check.wrong


def latency(rank: int, world_size: int, folder: str, backend: str) -> Any:
    """p50 of an 8-byte all_reduce, of a functional one, and of an asynchronous one, in microseconds."""
    import statistics
    import time

    import torch.distributed._functional_collectives as funcol

    start(rank, world_size, folder, backend)
    x = torch.ones(2)
    group = dist.group.WORLD
    calls: dict[str, Callable[[], Any]] = {
        "all_reduce": lambda: dist.all_reduce(x),
        "functional": lambda: funcol.wait_tensor(funcol.all_reduce(x, "avg", group)),
        "async": lambda: dist.all_reduce(x, async_op=True).wait(),
    }
    if backend == "gloo":
        calls["functional"] = lambda: funcol.wait_tensor(funcol.all_reduce(x, "max", group))
    result = {}
    for name, call in calls.items():
        times = []
        for _ in range(1200 if backend == "dcomm" else 200):
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
        result[name] = 1e6 * statistics.median(times[len(times) // 4 :])
        dist.barrier()
    dist.destroy_process_group()
    return result
