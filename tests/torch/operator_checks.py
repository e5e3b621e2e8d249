"""What the checks of dcomm.torch.functional share: their list, a way to compile, errors, numbers of rows."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

import dcomm

CHECKS: dict[str, Callable[[dcomm.Communicator], None]] = {}
ROWS = 8  # divisible by 2 and 4


def check(body: Callable[[dcomm.Communicator], None]) -> Callable[[dcomm.Communicator], None]:
    CHECKS[body.__name__] = body
    return body


def compiled(body: Callable[..., Any], backend: str) -> Callable[..., Any]:
    return body if backend == "uncompiled" else torch.compile(body, fullgraph=True, backend=backend)


@contextlib.contextmanager
def raises(kind: type[BaseException], text: str) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        assert type(error) is kind, repr(error)
        assert text in str(error), repr(error)
    else:
        raise AssertionError(f"no {kind.__name__}")


def uneven(n: int) -> list[list[int]]:
    """Rows that each rank sends to each: one to every other, odd ranks one more to the next, the rest to itself."""
    counts = [[1 + (rank % 2 if to == (rank + 1) % n else 0) for to in range(n)] for rank in range(n)]
    for rank, row in enumerate(counts):
        row[rank] += ROWS - sum(row)
    return counts
