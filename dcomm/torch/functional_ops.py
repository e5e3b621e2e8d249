"""One functional collective that C++ would not bring to a Python group.

``_c10d_functional::all_gather_into_tensor_out`` calls ``ProcessGroup::all_gather_single``, which reaches a Python class
only from torch 2.14 on; before that it looks for a C++ backend and finds none. Here it is in Python, for any group.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._C._distributed_c10d import _register_work, _resolve_process_group

_library: Any = None


def install() -> None:
    """Put the Python version in place, once, where this torch needs it."""
    global _library  # the kernels go when it goes
    version: Any = torch.torch_version.TorchVersion(torch.__version__)
    if _library is not None or version >= (2, 14):
        return
    library: Any = torch.library
    _library = library.Library("_c10d_functional", "IMPL")
    for key in ("CPU", "CUDA"):
        _library.impl("all_gather_into_tensor_out", _all_gather_into_tensor_out, key)


def _all_gather_into_tensor_out(
    tensor: torch.Tensor, group_size: int, group: Any, *, out: torch.Tensor
) -> torch.Tensor:
    """The operator's own meaning: `out` is complete after ``wait_tensor``."""
    if isinstance(group, str):
        group = _resolve_process_group(group)  # type: ignore[arg-type]
    _register_work(out, group._allgather_base(out, tensor))
    return out
