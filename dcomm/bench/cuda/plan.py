"""All cases of a round on a GPU, in turn: size by size, dcomm's and then the rivals'."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from dcomm.bench.collectives import COLLECTIVES
from dcomm.bench.cuda.case import CudaCase
from dcomm.bench.cuda.options import CudaOptions
from dcomm.bench.cuda.rivals import RIVALS
from dcomm.bench.cuda.torch_timing import calls_for
from dcomm.bench.exact import exact_chain
from dcomm.bench.options import serves
from dcomm.bench.plan import LARGE, counts, nbytes_of


def plan(options: CudaOptions, rivals: Sequence[str]) -> list[CudaCase]:
    """In each mode, timing, algorithm and wire, out of place and in place where the collective can."""
    base = options.base
    what = COLLECTIVES[base.collective]
    cases: list[CudaCase] = []
    for dtype in base.dtypes:
        for count in counts(base, dtype):
            for op in base.ops if what.reduces else ("none",):
                for root in base.roots if what.rooted else (-1,):
                    fixed = {"collective": what.name, "count": count, "dtype": dtype, "redop": op, "root": root}
                    for in_place in what.modes:
                        if in_place or not base.in_place_only or what.modes == (False,):
                            cases += _ours(options, fixed, in_place)
                            cases += _theirs(options, rivals, fixed, in_place)
    return cases


def _ours(options: CudaOptions, fixed: dict[str, Any], in_place: bool) -> Iterator[CudaCase]:
    for mode in options.modes:
        for algo in options.base.algos:
            for wire in (wire for wire in options.base.wires if serves(wire, algo)):
                for timing in options.timings:
                    how: dict[str, Any] = {
                        "mode": mode,
                        "algo": algo,
                        "wire": wire,
                        "timing": timing,
                        "in_place": in_place,
                    }
                    yield from _of_shape(options, CudaCase(calls=1, batches=1, **fixed, **how))


def _theirs(options: CudaOptions, rivals: Sequence[str], fixed: dict[str, Any], in_place: bool) -> Iterator[CudaCase]:
    for name in rivals:
        rival = RIVALS[name]
        if fixed["redop"] not in rival.ops:
            continue
        for variant in rival.variants.get(in_place, ()):
            for timing in options.timings if rival.can_capture else ("events",):
                how: dict[str, Any] = {"lib": name, "variant": variant, "timing": timing, "in_place": in_place}
                yield from _of_shape(options, CudaCase(calls=1, batches=1, **fixed, **how))


def _of_shape(options: CudaOptions, case: CudaCase) -> Iterator[CudaCase]:
    """With calls and batches; nothing where no inputs have an exact result."""
    base = options.base
    nbytes = nbytes_of(case, base.ranks)
    calls = calls_for(nbytes)
    if case.redop != "none":
        # After a reduce in place the root alone holds the result, so what a second one gives is another sum.
        wanted = calls if case.in_place and case.collective == "all_reduce" else 1
        chain = exact_chain(base.ranks, wanted, case.carrier, case.redop)
        if chain < 1:
            return
        calls = chain if case.in_place else calls
    batches = -(-base.iters // calls) if base.iters else 11 if nbytes < LARGE else 5
    values = {**case.__dict__, "calls": calls, "batches": batches, "warm": max(1, base.warmup), "check": base.check}
    yield CudaCase(**values)
