"""Packs 200 ResNet-50-shaped tensors into one and back, beside a copy of as many bytes and torch._foreach_copy_."""

from __future__ import annotations

import itertools
import math
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch

import dcomm
from dcomm.bench.cuda.torch_timing import copy_bandwidth, event_times_us
from gpu.report import CHECKOUT, Budget, Report

sys.path.append(str(CHECKOUT / "benchmarks"))
from shapes import resnet50_like

PAIRS = [("float32", "float32"), ("float32", "float16"), ("float32", "bfloat16"), ("bfloat16", "bfloat16")]


def time_lists(dtype: str, whole_dtype: str, bandwidth: float) -> list[dict[str, Any]]:
    """Pack and unpack with gaps of whole cache lines, as a bucket plan leaves them."""
    tensors = [torch.randn(shape, device="cuda").to(getattr(torch, dtype)) for shape in resnet50_like()]
    counts = [tensor.numel() for tensor in tensors]
    padded = [-(-count // 32) * 32 for count in counts]
    ends = list(itertools.accumulate(padded))
    offsets = [end - length for end, length in zip(ends, padded, strict=True)]
    whole = torch.zeros(ends[-1], dtype=getattr(torch, whole_dtype), device="cuda")
    views = [whole[offset : offset + n].view_as(t) for offset, n, t in zip(offsets, counts, tensors, strict=True)]
    device = tensors[0].device.index
    codes = {"float32": 0, "float16": 1, "bfloat16": 2}
    runs = dcomm._core.CudaArrayList(device, [t.data_ptr() for t in tensors], counts, offsets, codes[dtype])
    whole_code, stream = codes[whole_dtype], torch.cuda.current_stream().cuda_stream
    nbytes = sum(counts) * (tensors[0].element_size() + whole.element_size())
    ways: dict[str, Callable[[], Any]] = {
        "pack": lambda: runs.pack(whole.data_ptr(), whole_code, 1.0, stream),
        "pack, torch._foreach_copy_": lambda: torch._foreach_copy_(views, tensors),
        "unpack": lambda: runs.unpack(whole.data_ptr(), whole_code, 1.0, stream),
        "unpack, torch._foreach_copy_": lambda: torch._foreach_copy_(tensors, views),
    }
    medians = {name: statistics.median(event_times_us(enqueue, 30)) for name, enqueue in ways.items()}
    rows = []
    for name in ("pack", "unpack"):
        found = {"what": name, "dtype": dtype, "whole": whole_dtype, "us": round(medians[name], 2)}
        found["foreach_us"] = round(medians[f"{name}, torch._foreach_copy_"], 2)
        found["percent_of_copy"] = round(100 * nbytes / (medians[name] * 1e-6) / bandwidth, 1)
        found["over_foreach"] = round(medians[f"{name}, torch._foreach_copy_"] / medians[name], 2)
        rows.append(found)
    return rows


def run(report: Report, budget: Budget) -> None:
    bandwidth = copy_bandwidth(4 * sum(math.prod(shape) for shape in resnet50_like()))
    report.values["copy_bytes_per_second"] = bandwidth
    for dtype, whole_dtype in PAIRS:
        if budget.allows(f"{dtype} in {whole_dtype}"):
            for row in time_lists(dtype, whole_dtype, bandwidth):
                report.add(row)
        report.save()
