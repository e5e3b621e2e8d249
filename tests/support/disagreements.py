"""Random programs of a few collectives in which one rank does something else, and what every rank must then be told.

A case is a pure function of (seed, world_size), so that ranks that are processes make the same one each for itself.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import dcomm

FAILS_WITHIN_S = 1.0
STALL_S = (
    0.3  # the deadline of calls that wait for a rank that is elsewhere: nobody can see sooner that it will not come
)
REDUCTIONS = ("all_reduce", "reduce_scatter", "reduce")
ROOTED = {"broadcast": "src", "scatter": "src", "reduce": "dst", "gather": "dst"}
NAMES = ("all_reduce", "all_reduce", "all_reduce", "reduce_scatter", "all_gather", "all_to_all", *ROOTED, "barrier")
DTYPES = ("float32", "float64", "float16", "int32", "uint8", "bool")
OPS = ("sum", "prod", "min", "max")
ALGOS = ("auto", "one_shot", "two_shot", "ring", "tree")
WIRES = ("float16", "bfloat16")
SPLIT = "argument in a split group"
SWAPPED = "swapped communicators"
KINDS = {  # how often of 50
    "argument": 18,
    "order": 6,
    "skipped call": 6,
    "extra call": 4,
    SPLIT: 6,
    "message": 4,
    "message nobody sends": 2,
    SWAPPED: 4,
}


@dataclass(frozen=True)
class Call:
    """A collective with its arguments; count: of a block, where there is one for each rank."""

    name: str
    count: int = 0
    dtype: str = "float32"
    op: str = "sum"
    root: int = 0
    wire: str | None = None
    algo: str = "auto"

    def run(self, comm: dcomm.Communicator, timeout: float = 10) -> None:
        blocks = comm.world_size if self.name in ("reduce_scatter", "scatter", "all_to_all") else 1
        x = np.ones(self.count * blocks, self.dtype)
        if self.name == "barrier":
            comm.barrier(timeout=timeout)
        elif self.name == "all_reduce":
            comm.all_reduce(x, self.op, wire_dtype=self.wire, algo=self.algo, timeout=timeout)
        elif self.name == "reduce_scatter":
            comm.reduce_scatter(x, self.op, timeout=timeout)
        elif self.name == "reduce":
            comm.reduce(x, self.op, dst=self.root, timeout=timeout)
        elif self.name == "scatter":
            if comm.rank == self.root:
                comm.scatter(x, src=self.root, timeout=timeout)
            else:
                comm.scatter(out=x[: self.count], src=self.root, timeout=timeout)
        elif self.name in ROOTED:
            getattr(comm, self.name)(x, **{ROOTED[self.name]: self.root}, timeout=timeout)
        else:
            getattr(comm, self.name)(x, timeout=timeout)

    def fragments(self) -> list[str]:
        """What an error's text says of it."""
        if self.name == "barrier":
            return ["barrier()"]
        texts = [f"{self.name}(count={self.count}, dtype={self.dtype}"]
        if self.name in REDUCTIONS:
            texts.append(f"op={self.op}")
        if self.name == "all_reduce":
            texts.append(f"wire_dtype={self.wire or self.dtype}")
        if self.name == "all_reduce" and self.algo != "auto":
            texts.append(f"algo={self.algo}")
        if self.name in ROOTED:
            texts.append(f"{ROOTED[self.name]}={self.root}")
        return texts


BARRIER = Call("barrier")
END = Call("all_gather", count=33_333)  # as no random call: a skipped one comes to light here at the latest


@dataclass(frozen=True)
class Case:
    seed: int
    kind: str
    world_size: int
    odd: int  # the rank that differs
    usual: tuple[Call, ...]
    odd_calls: tuple[Call, ...]
    peer: int  # of a message of the odd rank

    def __str__(self) -> str:
        return (
            f"seed {self.seed}, {self.world_size} ranks: {self.kind}, rank {self.odd} calls {self.odd_calls}, "
            f"others {self.usual}"
        )


def random_call(rng: np.random.Generator, world_size: int) -> Call:
    name = str(rng.choice(NAMES))
    if name == "barrier":
        return BARRIER
    dtype = str(rng.choice(DTYPES))
    has_wire = name == "all_reduce" and dtype == "float32" and rng.random() < 0.3
    return Call(
        name,
        count=int(2 ** rng.uniform(0, 15)) - 1,
        dtype=dtype,
        op=str(rng.choice(OPS)) if name in REDUCTIONS else "sum",
        root=int(rng.integers(world_size)) if name in ROOTED else 0,
        wire=str(rng.choice(WIRES)) if has_wire else None,
        algo=str(rng.choice(ALGOS)) if name == "all_reduce" else "auto",
    )


def another(rng: np.random.Generator, among: Sequence[Any], than: Any) -> Any:
    others = [one for one in among if one != than]
    return others[int(rng.integers(len(others)))]


def changed(rng: np.random.Generator, call: Call, world_size: int) -> Call:
    """The call with one argument that is not the same, or another collective."""
    if call.name == "barrier" or rng.random() < 0.15:
        while (other := random_call(rng, world_size)).name == call.name:
            pass
        return other
    ways = [
        replace(call, count=call.count + int(rng.integers(1, 5000))),
        replace(call, dtype=another(rng, DTYPES, call.dtype), wire=None),
    ]
    if call.name in REDUCTIONS:
        ways.append(replace(call, op=another(rng, OPS, call.op)))
    if call.name in ROOTED:
        ways += 2 * [replace(call, root=another(rng, range(world_size), call.root))]
    if call.name == "all_reduce" and call.dtype == "float32":
        ways.append(replace(call, wire=another(rng, (None, *WIRES), call.wire)))
    if call.algo != "auto":
        ways.append(replace(call, algo=another(rng, ALGOS[1:], call.algo)))
    return ways[int(rng.integers(len(ways)))]


def make_case(seed: int, world_size: int | None = None) -> Case:
    rng = np.random.default_rng([seed, 88])
    kind = str(rng.choice([kind for kind, weight in KINDS.items() for _ in range(weight)]))
    n = world_size or int(rng.integers(2, 6))
    odd = int(rng.integers(n))
    if kind == SPLIT and len(same_half(odd, n)) == 1:  # nobody there to disagree with
        kind = "argument"
    size = len(same_half(odd, n)) if kind == SPLIT else n
    usual = [random_call(rng, size) for _ in range(int(rng.integers(1, 6)))]
    calls = list(usual)
    at = int(rng.integers(len(usual)))
    if kind in ("argument", SPLIT):
        calls[at] = changed(rng, calls[at], size)
    elif kind == "order":
        usual.insert(at + 1, changed(rng, usual[at], size))
        calls = list(usual)
        calls[at : at + 2] = [usual[at + 1], usual[at]]
    elif kind == "skipped call":
        del calls[at]
    elif kind == "extra call":
        calls.insert(at, random_call(rng, size))
    peer = (odd + int(rng.integers(1, n))) % n
    return Case(seed, kind, n, odd, (*usual, END), (*calls, END), peer)


def same_half(odd: int, world_size: int) -> list[int]:
    """The ranks of the odd one's group, where there are two."""
    return [rank for rank in range(world_size) if rank % 2 == odd % 2]


Groups = Sequence[dcomm.Communicator]


def _run_calls(comm: dcomm.Communicator, calls: Sequence[Call]) -> None:
    for call in calls:
        call.run(comm)


def _program(comm: dcomm.Communicator, case: Case, groups: Groups) -> None:
    _run_calls(comm, case.odd_calls if comm.rank == case.odd else case.usual)


def _message(comm: dcomm.Communicator, case: Case, groups: Groups) -> None:
    """The odd rank sends what its peer does not expect."""
    count = 1 + case.seed * 331 % 40_000
    if comm.rank == case.odd:
        comm.send(np.ones(count, np.float32), case.peer, timeout=10)
    elif comm.rank == case.peer:
        wrong = np.ones(count + 1, np.float32) if case.seed % 2 else np.ones(count, np.int32)
        comm.recv(wrong, case.odd, timeout=10)
    comm.barrier(timeout=10)


def _message_nobody_sends(comm: dcomm.Communicator, case: Case, groups: Groups) -> None:
    if comm.rank == case.odd:
        comm.recv(np.ones(7), case.peer, tag=3, timeout=STALL_S)
    comm.all_reduce(np.ones(7), timeout=10)


def _swapped(comm: dcomm.Communicator, case: Case, groups: Groups) -> None:
    try:
        for group in reversed(groups) if comm.rank == case.odd else groups:
            group.all_reduce(np.ones(100), timeout=STALL_S)
    finally:
        time.sleep(0.15)  # what is closed at once is not there for the others' texts


def _in_a_group(comm: dcomm.Communicator, case: Case, groups: Groups) -> None:
    """One of two groups disagrees, and the other one does not hear of it."""
    if comm.rank not in same_half(case.odd, case.world_size):
        return _run_calls(groups[0], [replace(call, root=0) for call in case.usual])
    return _program(groups[0], replace(case, odd=same_half(case.odd, case.world_size).index(case.odd)), groups)


BODIES = {"message": _message, "message nobody sends": _message_nobody_sends, SWAPPED: _swapped, SPLIT: _in_a_group}


def run_case(comm: dcomm.Communicator, case: Case) -> dict[str, Any]:
    """What `comm`'s rank is told, and after how long."""
    colors = {SWAPPED: [0, 0], SPLIT: [comm.rank % 2]}.get(case.kind, [])
    groups = [group for color in colors if (group := comm.split(color)) is not None]
    comm.barrier(timeout=20)
    start = time.monotonic()
    told: dict[str, Any] = {"error": None, "text": ""}
    try:
        BODIES.get(case.kind, _program)(comm, case, groups)
    except dcomm.DcommError as error:
        told = {"error": type(error).__name__, "text": str(error)}
    told["seconds"] = time.monotonic() - start
    if case.kind == SPLIT:
        comm.barrier(timeout=20)  # the communicator that both come from is whole
    for group in groups:
        group.close()
    return told


CALLED = re.compile(r"rank (\d+) called (\w+\(.*?\)) as #(\d+)")


def problems(case: Case, told: Sequence[dict[str, Any]]) -> list[str]:
    """What is wrong with what the ranks were told; nothing, where all is as promised."""
    concerned = same_half(case.odd, case.world_size) if case.kind == SPLIT else list(range(case.world_size))
    found = []
    for rank, one in enumerate(told):
        if rank not in concerned:
            if one["error"] is not None:
                found.append(f"rank {rank} of the other group: {one['text']}")
            continue
        complaint = _complaint(case, rank, one, concerned)
        if complaint:
            found.append(f"rank {rank}: {complaint}; was told {one['error']}: {one['text']}")
    return found


def _complaint(case: Case, rank: int, one: dict[str, Any], concerned: list[int]) -> str:
    text = one["text"]
    times_out = case.kind in ("message nobody sends", SWAPPED)
    if one["error"] != ("CollectiveTimeoutError" if times_out else "MismatchError"):
        return "silent success" if one["error"] is None else "another error"
    if one["seconds"] > FAILS_WITHIN_S:
        return f"after {one['seconds']:.2f} s"
    if case.kind == "message":
        return "" if f"rank {case.odd}" in text and f"rank {case.peer}" in text else "does not name both ranks"
    if case.kind == "message nobody sends":
        awaited = [f"no answer from rank {case.peer}"]
        if rank == case.peer:  # told by the one that gave up
            awaited.append(f"rank {case.odd} waited for this rank")
        return "" if any(words in text for words in awaited) else "does not name the rank that is awaited"
    if case.kind == SWAPPED:
        made = text.count(f"communicator of {case.world_size} ranks made at ")
        others = [case.odd] if rank != case.odd else [other for other in concerned if other != case.odd]
        named = all(f"rank {other} is in all_reduce(" in text for other in others)
        return "" if made >= 2 and named else "does not name both groups"
    called = CALLED.findall(text)
    if len(called) != 2 or called[0][0] == called[1][0]:
        return "does not name two sides"
    odd = concerned.index(case.odd)
    if str(odd) not in (called[0][0], called[1][0]):
        return f"does not name rank {odd}"
    first = 1 if case.kind == SPLIT else 2  # after the barrier at the beginning
    for who, call, number in called:
        calls = case.odd_calls if int(who) == odd else case.usual
        index = int(number) - first
        if not 0 <= index < len(calls) or not all(part in call for part in calls[index].fragments()):
            return f"rank {who} did not call {call} as #{number}"
    if called[0][1:] == called[1][1:] and "an earlier call differed" not in text:
        return "both sides are the same"
    return ""
