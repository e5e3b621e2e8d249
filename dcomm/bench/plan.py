"""All cases of a round, in turn: size by size, dcomm's variants and then the peers'."""

from __future__ import annotations

from collections.abc import Iterator

from dcomm.bench import gloo
from dcomm.bench.case import Case
from dcomm.bench.collectives import COLLECTIVES
from dcomm.bench.dtypes import item_bytes
from dcomm.bench.exact import exact_chain
from dcomm.bench.options import Options, serves

LARGE = 2 << 20
_BUFFER_BYTES = 64 << 20  # of all buffers together, by default


def nbytes_of(case: Case, world_size: int) -> int:
    """The size of a case as nccl-tests counts it."""
    messages = world_size if COLLECTIVES[case.collective].divided else 1
    return case.count * messages * item_bytes(case.dtype)


def sizes(options: Options) -> list[int]:
    """Bytes from the smallest to the largest message."""
    found = [options.min_bytes]
    while True:
        following = found[-1] + options.step_bytes if options.step_bytes else found[-1] * options.factor
        if following > options.max_bytes:
            return found
        found.append(following)


def counts(options: Options, dtype: str) -> list[int]:
    """Elements of one message, without repetition where small sizes round to the same."""
    messages = options.ranks if COLLECTIVES[options.collective].divided else 1
    unit = item_bytes(dtype) * messages
    return list(dict.fromkeys(max(1, nbytes // unit) for nbytes in sizes(options)))


def num_buffers(options: Options, nbytes: int, calls: int) -> int:
    """How many buffers the calls of a batch take in turn."""
    wanted = options.buffers or max(1, _BUFFER_BYTES // nbytes)
    return min(wanted, calls)


def _shape(options: Options, nbytes: int, in_place: bool, carrier: str, op: str) -> dict[str, int] | None:
    """Calls, buffers, batches and warm-up batches of a case; None: no exact inputs."""
    calls = 16 if nbytes < LARGE else 4
    buffers = num_buffers(options, nbytes, calls)
    chain = 1
    if COLLECTIVES[options.collective].reduces:
        # After a reduce in place the root alone holds the result, so what a second one gives is another sum.
        wanted = calls // buffers if in_place and options.collective == "all_reduce" else 1
        chain = exact_chain(options.ranks, wanted, carrier, op)
    elif in_place:
        chain = calls // buffers
    if chain < 1:
        return None
    calls = buffers * chain
    batches = -(-options.iters // calls) if options.iters else 25 if nbytes < LARGE else 3
    return {"calls": calls, "buffers": buffers, "batches": batches, "warm": -(-options.warmup // calls)}


def _variants(options: Options, nbytes: int, dtype: str) -> Iterator[dict[str, object]]:
    """What is measured of one size in one mode."""
    for level in options.levels:
        for algo in options.algos:
            for wire in options.wires if level == "python" else (None,):
                if serves(wire, algo):
                    yield {"level": level, "algo": algo, "wire": wire}
    if "torch" in options.arrays and nbytes == 8:
        yield {"array": "torch"}


def plan(options: Options) -> list[Case]:
    """The cases of dcomm, gloo and the pass over memory; :func:`mpi_cases` has those of the MPIs."""
    what = COLLECTIVES[options.collective]
    if what.name == "barrier":
        return _plan_barrier(options)
    cases: list[Case] = []
    modes = [mode for mode in what.modes if mode or not options.in_place_only] or list(what.modes)
    for dtype in options.dtypes:
        for count in counts(options, dtype):
            for op in options.ops if what.reduces else ("none",):
                for root in options.roots if what.rooted else (-1,):
                    fixed = {"collective": what.name, "count": count, "dtype": dtype, "redop": op, "root": root}
                    cases += _of_size(options, modes, fixed)
    return cases


def _of_size(options: Options, modes: list[bool], fixed: dict[str, object]) -> Iterator[Case]:
    base = Case(calls=1, batches=1, **fixed)  # type: ignore[arg-type]
    nbytes = nbytes_of(base, options.ranks)
    for in_place in modes:
        for how in _variants(options, nbytes, base.dtype):
            shape = _shape(options, nbytes, in_place, str(how.get("wire") or base.dtype), base.redop)
            if shape is not None:
                yield Case(**fixed, **how, **shape, in_place=in_place, check=options.check)  # type: ignore[arg-type]
    if "gloo" in options.compare:
        in_place = modes[-1]
        shape = _shape(options, nbytes, in_place, base.dtype, base.redop)
        if shape is not None:
            shape["batches"] = min(shape["batches"], 3)
            for threads in gloo.THREADS:
                peer = {"lib": "gloo", "variant": f"{threads}t", "threads": threads, "in_place": in_place}
                yield Case(**fixed, **shape, **peer, check=options.check)  # type: ignore[arg-type]
    if "pass" in options.compare:
        shape = _shape(options, nbytes, modes[-1], base.dtype, base.redop)
        if shape is not None:
            yield Case(**fixed, **shape, lib="pass", in_place=modes[-1], check=False)  # type: ignore[arg-type]


def _plan_barrier(options: Options) -> list[Case]:
    batches = -(-options.iters // 16) if options.iters else 25
    ours = Case(0, 16, batches, "barrier", redop="none", in_place=False, warm=-(-options.warmup // 16))
    peers = [
        Case(0, 16, 3, "barrier", "gloo", f"{threads}t", redop="none", in_place=False, threads=threads)
        for threads in gloo.THREADS
        if "gloo" in options.compare
    ]
    return [ours, *peers]


def mpi_cases(cases: list[Case]) -> list[Case]:
    """What the MPIs are to run: one case for each that dcomm runs in another way than by its variants alone."""
    found: dict[tuple[object, ...], Case] = {}
    for case in cases:
        if case.lib == "dcomm" and case.wire is None:
            key = (case.count, case.dtype, case.redop, case.in_place)
            numbers = (case.collective, "mpi", "", "c", case.dtype, None, case.redop)
            same = Case(case.count, case.calls, case.batches, *numbers, in_place=case.in_place, buffers=case.buffers)
            found.setdefault(key, same)
    return list(found.values())
