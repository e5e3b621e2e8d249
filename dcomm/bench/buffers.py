"""The arrays of a rank's measurements: filled from one period of an input, compared with one period of a result.

Only a period and a block of each sequence are kept, so that a 128 MiB message does not need as much again for every
rank's input and for the result; what is copied or compared comes block by block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dcomm.bench import exact
from dcomm.bench.case import Case
from dcomm.bench.collectives import Piece, input_count, output_count, pieces
from dcomm.bench.dtypes import storage_dtype

Array = exact.Array
_BLOCK = 1 << 18


class Sequence:
    """A period repeated for ever."""

    def __init__(self, period: Array) -> None:
        self._period = period.size
        self._data = np.resize(period, period.size + _BLOCK)

    def blocks(self, start: int, count: int) -> Iterator[tuple[slice, Array]]:
        """Where in the target, and what stands there, for elements `start` to `start + count`."""
        for low in range(0, count, _BLOCK):
            length, first = min(_BLOCK, count - low), (start + low) % self._period
            yield slice(low, low + length), self._data[first : first + length]

    def fill(self, target: Array, start: int) -> None:
        """Write the elements from `start` on into all of `target`."""
        for where, values in self.blocks(start, target.size):
            np.copyto(target[where], values)

    def num_wrong(self, found: Array, start: int) -> int:
        """How many elements of `found` have not the bits of the elements from `start` on."""
        return sum(
            int(np.count_nonzero(_bits(found[where]) != _bits(values)))
            for where, values in self.blocks(start, found.size)
        )


def _bits(values: Array) -> Array:
    """As integers; a complex element as two."""
    unit = values.itemsize if values.itemsize <= 8 else 8
    return values.view(f"u{unit}")


def aligned_array(count: int, dtype: str) -> Array:
    """`count` zeros at a cache line's start, whatever the allocator gives."""
    storage = storage_dtype(dtype)
    raw = np.zeros(count * storage.itemsize + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + count * storage.itemsize].view(storage)


class Data:
    """Inputs and results of one kind of case, for every count."""

    def __init__(self, case: Case, rank: int, world_size: int) -> None:
        made = exact.make(case.dtype, case.carrier, case.redop, world_size, case.chain)
        self._inputs = [Sequence(period) for period in made.inputs]
        self._reduced = None if made.reduced is None else Sequence(made.reduced)
        self._rank, self._world_size = rank, world_size

    @staticmethod
    def key(case: Case) -> tuple[Any, ...]:
        """Cases with equal keys share their data."""
        return case.dtype, case.carrier, case.redop, case.chain

    def fill(self, target: Array, salt: int) -> None:
        """Write this rank's input."""
        self._inputs[self._rank].fill(target, salt)

    def num_wrong(self, case: Case, found: Array, salt: int) -> int:
        """Wrong elements in a result."""
        wrong, low = 0, 0
        for piece in pieces(case.collective, case.count, self._rank, case.root, self._world_size):
            wrong += self._sequence(piece).num_wrong(found[low : low + piece.length], salt + piece.start)
            low += piece.length
        return wrong

    def expected(self, case: Case, count: int) -> Array:
        """The first `count` elements of a reduction's result."""
        target = aligned_array(count, case.dtype)
        self._sequence(Piece(None, 0, count)).fill(target, 0)
        return target

    def _sequence(self, piece: Piece) -> Sequence:
        if piece.source is not None:
            return self._inputs[piece.source]
        assert self._reduced is not None
        return self._reduced


class Pool:
    """The buffers that calls take in turn; memory is kept from case to case, as mapping it is slow.

    "direct" gets memory that all ranks reach, which they make together.
    """

    def __init__(self, empty: Callable[[int, Any], Array]) -> None:
        """`empty`: the communicator's."""
        self._empty = empty
        self._memory: dict[tuple[str, str, bool], Array] = {}

    def pairs(self, case: Case, rank: int, world_size: int) -> list[tuple[Array, Array]]:
        """For each buffer of `case` what goes in and what comes out; in place they are the same."""
        counts = [
            function(case.collective, case.count, rank, case.root, world_size)
            for function in (input_count, output_count)
        ]
        if case.in_place:
            pool = self._take("in", case, max(counts))
            return [(buffer, buffer) for buffer in pool]
        ins = self._take("in", case, counts[0])
        outs = self._take("out", case, counts[1])
        return list(zip(ins, outs, strict=True))

    def _take(self, which: str, case: Case, count: int) -> list[Array]:
        storage = storage_dtype(case.dtype)
        line = -(-count * storage.itemsize // 64) * 64 // storage.itemsize
        key = which, case.dtype, case.algo == "direct"
        memory = self._memory.get(key)
        if memory is None or memory.size < case.buffers * line:
            self._memory.pop(key, None)
            size = case.buffers * line
            shared = self._empty(size * storage.itemsize, np.uint8).view(storage) if key[2] else None
            memory = self._memory[key] = aligned_array(size, case.dtype) if shared is None else shared
        return [memory[number * line : number * line + count] for number in range(case.buffers)]
