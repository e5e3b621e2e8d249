"""Checks and times CUDA all-reduces of ranks that are threads on one GPU.

    python tools/gpu_check.py correct [--small] [--json FILE]
    python tools/gpu_check.py timing [--json FILE]
    python tools/gpu_check.py lists [--json FILE]

correct: every result is compared bit for bit with the host executor's, for all ranks. timing: medians from CUDA
events, beside the floor 2 N S / (bandwidth of a device copy) and beside what torch does in one process. lists: packing
200 ResNet-50-shaped tensors into one and back, beside a device copy of as many bytes (the figure is 85% of its
bandwidth) and beside torch._foreach_copy_ (1.0 times as fast). One GPU says nothing of NVLink. The steps around this
script are in gpu_check.sh.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import queue
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import dcomm

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
from shapes import resnet50_like

PAIRS = [
    ("float32", None),
    ("float32", "bfloat16"),
    ("float32", "float16"),
    ("bfloat16", None),
    ("float16", None),
]
ALGOS = ["two_shot", "ring", "one_shot", "tree"]
COUNTS = [0, 1, 7, 8, 9, 1000, 4096, 65536, 65536 + 5, 2**20 + 3, 3 * 2**20 + 17]
SMALL_COUNTS = [0, 1, 7, 1000, 20000]
SPECIAL = (float("nan"), float("inf"), -float("inf"), -0.0, 1e-40, 65520.0, 3e38, 6e-8)


class Ranks:
    """One thread and one communicator for each rank."""

    def __init__(self, world_size: int) -> None:
        self.comms = dcomm.init_threads(world_size)
        self._tasks: list[queue.SimpleQueue[Any]] = [queue.SimpleQueue() for _ in self.comms]
        self._results: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for rank in range(world_size):
            threading.Thread(target=self._serve, args=(rank,), daemon=True).start()

    def _serve(self, rank: int) -> None:
        while (body := self._tasks[rank].get()) is not None:
            try:
                self._results.put((rank, body(self.comms[rank])))
            except BaseException as error:
                self._results.put((rank, error))

    def outcomes(self, body: Callable[[Any], Any], timeout: float = 300) -> list[Any]:
        """What body(comm) returned or raised, by rank."""
        for tasks in self._tasks:
            tasks.put(body)
        found: list[Any] = [None] * len(self.comms)
        for _ in self.comms:
            rank, value = self._results.get(timeout=timeout)
            found[rank] = value
        return found

    def run(self, body: Callable[[Any], Any]) -> list[Any]:
        """outcomes(), raising the first error."""
        found = self.outcomes(body)
        for value in found:
            if isinstance(value, BaseException):
                raise value
        return found

    def close(self) -> None:
        for tasks in self._tasks:
            tasks.put(None)
        for comm in self.comms:
            comm.close()


@contextmanager
def ranks(world_size: int, **environment: int) -> Iterator[Ranks]:
    """Ranks made under DCOMM_CUDA_* settings."""
    names = {f"DCOMM_CUDA_{name.upper()}": str(value) for name, value in environment.items()}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    made = Ranks(world_size)
    try:
        yield made
    finally:
        made.close()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.int32 if tensor.element_size() == 4 else torch.int16)


def make_input(rank: int, count: int, dtype: str) -> torch.Tensor:
    """On the CPU: ordinary numbers of many sizes, some special ones, some plain bit patterns."""
    generator = torch.Generator().manual_seed(1000 * rank + count % 997)
    x = torch.randn(count, generator=generator)
    x *= torch.exp2(torch.randint(-20, 12, (count,), generator=generator).float())
    for index in range(0, count, max(37, count // 400)):
        x[index] = SPECIAL[(index + rank) % len(SPECIAL)]
    x = x.to(getattr(torch, dtype))
    some = bits(x)[5::11]
    low, high = (-(2**31), 2**31 - 1) if x.element_size() == 4 else (-(2**15), 2**15 - 1)
    some.copy_(torch.randint(low, high, some.shape, generator=generator).to(some.dtype))
    return x


# ---- Correctness ----


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
        storages = [torch.full((x.numel() + 16,), 7.0, dtype=x.dtype, device="cuda") for _ in range(2)]
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
            assert bool((around == 7.0).all()), "wrote beyond an array"
        if not layout.startswith("in_place"):
            assert torch.equal(bits(mine.cpu()), bits(x)), "the input was changed"
        return out.cpu()

    return device.run(body)


def check_correct(small: bool) -> dict[str, Any]:
    counts = SMALL_COUNTS if small else COUNTS
    sizes = [2, 3, 4] if small else [1, 2, 3, 4, 5, 8, 13]
    layouts = ["out_of_place", "in_place", "in_place_unaligned", "out_of_place_unaligned"]
    num_compared = 0
    differing: list[str] = []
    for world_size in sizes:
        with ranks(world_size) as host, ranks(world_size) as device:
            for (dtype, wire), algo, op in itertools.product(PAIRS, ALGOS, ("sum", "avg")):
                for turn, count in enumerate(counts):
                    inputs = [make_input(rank, count, dtype) for rank in range(world_size)]
                    arguments = {"op": op, "wire_dtype": wire, "algo": algo}
                    expected = host_result(host, inputs, **arguments)
                    layout = layouts[(turn + world_size) % len(layouts)]
                    for rank, result in enumerate(device_results(device, inputs, layout, **arguments)):
                        num_compared += 1
                        if not torch.equal(bits(result), bits(expected)):
                            where = torch.nonzero(bits(result) != bits(expected)).flatten()
                            first = int(where[0])
                            differing.append(
                                f"{algo} {dtype} wire {wire} {op} count {count} {layout} rank {rank} of {world_size}: "
                                f"{where.numel()} differ, first [{first}]: got {result[first].item()!r}, expected "
                                f"{expected[first].item()!r}, inputs {[x[first].item() for x in inputs]}"
                            )
        print(f"world size {world_size}: {num_compared} results compared so far, {len(differing)} differ", flush=True)
    for line in differing[:20]:
        print(line)
    check_split_invariance()
    check_failures()
    return {"num_compared": num_compared, "num_differing": len(differing), "differing": differing[:100]}


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
    print("split invariance: ok")


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
    print("failures: ok")


# ---- Timing ----


def event_times_us(enqueue: Callable[[], None], repeats: int) -> list[float]:
    """Times between events around each of `repeats` calls, on the current stream, which is held back meanwhile so that
    the host's own time does not count."""
    enqueue()
    torch.cuda.synchronize()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    torch.cuda._sleep(400_000_000)
    events[0].record()
    for event in events[1:]:
        enqueue()
        event.record()
    torch.cuda.synchronize()
    return [1e3 * before.elapsed_time(after) for before, after in itertools.pairwise(events)]


def copy_bandwidth(nbytes: int) -> float:
    """Bytes read and written per second."""
    source = torch.ones(nbytes // 4, device="cuda")
    target = torch.empty_like(source)
    median_us = statistics.median(event_times_us(lambda: target.copy_(source), 15))
    return 2 * nbytes / (median_us * 1e-6)


def time_all_reduce(device: Ranks, count: int, repeats: int, **arguments: Any) -> list[float]:
    """Per call, in us; all ranks on the default stream, so that rank 0's events see the whole operation."""
    world_size = len(device.comms)
    xs = [torch.randn(count, device="cuda") for _ in range(world_size)]
    outs = [torch.empty_like(x) for x in xs]

    def body(comm: Any) -> list[float]:
        x, out = xs[comm.rank], outs[comm.rank]

        def enqueue() -> None:
            comm.all_reduce(x, out=out, **arguments)

        if comm.rank == 0:
            return event_times_us(enqueue, repeats)
        for _ in range(repeats + 1):
            enqueue()
        return []

    return device.run(body)[0]


def time_torch(world_size: int, count: int, repeats: int) -> list[float]:
    """The rival in one process: sum of a stack, then a copy to every rank."""
    xs = [torch.randn(count, device="cuda") for _ in range(world_size)]
    outs = [torch.empty_like(x) for x in xs]
    total = torch.empty_like(xs[0])

    def enqueue() -> None:
        torch.sum(torch.stack(xs), 0, out=total)
        torch._foreach_copy_(outs, [total] * world_size)

    return event_times_us(enqueue, repeats)


def row(times_us: list[float], floor_us: float, **what: Any) -> dict[str, Any]:
    ordered = sorted(times_us)
    median = statistics.median(ordered)
    made = {
        **what,
        "median_us": round(median, 2),
        "p90_us": round(ordered[int(0.9 * (len(ordered) - 1))], 2),
        "floor_us": round(floor_us, 2),
        "percent_of_floor": round(100 * floor_us / median, 1),
    }
    print("  ".join(f"{key}={value}" for key, value in made.items()), flush=True)
    return made


def check_timing() -> dict[str, Any]:
    bandwidth = copy_bandwidth(1 << 30)
    print(f"device copy: {bandwidth / 1e12:.3f} TB/s read + written")
    rows = []
    for world_size in (2, 4, 8):
        with ranks(world_size) as device:
            for log2 in (12, 16, 20, 22, 24, 26):  # bytes
                nbytes = 1 << log2
                floor_us = 2 * world_size * nbytes / bandwidth * 1e6
                repeats = 50 if log2 < 24 else 20
                what = {"world_size": world_size, "nbytes": nbytes}
                for algo, wire in itertools.product(ALGOS, (None, "bfloat16")):
                    times = time_all_reduce(device, nbytes // 4, repeats, algo=algo, wire_dtype=wire)
                    rows.append(row(times, floor_us, **what, algo=algo, wire=wire or "float32"))
                rows.append(
                    row(time_torch(world_size, nbytes // 4, repeats), floor_us, **what, algo="torch stack+sum+copy")
                )
    sweep = []
    nbytes = 1 << 26
    for world_size, channels, slot_bytes in itertools.product((2, 8), (4, 8, 16, 32, 64), (8192, 32768, 131072)):
        floor_us = 2 * world_size * nbytes / bandwidth * 1e6
        for algo in ALGOS:
            what = {"world_size": world_size, "nbytes": nbytes, "channels": channels, "slot_bytes": slot_bytes}
            try:
                with ranks(world_size, channels=channels, slot_bytes=slot_bytes) as device:
                    times = time_all_reduce(device, nbytes // 4, 10, algo=algo)
            except dcomm.CudaError as error:  # more blocks than the GPU holds
                print(f"{what}: {error}")
                continue
            sweep.append(row(times, floor_us, **what, algo=algo))
    return {"copy_bytes_per_second": bandwidth, "rows": rows, "sweep": sweep}


# ---- Lists of arrays ----


def time_lists(dtype: str, whole_dtype: str, bandwidth: float) -> list[dict[str, Any]]:
    """Pack and unpack with gaps of whole cache lines, as a bucket plan leaves them."""
    tensors = [torch.randn(shape, device="cuda").to(getattr(torch, dtype)) for shape in resnet50_like()]
    counts = [tensor.numel() for tensor in tensors]
    padded = [-(-count // 32) * 32 for count in counts]
    ends = list(itertools.accumulate(padded))
    offsets = [end - length for end, length in zip(ends, padded, strict=True)]
    whole = torch.zeros(ends[-1], dtype=getattr(torch, whole_dtype), device="cuda")
    views = [whole[offset : offset + n].view_as(t) for offset, n, t in zip(offsets, counts, tensors, strict=True)]
    device = tensors[0].device.index
    codes = {"float32": 0, "float16": 1, "bfloat16": 2}
    runs = dcomm._core.CudaArrayList(device, [t.data_ptr() for t in tensors], counts, offsets, codes[dtype])
    whole_code, stream = codes[whole_dtype], torch.cuda.current_stream().cuda_stream
    nbytes = sum(counts) * (tensors[0].element_size() + whole.element_size())
    ways: dict[str, Callable[[], Any]] = {
        "pack": lambda: runs.pack(whole.data_ptr(), whole_code, 1.0, stream),
        "pack, torch._foreach_copy_": lambda: torch._foreach_copy_(views, tensors),
        "unpack": lambda: runs.unpack(whole.data_ptr(), whole_code, 1.0, stream),
        "unpack, torch._foreach_copy_": lambda: torch._foreach_copy_(tensors, views),
    }
    medians = {name: statistics.median(event_times_us(enqueue, 30)) for name, enqueue in ways.items()}
    rows = []
    for name in ("pack", "unpack"):
        found = {"what": name, "dtype": dtype, "whole": whole_dtype, "us": round(medians[name], 2)}
        found["foreach_us"] = round(medians[f"{name}, torch._foreach_copy_"], 2)
        found["percent_of_copy"] = round(100 * nbytes / (medians[name] * 1e-6) / bandwidth, 1)
        found["over_foreach"] = round(medians[f"{name}, torch._foreach_copy_"] / medians[name], 2)
        reached = found["percent_of_copy"] >= 85 and found["over_foreach"] >= 1.0
        print(
            "  ".join(f"{key}={value}" for key, value in found.items()), "reached" if reached else "MISSED", flush=True
        )
        rows.append(found)
    return rows


def check_lists() -> dict[str, Any]:
    bandwidth = copy_bandwidth(4 * sum(math.prod(shape) for shape in resnet50_like()))
    print(f"device copy of as many bytes: {bandwidth / 1e12:.3f} TB/s read + written")
    pairs = [("float32", "float32"), ("float32", "float16"), ("float32", "bfloat16"), ("bfloat16", "bfloat16")]
    return {"copy_bytes_per_second": bandwidth, "rows": [row for pair in pairs for row in time_lists(*pair, bandwidth)]}


# ---- Frame ----


def first_line(*command: str) -> str:
    try:
        text = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return "unknown"
    return text.splitlines()[0] if text else "unknown"


def circumstances() -> dict[str, Any]:
    checkout = str(Path(__file__).resolve().parents[1])
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": " ".join(sys.argv),
        "commit": first_line("git", "-C", checkout, "rev-parse", "HEAD"),
        "gpu": torch.cuda.get_device_name(),
        "driver": first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": sys.version.split()[0],
        "dcomm": dcomm.__version__,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("what", choices=["correct", "timing", "lists"])
    parser.add_argument("--small", action="store_true", help="few sizes: under compute-sanitizer")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("torch.cuda is not available: this script needs a GPU", file=sys.stderr)
        return 2
    about = circumstances()
    print(json.dumps(about, indent=1))
    if options.what == "correct":
        results = check_correct(options.small)
    else:
        results = check_timing() if options.what == "timing" else check_lists()
    if options.json is not None:
        options.json.write_text(json.dumps({**about, **results}, indent=1) + "\n")
    return 1 if results.get("num_differing") else 0


if __name__ == "__main__":
    sys.exit(main())
