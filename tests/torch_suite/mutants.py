"""Broken backends, to see that the runner notices: each changes dcomm's group in a rank before it is made."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import dcomm.torch

_group: Any = dcomm.torch.ProcessGroup


def _wrong() -> None:
    right = _group.broadcast

    def broadcast(group: Any, tensors: Any, opts: Any = None) -> Any:
        work = right(group, tensors, opts)
        if work is not None:
            work.wait()
        if group.rank() != opts.rootRank:
            for tensor in tensors:
                tensor.detach().add_(1)
        return work

    _group.broadcast = broadcast


def _hang() -> None:
    def broadcast(*_args: Any, **_kwargs: Any) -> Any:
        while True:
            time.sleep(1)

    _group.broadcast = broadcast


def _exit() -> None:
    """All is well until the end: only the status of the last rank tells."""
    right = _group.shutdown

    def shutdown(group: Any) -> None:
        right(group)
        if group.rank() == group.size() - 1:
            os._exit(7)

    _group.shutdown = shutdown


def _idle() -> None:
    """Another backend does all the work."""
    import torch.distributed as dist

    def make(options: Any, _backend_options: Any = None) -> Any:
        return dist.ProcessGroupGloo(options.store, options.group_rank, options.group_size, options.timeout)

    dist.Backend._plugins["DCOMM"] = dist.Backend._plugins["DCOMM"]._replace(creator_fn=make)


MUTANTS: dict[str, Callable[[], None]] = {"wrong": _wrong, "hang": _hang, "exit": _exit, "idle": _idle}
