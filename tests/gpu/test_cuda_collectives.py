"""The kernels that no public method reaches yet, through the core: moves byte for byte, sums with the host's bits.

They are called as `Communicator.all_reduce` calls its own; ranks are threads on one GPU.
"""

from __future__ import annotations

from typing import Any

import pytest
from cuda_arrays import bits, make_input
from rank_threads import run_threads

import dcomm

pytestmark = pytest.mark.gpu

# csrc/protocol/control.h and base/dtype.h.
KINDS = {
    "broadcast": 2,
    "barrier": 3,
    "reduce_scatter": 4,
    "all_gather": 5,
    "reduce": 6,
    "gather": 7,
    "scatter": 8,
    "all_to_all": 9,
}
CODES = {"float32": 0, "float16": 1, "bfloat16": 2}
COUNTS = (0, 1, 7, 1000, 65536 + 3)  # of a block, or of the message
UNTOUCHED = 7.0


def call(comm: dcomm.Communicator, name: str, source: Any, target: Any, count: int, root: int, op: int = 0) -> None:
    import torch

    code = CODES[str(source.dtype).removeprefix("torch.")]
    stream = torch.cuda.current_stream().cuda_stream
    arrays = (source.device.index, source.data_ptr(), target.data_ptr())
    comm._core.collective_cuda(KINDS[name], *arrays, count, code, code, op, 0, root, 0, stream, 30_000_000_000, False)


def run(name: str, inputs: list[Any], out_count: int, count: int, root: int, op: int = 0) -> list[Any]:
    """Every rank's result on the CPU; what lies around it must stay as it is. Arrays miss the alignment of packs on odd
    ranks."""
    import torch

    def body(comm: dcomm.Communicator) -> Any:
        shift = comm.rank % 2
        x = inputs[comm.rank]
        storages = [torch.full((n + 8,), UNTOUCHED, dtype=x.dtype, device="cuda") for n in (x.numel(), out_count)]
        source = storages[0][shift : shift + x.numel()]
        source.copy_(x)
        target = source if name == "broadcast" else storages[1][shift : shift + out_count]
        call(comm, name, source, target, count, root, op)
        torch.cuda.synchronize()
        for storage, n in zip(storages, (x.numel(), out_count), strict=True):
            around = torch.cat([storage[:shift], storage[shift + n :]])
            assert bool((around == UNTOUCHED).all()), "wrote beyond an array"
        return target.cpu()

    return run_threads(len(inputs), body)


def untouched(count: int, dtype: str) -> Any:
    import torch

    return torch.full((count,), UNTOUCHED, dtype=getattr(torch, dtype))


def expect(results: list[Any], expected: list[Any], what: str) -> None:
    import torch

    for rank, (result, wanted) in enumerate(zip(results, expected, strict=True)):
        assert torch.equal(bits(result), bits(wanted)), f"{what}, rank {rank}"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
def test_moves(world_size: int, dtype: str) -> None:
    import torch

    ranks = range(world_size)
    for turn, count in enumerate(COUNTS):
        root = turn % world_size
        blocks = [make_input(rank, count, dtype) for rank in ranks]
        whole = [make_input(rank, count * world_size, dtype) for rank in ranks]
        gathered = torch.cat(blocks)
        empty = untouched(count * world_size, dtype)
        expect(run("broadcast", blocks, 0, count, root), [blocks[root]] * world_size, "broadcast")
        all_gathered = run("all_gather", blocks, gathered.numel(), count, 0)
        expect(all_gathered, [gathered] * world_size, "all_gather")
        at_root = run("gather", blocks, gathered.numel(), count, root)
        expect(at_root, [gathered if rank == root else empty for rank in ranks], "gather")
        parts = [whole[root][rank * count : (rank + 1) * count] for rank in ranks]
        expect(run("scatter", whole, count, count, root), parts, "scatter")
        swapped = [torch.cat([x[rank * count : (rank + 1) * count] for x in whole]) for rank in ranks]
        expect(run("all_to_all", whole, count * world_size, count, 0), swapped, "all_to_all")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
def test_sums_have_the_host_s_bits(world_size: int, dtype: str) -> None:
    """All canonical sums are alike: the host's two_shot all-reduce of the whole arrays says what they are."""

    def host_sum(inputs: list[Any], op: str) -> Any:
        return run_threads(world_size, lambda comm: comm.all_reduce(inputs[comm.rank].clone(), op, algo="two_shot"))[0]

    ranks = range(world_size)
    for turn, count in enumerate(COUNTS):
        for op_code, op in enumerate(("sum", "avg")):
            root = (turn + 1) % world_size
            whole = [make_input(rank, count * world_size, dtype) for rank in ranks]
            total = host_sum(whole, op)
            blocks = [total[rank * count : (rank + 1) * count] for rank in ranks]
            expect(run("reduce_scatter", whole, count, count, 0, op_code), blocks, f"reduce_scatter {op} of {count}")
            short = [x[:count] for x in whole]
            wanted = [blocks[0] if rank == root else untouched(count, dtype) for rank in ranks]
            expect(run("reduce", short, count, count, root, op_code), wanted, f"reduce {op} of {count}")


def test_barrier_orders_streams() -> None:
    """What one rank's stream did before the barrier is seen by another's after it."""
    import torch

    shared = torch.zeros(1, device="cuda")

    def body(comm: dcomm.Communicator) -> float:
        with torch.cuda.stream(torch.cuda.Stream()):
            if comm.rank == 0:
                torch.cuda._sleep(200_000_000)
                shared.fill_(5)
            call(comm, "barrier", shared, shared, 0, 0)
            seen = shared.clone()
            torch.cuda.current_stream().synchronize()
        return float(seen)

    assert run_threads(3, body) == [5.0] * 3


def test_different_roots_are_a_mismatch() -> None:
    import torch

    def body(comm: dcomm.Communicator) -> None:
        x = torch.ones(8, device="cuda")
        with pytest.raises(dcomm.MismatchError, match="rank 1"):
            call(comm, "broadcast", x, x, 8, comm.rank)

    run_threads(2, body)
