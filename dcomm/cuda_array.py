"""An array in the memory of a GPU that every rank reaches, for whatever library is there."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy

from dcomm import _core
from dcomm.arrays import DTYPE_BYTES, DTYPE_CODES

if TYPE_CHECKING:
    from dcomm._core import CudaRegion

_DLPACK_CUDA = 2


class CudaArray:
    """What ``comm.empty(..., device="cuda")`` makes for a NumPy dtype: memory, its shape and dtype, and the protocols.

    ``cupy.asarray(x)``, ``numba.cuda.as_cuda_array(x)`` and ``torch.as_tensor(x, device="cuda")`` are views of the same
    memory, and keep it. dcomm takes all of them, and this one, on the legacy default stream unless ``stream=`` is
    given. ``x[begin:end]`` is a part of it, along the first dimension.

    The memory is freed with its last view. That waits for the GPU, as cudaFree does; ranks may do so in any order.
    """

    def __init__(
        self, region: CudaRegion, address: int, shape: tuple[int, ...], dtype: numpy.dtype[Any], device: int
    ) -> None:
        """Wrap what the core has made; use :meth:`dcomm.Communicator.empty` instead."""
        self._region = region
        self._address = address
        self._shape = shape
        self._dtype = dtype
        self._device = device

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return self._shape

    @property
    def dtype(self) -> numpy.dtype[Any]:
        """Of its elements."""
        return self._dtype

    @property
    def size(self) -> int:
        """How many elements there are."""
        return math.prod(self._shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.size * self._dtype.itemsize

    @property
    def device(self) -> int:
        """The number of the GPU."""
        return self._device

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if self._dtype.kind == "V":  # ml_dtypes.bfloat16
            raise AttributeError("the CUDA array interface knows no bfloat16; DLPack does")
        return {
            "shape": self._shape,
            "typestr": self._dtype.str,
            "data": (self._address, False),
            "strides": None,
            "stream": None,
            "version": 3,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        """(kDLCUDA, number of the GPU)."""
        return _DLPACK_CUDA, self._device

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A DLPack capsule of the same memory. `stream`: not needed, nothing is pending.

        Raises:
            BufferError: A copy, or another device, is asked for.
        """
        if copy or (dl_device is not None and tuple(dl_device) != self.__dlpack_device__()):
            raise BufferError(f"copy={copy!r}, dl_device={dl_device!r}: dcomm gives this memory as it is, no copy")
        code = DTYPE_CODES[self._dtype.name]
        versioned = max_version is not None and max_version[0] >= 1
        return _core.dlpack_capsule(self._region, self._address, list(self._shape), code, self._device, versioned)

    def __len__(self) -> int:
        """Of the first dimension."""
        if not self._shape:
            raise TypeError("len() of a CudaArray without dimensions")
        return self._shape[0]

    def __getitem__(self, key: slice) -> CudaArray:
        """A part along the first dimension, of the same memory.

        Raises:
            TypeError: Not a slice, or with a step.
        """
        if not isinstance(key, slice) or key.step not in (None, 1) or not self._shape:
            raise TypeError(f"x[{key!r}]: expected x[begin:end]; use a CuPy or torch view for more")
        begin, end, _ = key.indices(self._shape[0])
        row = math.prod(self._shape[1:]) * self._dtype.itemsize
        shape = (max(0, end - begin), *self._shape[1:])
        return CudaArray(self._region, self._address + begin * row, shape, self._dtype, self._device)

    def __repr__(self) -> str:
        return f"dcomm.CudaArray(shape={self._shape}, dtype={self._dtype.name}, device='cuda:{self._device}')"


def as_tensor(region: CudaRegion, shape: tuple[int, ...], dtype: Any, device: int) -> Any:
    """A torch tensor of such memory, which keeps it."""
    import torch

    count = math.prod(shape)
    if count == 0:
        return torch.empty(shape, dtype=dtype, device=f"cuda:{device}")
    nbytes = count * DTYPE_BYTES[DTYPE_CODES[str(dtype).removeprefix("torch.")]]
    plain = CudaArray(region, region.address, (nbytes,), numpy.dtype(numpy.uint8), device)  # knows no bfloat16
    return torch.as_tensor(plain, device=f"cuda:{device}").view(dtype).reshape(shape)
