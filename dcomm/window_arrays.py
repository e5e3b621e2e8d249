"""Arrays that live in memory which all ranks of a communicator reach: an all-reduce takes no staging copy."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy

from dcomm import arrays
from dcomm.operation import timeout_to_ns

if TYPE_CHECKING:
    from dcomm import _core


class WindowArrays:
    """The part of a :class:`dcomm.Communicator` that makes such arrays."""

    if TYPE_CHECKING:
        _core: _core.Communicator

    def empty(
        self, shape: int | Sequence[int], dtype: Any = "float32", *, timeout: float | timedelta | None = None
    ) -> Any:
        """Make an array of zeros in memory that all ranks reach. Collective: every rank calls it, in the same order.

        Every rank gets an array of its own. :meth:`all_reduce` of such arrays, or of contiguous parts of them, reduces
        them where they lie: nothing is copied to or from slots, and the bits are those of "two_shot". For that every
        rank must pass the same part of the same array (and of the same `out`); where one passes another part or other
        memory, all raise MismatchError. Everything else takes them as any other array.

        The memory is freed when every rank has dropped its array; a rank that drops its own does not touch the others'.
        It outlives the communicator. A forked child (a DataLoader worker) shares this memory with its parent: it sees
        what the parent writes, and the other way round.

        Args:
            shape: Of the array; the same on every rank. A dimension may be 0.
            dtype: A NumPy dtype or its name: a NumPy array. A torch dtype (bfloat16 too): a torch tensor. One of those
                that :meth:`all_reduce` takes.
            timeout: Seconds (or timedelta) that a single wait for another rank may last; None: the communicator's.

        Returns:
            A NumPy array or a torch tensor, C-contiguous, zeroed, its address a multiple of 4096.

        Raises:
            TypeError: Not a dtype that dcomm moves, or `shape` is no shape.
            ValueError: A negative dimension or a bad timeout.
            MismatchError: The ranks ask for different numbers of bytes; on all of them, and the communicator is still
                usable.
            SharedMemoryError: No memory, on this rank or another; the communicator is still usable.
            PeerLostError, CollectiveTimeoutError, AbortedError, ForkedProcessError, ConcurrentUseError: See
                :mod:`dcomm.errors`.
        """
        dimensions = _dimensions(shape)
        name, is_torch = arrays.dtype_name(dtype)
        count = math.prod(dimensions)
        nbytes = count * arrays.DTYPE_BYTES[arrays.DTYPE_CODES[name]]
        memory = memoryview(self._core.allocate(nbytes, timeout_to_ns(timeout)))  # held by the array
        if not is_torch:
            return numpy.ndarray(dimensions, dtype, buffer=memory)
        flat = sys.modules["torch"].from_numpy(numpy.ndarray(nbytes, numpy.uint8, buffer=memory))
        return flat.view(dtype).reshape(dimensions)


def _dimensions(shape: int | Sequence[int]) -> tuple[int, ...]:
    try:
        lengths = tuple(map(operator.index, shape if isinstance(shape, Sequence) else (shape,)))
    except TypeError:
        raise TypeError(f"shape={shape!r}: expected an integer or a sequence of integers") from None
    if any(length < 0 for length in lengths):
        raise ValueError(f"shape={shape!r}: expected dimensions of at least 0")
    return lengths
