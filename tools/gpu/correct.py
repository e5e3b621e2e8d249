"""Every result has the bits of the host executor, on all ranks; failures are typed errors, and the GPU goes on."""

from __future__ import annotations

import itertools
import time
from typing import Any

import torch

import dcomm
from gpu.ranks import Ranks, ranks
from gpu.report import Budget, Report

PAIRS = [
    ("float32", None),
    ("float32", "bfloat16"),
    ("float32", "float16"),
    ("bfloat16", None),
    ("float16", None),
]
ALGOS = ["two_shot", "ring", "one_shot", "tree"]
INTEGERS = ["int8", "uint8", "int32", "int64", "bool"]
INTEGER_ALGOS = ["two_shot", "ring"]
COUNTS = [0, 1, 7, 8, 9, 1000, 4096, 65536, 65536 + 5, 2**20 + 3, 3 * 2**20 + 17]
SMALL_COUNTS = [0, 1, 7, 1000, 20000]
LAYOUTS = ["out_of_place", "in_place", "in_place_unaligned", "out_of_place_unaligned"]
SPECIAL = (float("nan"), float("inf"), -float("inf"), -0.0, 1e-40, 65520.0, 3e38, 6e-8)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def make_input(rank: int, count: int, dtype: str) -> torch.Tensor:
    """On the CPU: ordinary numbers of many sizes, some special ones, some plain bit patterns; of integers, any."""
    generator = torch.Generator().manual_seed(1000 * rank + count % 997)
    if dtype in INTEGERS:
        made = torch.empty(count, dtype=getattr(torch, dtype))
        if dtype == "bool":
            return made.random_(0, 2, generator=generator)
        limits = torch.iinfo(made.dtype)
        return made.random_(limits.min, limits.max, generator=generator)
    x = torch.randn(count, generator=generator)
    x *= torch.exp2(torch.randint(-20, 12, (count,), generator=generator).float())
    for index in range(0, count, max(37, count // 400)):
        x[index] = SPECIAL[(index + rank) % len(SPECIAL)]
    x = x.to(getattr(torch, dtype))
    some = bits(x)[5::11]
    low, high = (-(2**31), 2**31 - 1) if x.element_size() == 4 else (-(2**15), 2**15 - 1)
    some.copy_(torch.randint(low, high, some.shape, generator=generator).to(some.dtype))
    return x


def host_result(host: Ranks, inputs: list[torch.Tensor], **arguments: Any) -> torch.Tensor:
    def body(comm: Any) -> torch.Tensor:
        out = torch.empty_like(inputs[comm.rank])
        comm.all_reduce(inputs[comm.rank], out=out, **arguments)
        return out

    return host.run(body)[0]


def device_results(device: Ranks, inputs: list[torch.Tensor], layout: str, **arguments: Any) -> list[torch.Tensor]:
    """Every rank's result, copied to the CPU; what lies around each array must stay as it is."""
    shift = 1 if layout.endswith("unaligned") else 0

    def body(comm: Any) -> torch.Tensor:
        x = inputs[comm.rank]
        storages = [torch.full((x.numel() + 16,), 7, dtype=x.dtype, device="cuda") for _ in range(2)]
        mine, out = (storage[shift : shift + x.numel()] for storage in storages)
        mine.copy_(x)
        if layout.startswith("in_place"):
            comm.all_reduce(mine, **arguments)
            out = mine
        else:
            comm.all_reduce(mine, out=out, **arguments)
        torch.cuda.synchronize()
        for storage in storages:
            around = torch.cat([storage[:shift], storage[shift + x.numel() :]])
            assert torch.equal(around, torch.full_like(around, 7)), "wrote beyond an array"
        if not layout.startswith("in_place"):
            assert torch.equal(bits(mine.cpu()), bits(x)), "the input was changed"
        return out.cpu()

    return device.run(body)


def difference(result: torch.Tensor, expected: torch.Tensor, inputs: list[torch.Tensor]) -> str:
    """ "" where the bits are equal."""
    where = torch.nonzero(bits(result) != bits(expected)).flatten()
    if where.numel() == 0:
        return ""
    first = int(where[0])
    return (
        f"{where.numel()} differ, first [{first}]: got {result[first].item()!r}, expected {expected[first].item()!r}, "
        f"inputs {[x[first].item() for x in inputs]}"
    )


def cases() -> list[dict[str, Any]]:
    """Every kind of all-reduce that has kernels."""
    floats = itertools.product(PAIRS, ALGOS, ("sum", "avg"))
    integers = itertools.product([(dtype, None) for dtype in INTEGERS], INTEGER_ALGOS, ("sum",))
    return [{"dtype": dtype, "wire": wire, "algo": algo, "op": op} for (dtype, wire), algo, op in (*floats, *integers)]


def compare(host: Ranks, device: Ranks, counts: list[int], report: Report, **arguments: Any) -> None:
    """One kind of all-reduce with every count."""
    found = report.values
    world_size = len(host.comms)
    for turn, count in enumerate(counts):
        inputs = [make_input(rank, count, arguments["dtype"]) for rank in range(world_size)]
        call = {"op": arguments["op"], "wire_dtype": arguments["wire"], "algo": arguments["algo"]}
        expected = host_result(host, inputs, **call)
        layout = LAYOUTS[(turn + world_size) % len(LAYOUTS)]
        for rank, result in enumerate(device_results(device, inputs, layout, **call)):
            found["num_compared"] += 1
            if text := difference(result, expected, inputs):
                found["num_differing"] += 1
                found["differing"].append(f"{arguments} count {count} {layout} rank {rank} of {world_size}: {text}")


def run(report: Report, budget: Budget, small: bool) -> None:
    """small: few sizes, under compute-sanitizer."""
    report.values |= {"num_compared": 0, "num_differing": 0, "differing": []}
    for name, check in (("failures", check_failures), ("split invariance", check_split_invariance)):
        if budget.allows(name):
            with report.attempt({"check": name, "passed": False}):
                check()
                report.add({"check": name, "passed": True})
    for world_size in [2, 4, 3] if small else [2, 8, 4, 3, 5, 1, 13]:
        with report.attempt({"world_size": world_size}), ranks(world_size) as host, ranks(world_size) as device:
            for what in cases():
                if budget.allows(f"{world_size} ranks {what}"):
                    compare(host, device, SMALL_COUNTS if small else COUNTS, report, **what)
        found = {key: report.values[key] for key in ("num_compared", "num_differing")}
        report.add({"world_size": world_size, **found})
        report.save()
    for line in report.values["differing"][:20]:
        print(line)
    del report.values["differing"][100:]


def check_split_invariance() -> None:
    """two_shot: a tensor reduced whole and in pieces, with few and many channels, gives the same bytes."""
    count = 300_007
    whole: list[torch.Tensor] = []
    for channels, slot_bytes in ((1, 4096), (3, 65536), (0, 0)):
        with ranks(5, channels=channels, slot_bytes=slot_bytes) as device:

            def body(comm: Any) -> torch.Tensor:
                x = make_input(comm.rank, count, "float32").cuda()
                pieces = x.clone()
                comm.all_reduce(x, algo="two_shot")
                for piece in torch.split(pieces, 77_777):
                    comm.all_reduce(piece, algo="two_shot")
                torch.cuda.synchronize()
                assert torch.equal(bits(x), bits(pieces)), "whole and in pieces differ"
                return x.cpu()

            whole.append(device.run(body)[0])
    assert all(torch.equal(bits(whole[0]), bits(other)) for other in whole), "channels change the bits"


def check_failures() -> None:
    """Mismatch and a missing rank: typed errors on all ranks in time, and the GPU works afterwards."""
    with ranks(3) as device:
        found = device.outcomes(lambda comm: comm.all_reduce(torch.ones(8 + comm.rank // 2, device="cuda")))
        assert all(isinstance(error, dcomm.MismatchError) for error in found), found

    def missing(comm: Any) -> None:
        if comm.rank != 1:
            comm.all_reduce(torch.ones(8, device="cuda"), timeout=0.5)

    with ranks(3) as device:
        start = time.monotonic()
        found = device.outcomes(missing)
        assert time.monotonic() - start < 10
        assert all(isinstance(found[rank], dcomm.CollectiveTimeoutError) for rank in (0, 2)), found
        assert "rank 1" in str(found[0]), found[0]
    with ranks(3) as device:
        for total in device.run(lambda comm: float(comm.all_reduce(torch.ones(8, device="cuda")).sum())):
            assert total == 24
