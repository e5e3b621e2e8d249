"""The ``"dcomm"`` backend of torch.distributed: a process group over dcomm communicators.

>>> import dcomm.torch                                                # doctest: +SKIP
>>> torch.distributed.init_process_group("dcomm")                     # doctest: +SKIP

A group is a Python class with two communicators, one for collectives and one for messages; the core of dcomm links no
torch. One group serves CPU and CUDA tensors. Source of the interface: PyTorch, torch/distributed/distributed_c10d.py.
"""

from __future__ import annotations

import atexit
import math
import os
import weakref
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

import dcomm
from dcomm.operation import timeout_to_ns
from dcomm.torch import dynamo, functional_ops
from dcomm.torch.completer import Completer
from dcomm.torch.device_streams import SideStreams
from dcomm.torch.group_call import GroupCall
from dcomm.torch.group_identity import BACKEND_NAME
from dcomm.torch.group_messages import GroupMessages
from dcomm.torch.group_monitored import GroupMonitored
from dcomm.torch.group_overloads import GroupOverloads
from dcomm.torch.group_work import DoneWork, GroupWork
from dcomm.torch.window_memory import WindowMemory

# A wake-up of the progress thread costs about as much.
_PATIENCE_NS = 20_000
_UNSET = timedelta(0)  # torch's options say -1 ms where the caller named no timeout

_live: weakref.WeakSet[ProcessGroup] = weakref.WeakSet()


class ProcessGroup(GroupOverloads, GroupMessages, GroupMonitored):
    """A process group over dcomm; made by ``init_process_group("dcomm")`` and ``new_group``.

    Synchronous calls run in the calling thread. Asynchronous ones run on the communicator's progress thread, in call
    order; with ``DCOMM_ASYNC=0`` they run in the calling thread as well, and callbacks of their futures inline. On a
    GPU all are asynchronous to the host: the current stream waits for a synchronous call at once, for another one when
    somebody waits for its handle.
    """

    def __init__(self, rank: int, world_size: int, store: Any, timeout: timedelta, group_id: str) -> None:
        """Collective over the group's ranks."""
        super().__init__(rank, world_size, store, timeout)
        functional_ops.install()
        self._overlap = os.environ.get("DCOMM_ASYNC", "1") != "0"
        self._completer = Completer()
        self._sides = SideStreams()
        self._comm = dcomm.init(
            rank=rank, world_size=world_size, store=store, group_name=f"group/{group_id}", timeout=timeout
        )
        self._fast, self._start_plain = self._comm._fast, self._comm._start_plain
        messages = self._comm.split(0)
        assert messages is not None
        self._messages = messages
        self._tensors = WindowMemory(self._comm)
        self._comm._core.set_patience(_PATIENCE_NS)
        self.set_timeout(timeout)
        _live.add(self)

    @property
    def communicator(self) -> dcomm.Communicator:
        """The communicator of the group's collectives."""
        return self._comm

    def supports_tensor_alloc(self, device: Any) -> bool:
        """Whether :meth:`allocate_tensor` has more to give than ordinary memory."""
        return torch.device(device).type == "cpu" and self._tensors.is_on

    def allocate_tensor(self, size: Any, *, dtype: torch.dtype, device: Any) -> torch.Tensor:
        """An uninitialised tensor from which the other ranks' collectives can read where it lies.

        What FSDP2 calls after ``set_allocate_memory_from_process_group_for_comm(True)``. An all-gather or a
        reduce-scatter whose inputs are such tensors on all ranks, or parts of them, copies nothing through slots. The
        group's first call is collective. Freed as every tensor.

        Args:
            size: Elements, or a shape.
            dtype: Any dtype of torch.
            device: "cpu".

        Raises:
            ValueError: Another device.
            MismatchError: The ranks have different DCOMM_TENSOR_BYTES; on all of them.
        """
        if torch.device(device).type != "cpu":
            raise ValueError(f"allocate_tensor(device={device}): expected 'cpu'; ask supports_tensor_alloc(device)")
        if isinstance(size, int):
            return self._tensors.tensor(size, dtype)
        return self._tensors.tensor(math.prod(size), dtype).view(tuple(size))

    def set_timeout(self, timeout: timedelta) -> None:
        """The limit of each wait of later operations that name none."""
        super().set_timeout(timeout)
        for comm in (self._comm, self._messages):
            comm._core.set_timeout(timeout_to_ns(timeout))

    _set_default_timeout = set_timeout

    def shutdown(self) -> None:
        """Finish what is queued, and free the communicators."""
        self._tensors.close()
        self._comm.close()
        self._messages.close()
        self._completer.close()

    def abort(self) -> None:
        """End every wait on every rank."""
        self._comm.abort()
        self._messages.abort()

    def _get_sequence_number_for_group(self) -> int:
        return int(self._comm.stats()["num_operations"])

    def _call(self, opts: Any) -> GroupCall:
        timeout = opts.timeout
        return GroupCall(
            self._comm,
            opts.asyncOp,
            None if timeout <= _UNSET else timeout,
            self._overlap,
            self._completer,
            self._sides,
        )

    def _start(self, tensors: list[torch.Tensor], op: str) -> GroupWork | None:
        x = tensors[0]
        started = self._start_plain(x, op) if self._overlap else self._fast(x, None, op, "auto", None)
        if started is True:
            return DoneWork(tensors)
        return GroupWork((started,), tensors, self._completer) if started else None

    def _message_call(self) -> GroupCall:
        return GroupCall(self._messages, True, None, True, self._completer, self._sides)


def create(options: Any, _backend_options: Any = None) -> ProcessGroup:
    """What torch calls to make a group: `options` has its store, rank, size, timeout and name."""
    return ProcessGroup(
        options.group_rank, options.group_size, options.store, options.timeout, options.group_id or "default"
    )


def register() -> None:
    """Make ``"dcomm"`` known to torch.distributed, once."""
    if BACKEND_NAME.upper() not in dist.Backend._plugins:
        dist.Backend.register_backend(BACKEND_NAME, create, extended_api=True, devices=["cpu", "cuda"])
        dynamo.skip(*dynamo.parts_of(__name__))


@atexit.register
def _shut_down_all() -> None:
    """No thread of a group outlives the interpreter."""
    for group in list(_live):
        group._comm._core.leave()
        group._messages._core.leave()
        group._completer.close()
