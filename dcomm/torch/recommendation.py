"""Which way of averaging buckets is fastest here, for each of their sizes: the process group, dcomm, dcomm with a wire.

    round 1   group, dcomm, dcomm float16 | round 2   dcomm, dcomm float16, group | ...     slowest rank of each round
    verdict   median of the rounds; rank 0's choice goes to all

A half wire is chosen only where it is clearly faster than anything without, since it changes numbers; dcomm only where
it is clearly faster than the group. So the answer may be: leave it as it is.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import _DEFAULT_FIRST_BUCKET_BYTES, _compute_bucket_assignment_by_size
from torch.nn.parallel import DistributedDataParallel

import dcomm
from dcomm import arrays
from dcomm.communicator import Communicator
from dcomm.errors import DcommError, SharedMemoryError

ROUNDS = 5
GROUP, DCOMM = "group", "dcomm"
# What replaces something must take at most this part of its time: more may be noise, and a step must not get slower.
CLEARLY = 0.95
CLEARLY_FOR_A_WIRE = 0.9  # it changes numbers, too
_MIB = 1 << 20


@dataclass(frozen=True)
class SizeVerdict:
    """What was found for buckets of one size."""

    count: int
    dtype: str  # "float32"
    times_ms: dict[str, float]  # by candidate: GROUP, DCOMM, or the wire's dtype
    choice: str
    reason: str

    @property
    def nbytes(self) -> int:
        """Of the bucket."""
        return self.count * arrays.DTYPE_BYTES[arrays.DTYPE_CODES[self.dtype]]

    def __str__(self) -> str:
        times = ", ".join(f"{_title(name)} {ms:.3g} ms" for name, ms in self.times_ms.items())
        return f"{self.nbytes / _MIB:.3g} MiB: {_title(self.choice)} ({times}; {self.reason})"


@dataclass(frozen=True)
class Recommendation:
    """What :func:`recommend` found; the same on all ranks. As text: one line, all sizes."""

    world_size: int
    backend: str  # of the process group; "": there was none to compare with
    verdicts: tuple[SizeVerdict, ...]  # by size, the largest first
    note: str = ""  # why nothing was measured

    def choice(self, count: int, dtype: str = "float32") -> str:
        """What to use for a bucket: GROUP, DCOMM, or a wire's dtype; what was found for the size nearest to it."""
        same = [verdict for verdict in self.verdicts if verdict.dtype == dtype]
        return min(same, key=lambda verdict: abs(verdict.count - count)).choice if same else GROUP

    @property
    def compressing_pays(self) -> bool:
        """Whether a half wire is chosen for any size."""
        return any(verdict.choice not in (GROUP, DCOMM) for verdict in self.verdicts)

    def __str__(self) -> str:
        group = f"the group is {self.backend}" if self.backend else "no process group to compare with"
        found = "; ".join(map(str, self.verdicts)) or self.note
        return f"{self.world_size} ranks, {group}, medians of {ROUNDS} rounds: {found}"


def recommend(
    model: torch.nn.Module, comm_or_group: Any = None, *, allow_wire: Sequence[Any] = ("float16",)
) -> Recommendation:
    """Measure how the buckets of a model are averaged fastest between these ranks. Collective; takes a second or so.

    >>> print(dcomm.torch.recommend(model))    # doctest: +SKIP
    2 ranks, the group is gloo, medians of 5 rounds: 23.1 MiB: dcomm (group 32.1 ms, dcomm 7.9 ms, ...

    Nothing is changed: ``HookState(policy="auto")`` is what acts on it. The buckets are those that DDP makes after its
    first step, of the `bucket_cap_mb` of `model` where that is a DistributedDataParallel, else of the default.

    Args:
        model: On the CPU or on this rank's GPU, equal on all ranks.
        comm_or_group: A Communicator, which is compared with torch's default group where that has the same ranks; a
            process group, with which a communicator of the same ranks is compared; None: the default group.
        allow_wire: Wires that may be chosen, "float16" and "bfloat16". (): none is tried.

    Returns:
        For each size the times, the choice, and why. It says "group" for all where dcomm cannot serve.

    Raises:
        TypeError: No model; neither a communicator nor a group.
        ValueError: A wire that there is not, a model without trainable parameters, no group at all.
        DcommError: See :mod:`dcomm.errors`.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model is a {type(model).__name__}: expected a torch.nn.Module")
    wires = [arrays.DTYPE_NAMES[arrays.wire_code(wire)] for wire in allow_wire]
    buckets = buckets_of(model)
    if isinstance(comm_or_group, Communicator):
        return measure(comm_or_group, _equal_group(comm_or_group), buckets, wires)
    group = dist.group.WORLD if comm_or_group is None else comm_or_group
    if group is None:
        raise ValueError("there is no process group: call init_process_group() first, or pass a dcomm.Communicator")
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(f"comm_or_group is a {type(group).__name__}: expected a Communicator or a process group")
    try:
        comm = dcomm.init(
            rank=group.rank(),
            world_size=group.size(),
            store=group.get_group_store(),
            group_name=f"recommend/{group.group_name}",
        )
    except DcommError as error:
        if type(error) is not DcommError:  # a failure, not "the ranks are on several hosts"
            raise
        return Recommendation(group.size(), dist.get_backend(group), (), f"group ({error})")
    with comm:
        return measure(comm, group, buckets, wires)


def buckets_of(model: torch.nn.Module) -> list[torch.Tensor]:
    """For each bucket that DDP would settle on, a tensor of its count, dtype and device, of one element in memory.

    Raises:
        ValueError: Nothing is trained.
    """
    trained = [parameter.detach() for parameter in model.parameters() if parameter.requires_grad][::-1]
    if not trained:
        raise ValueError("the model has no parameter that requires a gradient: there is nothing to average")
    limits = [_DEFAULT_FIRST_BUCKET_BYTES, 25 * _MIB]
    if isinstance(model, DistributedDataParallel) and not model.bucket_bytes_cap_default:
        limits = [model.bucket_bytes_cap]
    groups, _ = _compute_bucket_assignment_by_size(trained, limits, [False] * len(trained))
    first = [trained[group[0]] for group in groups]
    counts = [sum(trained[index].numel() for index in group) for group in groups]
    return [tensor.flatten()[:1].expand(n) for tensor, n in zip(first, counts, strict=True)]


def measure(comm: Communicator, group: Any, buckets: Iterable[torch.Tensor], wires: Sequence[str]) -> Recommendation:
    """Time every candidate for every size of bucket. Collective.

    Args:
        comm: Of the group's ranks.
        group: The process group; None: it is not a candidate.
        buckets: Tensors of the counts and dtypes, on the device; their values are not touched.
        wires: Wires to try for float32.
    """
    found = []
    sizes = {(bucket.numel(), bucket.dtype): bucket for bucket in buckets if bucket.numel()}
    for (count, dtype), bucket in sorted(sizes.items(), key=lambda item: -item[0][0]):
        name = str(dtype).removeprefix("torch.")
        tried = wires if dtype is torch.float32 else ()
        times = _time(comm, candidates(comm, group, bucket, tried), bucket.device)
        verdict = choose(times)
        agreed = numpy.array([list(times).index(verdict[0])])
        comm.broadcast(agreed, src=0)
        found.append(SizeVerdict(count, name, times, list(times)[int(agreed[0])], verdict[1]))
    return Recommendation(comm.world_size, dist.get_backend(group) if group is not None else "", tuple(found))


def candidates(
    comm: Communicator, group: Any, bucket: torch.Tensor, wires: Sequence[str]
) -> dict[str, Callable[[], Any]]:
    """Each way to average a bucket like this one, on memory of its own. Collective."""
    plain = torch.ones(bucket.numel(), dtype=bucket.dtype, device=bucket.device)
    direct = plain
    if bucket.device.type == "cpu":
        try:
            direct = comm.empty(bucket.numel(), bucket.dtype)  # as buckets that are registered
        except SharedMemoryError:  # raised by all ranks
            direct = plain

    def by_group() -> None:
        plain.div_(comm.world_size)
        dist.all_reduce(plain, group=group)

    found: dict[str, Callable[[], Any]] = {} if group is None else {GROUP: by_group}
    found[DCOMM] = partial(comm.all_reduce, direct, "avg")
    for wire in wires:
        found[wire] = partial(comm.all_reduce, plain, "avg", wire_dtype=wire)
    return found


def choose(times_ms: dict[str, float]) -> tuple[str, str]:
    """The candidate to use, and why, given the time of each."""
    plain = {name: ms for name, ms in times_ms.items() if name in (GROUP, DCOMM)}
    choice = GROUP if GROUP in plain else DCOMM
    reasons = []
    if choice == GROUP:
        if plain[DCOMM] <= CLEARLY * plain[GROUP]:
            choice = DCOMM
        else:
            reasons.append("dcomm is not clearly faster")
    wires = {name: ms for name, ms in times_ms.items() if name not in plain}
    if wires:
        best = min(wires, key=lambda name: wires[name])
        if wires[best] <= CLEARLY_FOR_A_WIRE * min(plain.values()):
            return best, "compressing pays"
        reasons.append("compressing does not pay")
    return choice, ", ".join(reasons) or "the fastest"


def _time(comm: Communicator, ways: dict[str, Callable[[], Any]], device: torch.device) -> dict[str, float]:
    """Milliseconds of each: in each round the slowest rank's, and of the rounds the median."""
    names = list(ways)
    for way in ways.values():  # what is done once is not counted
        way()
    ms = numpy.zeros((ROUNDS, len(names)))
    for number in range(ROUNDS):
        for place in range(len(names)):
            which = (number + place) % len(names)
            _finish(device)
            comm.barrier()
            begin = time.perf_counter()
            ways[names[which]]()
            _finish(device)
            ms[number, which] = 1e3 * (time.perf_counter() - begin)
    slowest = comm.all_gather(ms.ravel()).reshape(comm.world_size, *ms.shape).max(axis=0)
    return {name: statistics.median(slowest[:, which].tolist()) for which, name in enumerate(names)}


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def _equal_group(comm: Communicator) -> Any:
    """Torch's default group, where it has the communicator's ranks in their order. Collective."""
    group = dist.group.WORLD if dist.is_available() and dist.is_initialized() else None
    equal = group is not None and (group.rank(), group.size()) == (comm.rank, comm.world_size)
    agreed = numpy.array([equal], numpy.uint8)
    comm.all_reduce(agreed, "min")
    return group if agreed[0] else None


def _title(name: str) -> str:
    return name if name in (GROUP, DCOMM) else f"dcomm {name}"
