"""Many arrays as one message: :class:`Bucket`, and pack / unpack for what something else is to communicate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from dcomm import _core
from dcomm.arrays import DTYPE_BYTES, DTYPE_NAMES, KINDS, TORCH_CODES, View, view
from dcomm.errors import CudaError


class Bucket:
    """An immutable list of arrays of one dtype that travels as one message: ``comm.all_reduce(bucket)``.

    The collective reads the arrays where they lie and writes its result there; nothing is packed. Make it once and use
    it in every step. It keeps its arrays alive. Every use looks whether a tensor's storage was replaced since
    (``resize_``, ``set_``, ``.data = ...``), which raises ValueError; storage must not be replaced either while an
    asynchronous operation uses the bucket.

    The ranks agree on the total count and the dtype only: they may cut the same message into different arrays. The
    result has the bits of an all_reduce of one array that holds all of these, one after the other.

    >>> import numpy as np, dcomm
    >>> bucket = dcomm.Bucket([np.ones((2, 3), np.float32), np.zeros(5, np.float32)])
    >>> bucket.count, bucket.nbytes
    (11, 44)
    """

    __slots__ = ("_core",)

    def __init__(self, arrays: Iterable[Any]) -> None:
        """Take the arrays as they lie.

        Args:
            arrays: C-contiguous NumPy arrays, torch CPU tensors or buffers, of any shapes and of one dtype; also
                none, or empty ones. An array that shares memory with another one can be read only (with ``out=``).

        Raises:
            ValueError: One is not contiguous, or they are of several dtypes.
            TypeError: Not an array, or of a dtype that dcomm does not move.
            CudaError: One is in device memory.
        """
        self._core = _core.ArrayList(tuple(arrays), KINDS, TORCH_CODES, _describe)

    @property
    def arrays(self) -> tuple[Any, ...]:
        """The arrays, in the order of their elements in the message."""
        return self._core.arrays

    @property
    def count(self) -> int:
        """Elements of all arrays."""
        return self._core.count

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self._core.count * DTYPE_BYTES[self._core.dtype]

    @property
    def dtype(self) -> str:
        """The dtype of all arrays, as users write it."""
        return DTYPE_NAMES[self._core.dtype]

    def __len__(self) -> int:
        """How many arrays there are."""
        return len(self._core.arrays)

    def __iter__(self) -> Iterator[Any]:
        """The arrays in order."""
        return iter(self._core.arrays)

    def __repr__(self) -> str:
        return f"dcomm.Bucket({len(self)} arrays, {self.count} elements of {self.dtype})"


def as_bucket(array: Any) -> Bucket:
    """The bucket itself, or one of that one array."""
    return array if isinstance(array, Bucket) else Bucket([array])


def pack(arrays: Bucket | Iterable[Any], out: Any, *, scale: float = 1.0) -> Any:
    """Copy arrays into one, one after the other, scaled and cast in the same pass.

    For memory that something else is to communicate; :meth:`Communicator.all_reduce` takes a :class:`Bucket` as it is.

    Args:
        arrays: A Bucket, or arrays that could be one.
        out: C-contiguous array of as many elements; of the same dtype, or float32 and float16 / bfloat16 either way.
            Shares no memory with the arrays.
        scale: Each element is multiplied by it, in float32 (float64: in float64), and rounded once. Floats and complex
            numbers only.

    Returns:
        `out`.

    Raises:
        ValueError: Counts differ, dtypes do not go together, `scale` with integers or bool, `out` is read-only, not
            contiguous or overlaps the arrays.
        TypeError, CudaError: As for :class:`Bucket`.
    """
    bucket = arrays if isinstance(arrays, Bucket) else Bucket(arrays)
    whole = _whole("out", out, bucket)
    if not whole.writable:
        raise ValueError("out is read-only: pass a writable array")
    _core.pack(bucket._core, whole.address, whole.nbytes, whole.dtype, float(scale))
    return out


def unpack(buffer: Any, arrays: Bucket | Iterable[Any], *, scale: float = 1.0) -> Bucket | Iterable[Any]:
    """Copy one array into many, scaled and cast in the same pass: the way back of :func:`pack`.

    Args:
        buffer: C-contiguous array of as many elements as `arrays` together; dtypes as for :func:`pack`.
        arrays: A Bucket, or arrays that could be one; overwritten.
        scale: As for :func:`pack`.

    Returns:
        `arrays`.

    Raises:
        ValueError, TypeError, CudaError: As for :func:`pack`.
    """
    taken = arrays if isinstance(arrays, Bucket) else tuple(arrays)
    bucket = taken if isinstance(taken, Bucket) else Bucket(taken)
    whole = _whole("buffer", buffer, bucket)
    _core.unpack(whole.address, whole.nbytes, whole.dtype, bucket._core, float(scale))
    return taken


def _describe(index: int, array: Any) -> tuple[int, int, int, bool]:
    found = _on_host(f"array {index} of the bucket", array)
    return found.address, found.count, found.dtype, found.writable


def _whole(name: str, array: Any, bucket: Bucket) -> View:
    found = _on_host(name, array)
    if found.count != bucket.count:
        raise ValueError(
            f"{name} has {found.count} elements: expected {bucket.count}, as the arrays have together; pass one of "
            "that length"
        )
    return found


def _on_host(name: str, array: Any) -> View:
    found = view(array)
    if found.device >= 0:
        raise CudaError(f"{name} is a CUDA array: buckets serve CPU arrays only so far; move it with .cpu()")
    if not found.contiguous:
        raise ValueError(f"{name} is not contiguous: expected C-contiguous memory; pass .contiguous(), or a copy")
    return found
