"""What each collective moves, what every rank must end up with, and how its bandwidth is counted.

Sizes, counts and bus bandwidths are those of nccl-tests (its doc/PERFORMANCE.md): the size is that of the largest
buffer of a rank, the count that of the elements of one message, and busbw is what the busiest link carries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Collective:
    """One line of the table below."""

    name: str
    reduces: bool = False
    rooted: bool = False
    divided: bool = False  # the size is cut into one message for each rank
    modes: tuple[bool, ...] = (False,)  # in place?
    busbw: str = "1"  # 1, n-1/n, 2(n-1)/n


class Piece(NamedTuple):
    """Part of a result: `length` elements from element `start` of rank `source`'s input; None: of the reduction."""

    source: int | None
    start: int
    length: int


_BOTH = (False, True)
COLLECTIVES = {
    row.name: row
    for row in (
        Collective("all_reduce", reduces=True, modes=_BOTH, busbw="2(n-1)/n"),
        Collective("reduce_scatter", reduces=True, divided=True, busbw="(n-1)/n"),
        Collective("all_gather", divided=True, busbw="(n-1)/n"),
        Collective("broadcast", rooted=True, modes=(True,)),
        Collective("reduce", reduces=True, rooted=True, modes=_BOTH),
        Collective("gather", rooted=True, divided=True, busbw="(n-1)/n"),
        Collective("scatter", rooted=True, divided=True, busbw="(n-1)/n"),
        Collective("all_to_all", divided=True, busbw="(n-1)/n"),
        Collective("all_to_all_uneven", divided=True),
        Collective("sendrecv"),
        Collective("sendrecv_any"),
        Collective("barrier", busbw="0"),
    )
}


def bus_factor(name: str, world_size: int) -> float:
    """Bus bandwidth over algorithm bandwidth."""
    share = (world_size - 1) / world_size
    return {"0": 0.0, "1": 1.0, "(n-1)/n": share, "2(n-1)/n": 2 * share}[COLLECTIVES[name].busbw]


def bandwidths(nbytes: int, us: float, world_size: int, name: str = "all_reduce") -> tuple[float, float]:
    """The algbw and busbw in GB/s (1e9 bytes)."""
    algbw = nbytes / us / 1e3
    return algbw, algbw * bus_factor(name, world_size)


def uneven_counts(count: int, rank: int, world_size: int) -> tuple[list[int], list[int]]:
    """Elements that `rank` sends to each rank in all_to_all_uneven, and those that it receives from each.

    Nothing to itself, two messages to the next rank, one to each of the others: as many in all as in all_to_all.
    """
    steps = [(peer - rank) % world_size for peer in range(world_size)]
    sends = [count * {0: 0, 1: 2}.get(step, 1) for step in steps]
    receives = [count * {0: 0, world_size - 1: 2}.get(step, 1) for step in steps]
    return sends, receives


def input_count(name: str, count: int, rank: int, root: int, world_size: int) -> int:
    """Elements that a rank passes in."""
    if name == "barrier" or (name == "scatter" and rank != root):
        return 0
    whole = ("reduce_scatter", "scatter", "all_to_all", "all_to_all_uneven")
    return count * world_size if name in whole else count


def output_count(name: str, count: int, rank: int, root: int, world_size: int) -> int:
    """Elements that a rank has afterwards and that are defined."""
    return sum(piece.length for piece in pieces(name, count, rank, root, world_size))


def pieces(name: str, count: int, rank: int, root: int, world_size: int) -> list[Piece]:
    """What the result of `rank` is made of, in order."""
    everyone = range(world_size)
    if name == "barrier" or (name in ("reduce", "gather") and rank != root):
        return []
    if name in ("all_reduce", "reduce"):
        return [Piece(None, 0, count)]
    if name == "reduce_scatter":
        return [Piece(None, rank * count, count)]
    if name == "broadcast":
        return [Piece(root, 0, count)]
    if name == "scatter":
        return [Piece(root, rank * count, count)]
    if name in ("sendrecv", "sendrecv_any"):
        return [Piece((rank - 1) % world_size, 0, count)]
    if name == "all_to_all_uneven":
        sends = [uneven_counts(count, source, world_size)[0] for source in everyone]
        return [Piece(source, sum(row[:rank]), row[rank]) for source, row in enumerate(sends)]
    start = rank * count if name == "all_to_all" else 0
    return [Piece(source, start, count) for source in everyone]
