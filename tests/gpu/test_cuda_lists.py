"""The kernels that pack lists of arrays into one and back, through the core: the host's bits, one launch, in graphs."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from cuda_arrays import bits, make_input

import dcomm
from dcomm import _core
from dcomm.arrays import DTYPE_CODES

pytestmark = pytest.mark.gpu

COUNTS = [37, 0, 4096, 1, 100_003, 16, 333]
PAIRS = [
    ("float32", "float32"),
    ("float32", "float16"),
    ("float32", "bfloat16"),
    ("float16", "float32"),
    ("bfloat16", "float32"),
    ("float16", "float16"),
    ("bfloat16", "bfloat16"),
]
UNTOUCHED = 7.0


def tensors(dtype: str, shift: int) -> list[Any]:
    """On the GPU, `shift` elements off the alignment of packs; on odd numbers of a list only."""
    import torch

    made = []
    for number, count in enumerate(COUNTS):
        storage = torch.zeros(count + 8, dtype=getattr(torch, dtype), device="cuda")
        made.append(storage[shift * (number % 2) :][:count])
        made[-1].copy_(make_input(number, count, dtype))
    return made


def places(align: int) -> tuple[list[int], int]:
    """Where each array lies in a whole that is padded to multiples of `align` elements, and the whole's length."""
    padded = [-(-count // align) * align for count in COUNTS]
    ends = list(itertools.accumulate(padded))
    return [end - length for end, length in zip(ends, padded, strict=True)], ends[-1]


def make_list(arrays: list[Any], offsets: list[int], dtype: str) -> _core.CudaArrayList:
    device = arrays[0].device.index
    pointers, counts = [array.data_ptr() for array in arrays], [array.numel() for array in arrays]
    return _core.CudaArrayList(device, pointers, counts, offsets, DTYPE_CODES[dtype])


def stream() -> int:
    import torch

    return int(torch.cuda.current_stream().cuda_stream)


@pytest.mark.parametrize(("dtype", "whole_dtype"), PAIRS)
@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize(("shift", "align"), [(0, 16), (0, 1), (1, 16)])
def test_bits_are_the_hosts(dtype: str, whole_dtype: str, scale: float, shift: int, align: int) -> None:
    import torch

    arrays = tensors(dtype, shift)
    offsets, total = places(align)
    whole = torch.full((total + 8,), UNTOUCHED, dtype=getattr(torch, whole_dtype), device="cuda")
    runs = make_list(arrays, offsets, dtype)
    runs.pack(whole.data_ptr(), DTYPE_CODES[whole_dtype], scale, stream())
    back = [torch.full((array.numel() + 8,), UNTOUCHED, dtype=array.dtype, device="cuda") for array in arrays]
    other = make_list([made[: array.numel()] for made, array in zip(back, arrays, strict=True)], offsets, dtype)
    other.unpack(whole.data_ptr(), DTYPE_CODES[whole_dtype], 1.0 / scale, stream())
    torch.cuda.synchronize()
    found = whole.cpu()
    assert bool((found[total:] == UNTOUCHED).all()), "wrote beyond the whole"
    for array, made, offset in zip(arrays, back, offsets, strict=True):
        count = array.numel()
        expected = torch.empty(count, dtype=whole.dtype)
        dcomm.pack([array.cpu()], expected, scale=scale)
        assert torch.equal(bits(found[offset : offset + count]), bits(expected))
        returned = torch.empty(count, dtype=array.dtype)
        dcomm.unpack(expected, [returned], scale=1.0 / scale)
        assert torch.equal(bits(made.cpu()[:count]), bits(returned))
        assert bool((made[count:] == UNTOUCHED).all()), "wrote beyond an array"


def test_a_captured_graph_follows_its_arrays() -> None:
    import torch

    arrays = tensors("float32", 0)
    offsets, total = places(16)
    whole = torch.zeros(total, dtype=torch.float16, device="cuda")
    runs = make_list(arrays, offsets, "float32")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        runs.pack(whole.data_ptr(), DTYPE_CODES["float16"], 0.5, stream())
    for number in range(3):
        for array in arrays:
            array.fill_(float(number))
        graph.replay()
        torch.cuda.synchronize()
        for offset, count in zip(offsets, COUNTS, strict=True):
            assert bool((whole[offset : offset + count] == 0.5 * number).all())


def test_refusals() -> None:
    import torch

    arrays = [torch.ones(4, dtype=torch.int32, device="cuda")]
    runs = make_list(arrays, [0], "int32")
    whole = torch.zeros(4, dtype=torch.int32, device="cuda")
    runs.pack(whole.data_ptr(), DTYPE_CODES["int32"], 1.0, stream())
    assert whole.tolist() == [1, 1, 1, 1]
    with pytest.raises(ValueError, match="from int32 to int32 with scale 2"):
        runs.pack(whole.data_ptr(), DTYPE_CODES["int32"], 2.0, stream())
    with pytest.raises(ValueError, match="from int32 to float32"):
        runs.pack(whole.data_ptr(), DTYPE_CODES["float32"], 1.0, stream())
