"""Arrays that live in memory which all ranks of a communicator reach: collectives take no staging copy."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy

from dcomm import arrays, device_arrays
from dcomm.cuda_array import CudaArray, as_tensor
from dcomm.operation import check_writable, cpu_operand, timeout_to_ns
from dcomm.registration import Registration

if TYPE_CHECKING:
    from dcomm import _core


class WindowArrays:
    """The part of a :class:`dcomm.Communicator` that makes such arrays."""

    if TYPE_CHECKING:
        _core: _core.Communicator
        _device: int | None

        def _check_on_host(self, stream: Any = None) -> None: ...

    def empty(
        self,
        shape: int | Sequence[int],
        dtype: Any = "float32",
        *,
        device: Any = None,
        timeout: float | timedelta | None = None,
    ) -> Any:
        """Make an array of zeros in memory that all ranks reach. Collective: every rank calls it, in the same order.

        Every rank gets an array of its own. :meth:`all_reduce` of such arrays, or of contiguous parts of them, reduces
        them where they lie: nothing is copied to or from slots, and the bits are those of "two_shot". For that every
        rank must pass the same part of the same array (and of the same `out`); where one passes another part or other
        memory, all raise MismatchError. :meth:`reduce_scatter` and :meth:`all_gather` read the others' `x` where it
        lies, if that is part of such an array, the same one on all ranks; the parts need not be the same. Everything
        else takes them as any other array.

        On a GPU the same holds: "direct" reads the peers' arrays and writes their results in place, between processes
        over memory that each has mapped. Where ranks are threads `out` may then be any array; between processes it may
        too, and each rank sums for itself ("auto" does so between 2 ranks). To drop such an array waits for the GPU.

        The memory is freed when every rank has dropped its array; a rank that drops its own does not touch the others'.
        It outlives the communicator. A forked child (a DataLoader worker) shares this memory with its parent: it sees
        what the parent writes, and the other way round.

        Args:
            shape: Of the array; the same on every rank. A dimension may be 0.
            dtype: A NumPy dtype or its name: a NumPy array. A torch dtype (bfloat16 too): a torch tensor. One of those
                that :meth:`all_reduce` takes. On a GPU the same: a torch dtype gives a torch tensor, another one a
                :class:`dcomm.CudaArray`, of which ``cupy.asarray`` makes a view.
            device: None or "cpu"; "cuda", "cuda:1" or a torch.device: a GPU. Ranks that are threads share one.
            timeout: Seconds (or timedelta) that a single wait for another rank may last; None: the communicator's.

        Returns:
            A NumPy array, a torch tensor or a CudaArray, C-contiguous, zeroed, its address a multiple of 256 (4096 on
            the host). On a GPU it is ready on every stream.

        Raises:
            TypeError: Not a dtype that dcomm moves, or `shape` is no shape.
            ValueError: A negative dimension, a bad timeout, or another GPU than the communicator's.
            MismatchError: The ranks ask for different numbers of bytes, or some for a GPU; on all of them, and the
                communicator is still usable.
            CudaError: No GPU, or no memory on it, on this rank or another; the communicator is still usable.
            SharedMemoryError: No memory, on this rank or another; the communicator is still usable.
            PeerLostError, CollectiveTimeoutError, AbortedError, ForkedProcessError, ConcurrentUseError: See
                :mod:`dcomm.errors`.
        """
        self._check_on_host()
        dimensions = _dimensions(shape)
        name, is_torch = arrays.dtype_name(dtype)
        count = math.prod(dimensions)
        nbytes = count * arrays.DTYPE_BYTES[arrays.DTYPE_CODES[name]]
        if device is not None and str(device) != "cpu":
            return self._empty_on_gpu(dimensions, dtype, is_torch, device, nbytes, timeout_to_ns(timeout))
        memory = memoryview(self._core.allocate(nbytes, timeout_to_ns(timeout)))  # held by the array
        if not is_torch:
            return numpy.ndarray(dimensions, dtype, buffer=memory)
        flat = sys.modules["torch"].from_numpy(numpy.ndarray(nbytes, numpy.uint8, buffer=memory))
        return flat.view(dtype).reshape(dimensions)

    def _empty_on_gpu(
        self, shape: tuple[int, ...], dtype: Any, is_torch: bool, device: Any, nbytes: int, timeout_ns: int
    ) -> Any:
        index = device_arrays.device_index(device)
        if self._device is not None and index != self._device:
            raise ValueError(f"device={device!r}, but this communicator is bound to cuda:{self._device}")
        region = self._core.allocate_on_gpu(index, nbytes, timeout_ns)
        if is_torch:
            return as_tensor(region, shape, dtype, index)
        return CudaArray(region, region.address, shape, numpy.dtype(dtype), index)

    def register(self, x: Any, *, timeout: float | timedelta | None = None) -> Registration:
        """Let all ranks reach an array that is there already, so that it is reduced where it lies. Collective.

        As :meth:`empty` for memory of the caller's, such as a bucket that DDP made. The whole pages of `x` are replaced
        by shared ones with the same content, at the same addresses; what lies beside whole pages, and beside those of
        another rank, is copied as ever. So it pays for large arrays; small ones are registered and not reached. Ranks
        that are threads gain nothing by it (:meth:`empty` serves them). Nothing else may write to `x` during the call.

        Other processes can write to these pages, and do so inside an all-reduce of this very array only, between this
        rank's entry and the others' ends. A forked child gets pages of its own. The registration keeps the memory of
        `x`, and closing it brings back private pages: memory that is shared never returns to the allocator.

        Args:
            x: (count,) or any shape; a contiguous, writable NumPy array or buffer, or a dense CPU tensor; of the same
                number of bytes on every rank. Not pinned, not mapped from a file, not shared or registered already.
                The storage of a tensor cannot be resized from then on.
            timeout: Seconds (or timedelta) that a single wait for another rank may last; None: the communicator's.

        Returns:
            The :class:`Registration`; close it, or use it in a ``with`` block.

        Raises:
            TypeError: Not an array, or of a dtype that dcomm does not move.
            ValueError: Not contiguous, read-only, or of another kind of memory than above (on all ranks, and the
                communicator is still usable); or a bad timeout.
            MismatchError, SharedMemoryError, PeerLostError, CollectiveTimeoutError, AbortedError, ForkedProcessError,
            ConcurrentUseError: As for :meth:`empty`; CudaError for a CUDA array.
        """
        self._check_on_host()
        operand = cpu_operand(x, "register")
        if not operand.view.contiguous:
            raise ValueError("x is not contiguous: register takes one piece of memory; pass .contiguous()")
        check_writable("x", operand)
        if arrays.is_tensor(x) and x.is_pinned():
            raise ValueError("x is pinned: its pages are known to the GPU and must stay; register a tensor that is not")
        memory = _memory_of(x)
        region = self._core.adopt(operand.view.address, operand.view.nbytes, timeout_to_ns(timeout))
        return Registration(self._core, region, x, memory)


def _memory_of(x: Any) -> Any:
    """What keeps the memory of `x` where it is, even if `x` is given other memory."""
    if not arrays.is_tensor(x):
        return memoryview(x)
    torch = sys.modules["torch"]
    return x.detach().reshape(-1).view(torch.uint8).numpy()  # that also locks the size of the storage


def _dimensions(shape: int | Sequence[int]) -> tuple[int, ...]:
    try:
        lengths = tuple(map(operator.index, shape if isinstance(shape, Sequence) else (shape,)))
    except TypeError:
        raise TypeError(f"shape={shape!r}: expected an integer or a sequence of integers") from None
    if any(length < 0 for length in lengths):
        raise ValueError(f"shape={shape!r}: expected dimensions of at least 0")
    return lengths
