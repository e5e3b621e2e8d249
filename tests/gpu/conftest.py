"""Tests that need a GPU; on a machine without one they are skipped, and say so."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a CUDA GPU, torch with CUDA and the CUDA part of dcomm")


def _why_not() -> str | None:
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a CUDA build of torch warns where there is no driver
        available = torch.cuda.is_available()
    if not available:
        return "torch.cuda is not available (no GPU, no driver, or a CPU build of torch)"
    from dcomm import CudaError, _core

    try:
        _core.cuda_device_count()
    except CudaError as error:
        return str(error)
    return None


@pytest.fixture(autouse=True, scope="session")
def _needs_gpu() -> Iterator[None]:
    reason = _why_not()
    if reason is not None:
        pytest.skip(f"GPU tests: {reason}")
    yield
