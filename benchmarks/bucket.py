"""Measures an all-reduce of 200 ResNet-50-shaped tensors: fused, packed, and by torch and gloo.

    python benchmarks/bucket.py --json benchmarks/results/bucket.json
    python benchmarks/bucket.py --check-figures

fused   comm.all_reduce(dcomm.Bucket(tensors)): read where they lie, the result written back there
packed  dcomm.pack, comm.all_reduce, dcomm.unpack; with a half wire either the all-reduce casts ("packed") or pack and
        unpack do ("packed-half"): the faster one counts
whole   comm.all_reduce of one array of as many elements: what no list can beat by much
gloo    what torch offers: flatten, all-reduce through gloo, unflatten, copy back; with 1 or 2 gloo threads, the faster
        of which counts, with its best round; with a half wire the flat array is cast to float16 and back

All variants in turn in each round, float32 tensors, sum, in place; before each call the tensors are refilled, outside
the clock, with integers whose sums are exact on any wire, and after it every element is compared. A time is that of the
slowest rank, a round's is the median of its calls. The state of the cores is probed in between; of each variant only
those rounds count in which it had the state seen most (docs/benchmarks.md).

Exit status: 0; 1 wrong data, or a rank failed; 2 a figure of --check-figures was not reached.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from shapes import num_elements, resnet50_like

import dcomm
from dcomm.bench import worker
from dcomm.bench.machine import describe
from dcomm.bench.ranks import RankError, Ranks
from dcomm.bench.rounds import Turns, counted_rounds, fingerprint

WIRES = ("none", "float16")
VARIANTS = {"none": ("fused", "packed", "whole"), "float16": ("fused", "packed", "packed-half", "whole")}
GLOO_THREADS = (1, 2)
OVER_PACKED, OVER_GLOO = 1.3, 5.0
ENOUGH = 5  # rounds that count
NUM_SALTS = 8


class ListWorker(worker.Worker):
    """One rank: the tensors, and every way to reduce them."""

    def _make(self, num_tensors: int) -> dict[str, Any]:
        shapes = resnet50_like(num_tensors)
        count = num_elements(shapes)
        self._inputs = [self._pattern(count, rank) for rank in range(self._comm.world_size)]
        self._expected = np.sum(self._inputs, axis=0, dtype=np.float32)
        self._arrays = [np.empty(shape, np.float32) for shape in shapes]
        self._bucket = dcomm.Bucket(self._arrays)
        self._flat = np.empty(count, np.float32)
        self._half = np.empty(count, np.float16)
        return {"count": count}

    @staticmethod
    def _pattern(count: int, rank: int) -> np.ndarray[Any, Any]:
        """Integers from -125 to 125: float16 holds the sums of 16 ranks exactly."""
        return np.resize(((np.arange(997) * (rank + 3)) % 251 - 125).astype(np.float32), count + NUM_SALTS)

    def carry_out(self, do: str, say: Callable[[dict[str, Any]], None], **order: Any) -> dict[str, Any]:
        """The answer to one order; "make" makes the tensors, "lists" times calls of one variant."""
        if do == "make":
            return self._make(**order)
        return self._time(**order) if do == "lists" else super().carry_out(do, say, **order)

    def _time(self, variant: str, wire: str, threads: int, calls: int) -> dict[str, Any]:
        call = self._way(variant, None if wire == "none" else wire, threads)
        whole = dcomm.Bucket([self._flat]) if variant == "whole" else self._bucket
        us: list[float] = []
        num_wrong = 0
        for number in range(1 + calls):  # the first warms up
            self._salt = (self._salt + 1) % NUM_SALTS  # what is left of an earlier call is wrong now
            dcomm.unpack(self._mine(self._inputs[self._comm.rank]), whole)
            self._comm.barrier()
            start = time.perf_counter_ns()
            call()
            elapsed = time.perf_counter_ns() - start
            if number > 0:
                us.append(elapsed / 1e3)
            if self._corrupts():
                whole.arrays[-1].reshape(-1)[-1] += 1
            num_wrong += self._num_wrong(whole)
        return {"us": us, "num_wrong": num_wrong}

    def _mine(self, pattern: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return pattern[self._salt : self._salt + self._flat.size]

    def _num_wrong(self, arrays: dcomm.Bucket) -> int:
        expected, done, wrong = self._mine(self._expected), 0, 0
        for array in arrays:
            wrong += int(np.count_nonzero(array.reshape(-1) != expected[done : done + array.size]))
            done += array.size
        return wrong

    def _way(self, variant: str, wire: str | None, threads: int) -> Callable[[], Any]:
        comm, bucket, flat = self._comm, self._bucket, self._flat
        if variant == "fused":
            return lambda: comm.all_reduce(bucket, wire_dtype=wire)
        if variant == "whole":
            return lambda: comm.all_reduce(flat, wire_dtype=wire)
        if variant == "gloo":
            return self._gloo_way(wire, threads)
        through, on_wire = (self._half, None) if variant == "packed-half" else (flat, wire)

        def packed() -> None:
            dcomm.pack(bucket, through)
            comm.all_reduce(through, wire_dtype=on_wire)
            dcomm.unpack(through, bucket)

        return packed

    def _gloo_way(self, wire: str | None, threads: int) -> Callable[[], Any]:
        import torch
        from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

        group = self._gloo[threads]
        tensors = [torch.from_numpy(array) for array in self._arrays]

        def flattened() -> None:
            flat = _flatten_dense_tensors(tensors)
            if wire is None:
                group.allreduce([flat]).wait()
            else:
                half = flat.half()
                group.allreduce([half]).wait()
                flat.copy_(half)
            torch._foreach_copy_(tensors, list(_unflatten_dense_tensors(flat, tensors)))

        return flattened


def measure(ranks: Ranks, args: argparse.Namespace, with_gloo: bool) -> dict[str, Any]:
    """Rounds of all variants: the stamps, and the time of each (wire, variant, threads) by round."""
    cases = [(wire, variant, 0) for wire in WIRES for variant in VARIANTS[wire]]
    if with_gloo:
        cases += [(wire, "gloo", threads) for wire in WIRES for threads in GLOO_THREADS]
    keys = [f"{wire} {variant}" + (f" {threads}" if threads else "") for wire, variant, threads in cases]
    ms: dict[str, list[float]] = {key: [] for key in keys}
    eights = [fingerprint(ranks)[1]]
    num_wrong = 0
    begin = time.monotonic()
    turns = Turns(keys)
    while True:
        start = time.monotonic()
        for key, (wire, variant, threads) in zip(keys, cases, strict=True):
            with turns.turn(key):
                ranks.send({"do": "lists", "variant": variant, "wire": wire, "threads": threads, "calls": args.calls})
                answers = ranks.receive()
            calls = [max(us) for us in zip(*(answer["us"] for answer in answers), strict=True)]
            ms[key].append(round(statistics.median(calls) / 1e3, 4))
            num_wrong += sum(answer["num_wrong"] for answer in answers)
        eights.append(fingerprint(ranks)[1])
        now = time.monotonic()
        seen = dict(Counter(states[-1] for states in turns.states.values()))
        print(f"round {len(eights) - 1}: {seen}, {turns.num_counted} count", file=sys.stderr, flush=True)
        if turns.num_counted >= args.rounds or now - begin + (now - start) > args.max_seconds:
            break
    eight_byte_us = [round(eight, 3) for eight in eights]
    return {"states": turns.states, "ms": ms, "eight_byte_us": eight_byte_us, "num_wrong": num_wrong}


def summarise(found: dict[str, Any]) -> None:
    """Medians over the rounds in the state seen most, and the ratios to the fused call."""
    state, used = counted_rounds(list(found["states"].values()))
    counted = dict(zip(found["states"], used, strict=True))
    found |= {"state": state, "rounds_counted": min(map(len, used)), "rows": []}
    for wire in WIRES:
        row: dict[str, Any] = {"wire": wire}
        for variant in VARIANTS[wire]:
            ms = found["ms"][f"{wire} {variant}"]
            row[variant] = statistics.median(ms[number] for number in counted[f"{wire} {variant}"] or range(len(ms)))
        packed = min(row[variant] for variant in VARIANTS[wire] if variant.startswith("packed"))
        row["over_packed"] = packed / row["fused"]
        gloo = [ms for key, by_round in found["ms"].items() if key.startswith(f"{wire} gloo") for ms in by_round]
        if gloo:  # its best round of either number of threads
            row |= {"gloo": min(gloo), "over_gloo": min(gloo) / row["fused"]}
        found["rows"].append(
            {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}
        )


def text(found: dict[str, Any]) -> list[str]:
    """What is printed."""
    machine = found["machine"]
    num_rounds = len(found["eight_byte_us"]) - 1
    lines = [
        f"# {found['num_tensors']} tensors, {found['count']} float32 elements, {found['ranks']} ranks; times in ms",
        f"# {machine['cpu']}, {machine['cores']} CPUs, {machine['isa']} kernels; {found['date']}",
        f"# cores {found['state']} in {found['rounds_counted']} of {num_rounds} rounds; {found['command']}",
        f"{'wire':>8} {'fused':>8} {'whole':>8} {'packed':>8} {'p-half':>8} {'gloo':>8} {'/packed':>8} {'/gloo':>8}",
    ]
    keys = ("fused", "whole", "packed", "packed-half", "gloo", "over_packed", "over_gloo")
    for row in found["rows"]:
        cells = [f"{row[key]:8.2f}" if key in row else f"{'-':>8}" for key in keys]
        lines.append(" ".join([f"{row['wire']:>8}", *cells]))
    return [*lines, f"# wrong elements: {found['num_wrong']}"]


def figures(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What is promised of the full wire, and measured of the half wire, too."""
    wanted = (("over_packed", OVER_PACKED, "packing"), ("over_gloo", OVER_GLOO, "flattening and gloo"))
    enough = {
        "figure": f"at least {ENOUGH} rounds of every variant in one state",
        "measured": str(found["rounds_counted"]),
        "reached": found["rounds_counted"] >= ENOUGH,
    }
    return [
        {
            "figure": f"{row['wire'].replace('none', 'float32')} wire: at least {least} times as fast as {what}",
            "measured": f"{row.get(key, 0.0):.2f}x",
            "reached": row.get(key, 0.0) >= least,
        }
        for row in found["rows"]
        for key, least, what in wanted
    ] + [enough]


def main() -> int:
    """Be the parent, or, started by it, a rank."""
    if "--pipes" in sys.argv:
        return worker.main(ListWorker)
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("-n", "--ranks", type=int, default=2, help="rank processes")
    parser.add_argument("--tensors", type=int, default=200, help="how many; the first 161 are those of a ResNet-50")
    parser.add_argument("--rounds", type=int, default=ENOUGH, help="go on until so many count for every variant")
    parser.add_argument("--calls", type=int, default=5, help="timed calls of a variant in a round")
    parser.add_argument("--max-seconds", type=float, default=150.0, help="start no round that would end later")
    parser.add_argument("--compare", choices=("gloo", "none"), default="gloo", help="the peer in the same rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything here")
    parser.add_argument("--check-figures", action="store_true", help="check the promised figures")
    args = parser.parse_args()
    versions: dict[str, str] = {}
    try:
        with (
            Ranks(args.ranks, program=[str(Path(__file__).resolve())]) as ranks,
            tempfile.TemporaryDirectory() as folder,
        ):
            isa = ranks.receive()[0]["isa"]
            if args.compare == "gloo":
                ranks.send({"do": "gloo", "store": str(Path(folder) / "store"), "threads": list(GLOO_THREADS)})
                versions["torch"] = ranks.receive()[0]["torch"]
            ranks.send({"do": "make", "num_tensors": args.tensors})
            count = ranks.receive()[0]["count"]
            found = measure(ranks, args, args.compare == "gloo")
            ranks.leave()
    except RankError as error:
        print(f"FAILED: {error}")
        return 1
    command = f"python benchmarks/bucket.py {shlex.join(sys.argv[1:])}".strip()
    found = describe(command, versions, isa) | {"ranks": args.ranks, **found}
    found |= {"num_tensors": args.tensors, "count": count}
    summarise(found)
    if args.check_figures:
        found["figures"] = figures(found)
    print("\n".join(text(found)))
    for figure in found.get("figures", []):
        print(f"{'reached' if figure['reached'] else 'NOT REACHED'}: {figure['figure']}: {figure['measured']}")
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if found["num_wrong"]:
        print(f"FAILED: {found['num_wrong']} wrong elements")
        return 1
    return 2 if any(not figure["reached"] for figure in found.get("figures", [])) else 0


if __name__ == "__main__":
    sys.exit(main())
