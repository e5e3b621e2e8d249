"""Which GPU reaches which, found by moving data: a driver that claims peer access may still deliver other bytes.

Method: for each ordered pair, 1 MiB of random bytes that no other pair has, so that neither what an earlier copy left
nor what another GPU holds can pass for it; peer access enabled where the driver offers it; one copy, read back and
compared. No GPU has run this file yet.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import ExitStack

from dcomm.doctor.cuda_driver import Context, Driver, DriverError
from dcomm.doctor.finding import Finding, fail, ok, warn

NAME = "peer_access"
_NBYTES = 1 << 20


def _move(source: tuple[Context, int], target: tuple[Context, int], pattern: bytes) -> bool:
    source[0].write(source[1], pattern)
    source[0].copy_to(target[0], target[1], source[1], len(pattern))
    return target[0].read(target[1], len(pattern)) == pattern


def _pair(driver: Driver, pair: tuple[int, int], source: tuple[Context, int], target: tuple[Context, int]) -> str:
    """direct, host or wrong; or the error."""
    try:
        direct = driver.can_access_peer(*pair)
        if direct:
            source[0].enable_access_to(target[0])
        pattern = random.Random(repr(pair)).randbytes(_NBYTES)
        if not _move(source, target, pattern):
            return "wrong"
        return "direct" if direct else "host"
    except DriverError as error:
        return str(error)


def matrix(driver: Driver, count: int) -> list[list[str]]:
    """Row: the GPU that sends; column: the one that receives; "-" on the diagonal."""
    with ExitStack() as stack:
        ends = []
        for index in range(count):
            context = stack.enter_context(driver.context(index))
            ends.append((context, stack.enter_context(context.memory(_NBYTES))))
        return [
            ["-" if i == j else _pair(driver, (i, j), ends[i], ends[j]) for j in range(count)] for i in range(count)
        ]


def _pairs(rows: Sequence[Sequence[str]], *kinds: str) -> list[tuple[int, int]]:
    return [(i, j) for i, row in enumerate(rows) for j, cell in enumerate(row) if cell in kinds]


def judge(rows: list[list[str]]) -> Finding:
    """The matrix as a finding."""
    total = len(rows) * (len(rows) - 1)
    if total == 0:
        return ok(NAME, "one GPU, so no pair to try", matrix=rows)
    broken = [
        f"{i}->{j} {cell}"
        for i, row in enumerate(rows)
        for j, cell in enumerate(row)
        if cell not in ("-", "direct", "host")
    ]
    if broken:
        return fail(
            NAME,
            f"of {total} copies of {_NBYTES >> 20} MiB between GPUs these failed: {', '.join(broken)}",
            "switch PCIe ACS and the IOMMU's translation off for them (kernel option iommu=pt, or firmware), and "
            "run `nvidia-smi topo -p2p r`",
            matrix=rows,
        )
    host = _pairs(rows, "host")
    if host:
        text = "all" if len(host) == total else f"{len(host)} ({', '.join(f'{i}->{j}' for i, j in host)})"
        return warn(
            NAME,
            f"{total} copies between GPUs gave the right bytes, {text} of them through the host",
            "use GPUs with peer access to each other: `nvidia-smi topo -p2p r` and `nvidia-smi topo -m` show them",
            matrix=rows,
        )
    return ok(NAME, f"{total} copies between {len(rows)} GPUs, all direct, gave the right bytes", matrix=rows)


def peer_access(driver: Driver, count: int) -> Finding:
    """Try all pairs of the first `count` GPUs."""
    try:
        return judge(matrix(driver, count))
    except DriverError as error:
        return fail(NAME, f"no memory to try with: {error}", error.fix)
