"""Tensors in memory that all ranks of a group reach, made and freed by each rank as it needs them.

FSDP2 makes the buffers of its collectives anew in every step and asks the process group for their memory. To make a
shared array is collective; so the ranks set a large range of addresses aside once, together, and every rank takes its
tensors from its own, by itself, and gives memory to as much of it as it has ever used at once. Their places need not be
the same on all ranks (:meth:`dcomm.Communicator.reduce_scatter`), so ranks whose tensors live for different times do no
harm to each other, and one that has run out takes ordinary memory, which costs the others their direct way and nothing
else.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections import deque
from typing import Any

import numpy
import torch

from dcomm.communicator import Communicator
from dcomm.errors import SharedMemoryError
from dcomm.torch.spans import Spans

logger = logging.getLogger("dcomm")

_ALIGNMENT = 256
_COMMIT_BYTES = 1 << 21  # memory is taken in steps of this
_VARIABLE = "DCOMM_TENSOR_BYTES"


class WindowMemory:
    """Where the tensors of one group come from."""

    def __init__(self, comm: Communicator) -> None:
        """Nothing is set aside before the first tensor."""
        self._comm = comm
        self._spans: Spans | None = None
        self._memory: Any = None  # of this rank's part, as an array of bytes
        self._region: Any = None
        self._committed_bytes = 0  # from the beginning
        # Tensors die in any thread, and in the middle of anything: what is free is noted, and taken back at the next.
        self._freed: deque[int] = deque()
        self._has_warned = False
        self._lock = threading.Lock()  # backward may run in a thread of autograd's
        self._nbytes = _limit(comm.world_size) if comm.world_size > 1 else 0

    @property
    def committed_bytes(self) -> int:
        """How much memory this rank's tensors have ever needed at once, about."""
        return self._committed_bytes

    @property
    def used_bytes(self) -> int:
        """How much of it is in use now."""
        with self._lock:
            self._take_back()
            return 0 if self._spans is None else self._spans.used_bytes

    @property
    def is_on(self) -> bool:
        """False: every tensor is ordinary memory, for there is one rank only, or the environment says so."""
        return self._nbytes > 0

    def tensor(self, count: int, dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised tensor of `count` elements. The first call is collective, the others are not.

        Its memory is taken back when the last tensor over it is gone. Where the range is full, or there is no memory,
        the tensor is an ordinary one, and the log says so once.
        """
        nbytes = count * torch.empty((), dtype=dtype).element_size()
        if nbytes == 0 or not self.is_on:
            return torch.empty(count, dtype=dtype)
        with self._lock:
            if self._spans is None:
                self._set_aside()
            begin = self._take(nbytes)
            if begin is None:
                return torch.empty(count, dtype=dtype)
            part = self._memory[begin : begin + nbytes]
        weakref.finalize(part, self._freed.append, begin).atexit = False
        return torch.frombuffer(part, dtype=dtype)

    def close(self) -> None:
        """Tensors from now on are ordinary memory; those that there are stay valid."""
        self._nbytes = 0
        self._memory = self._region = None

    def _set_aside(self) -> None:
        self._spans = Spans(0)
        try:
            self._region = self._comm._core.reserve(self._nbytes, 0)
        except SharedMemoryError as error:  # raised by all ranks
            self._warn_once(f"no memory that all ranks reach: {error}")
            return
        self._memory = numpy.frombuffer(memoryview(self._region), numpy.uint8)
        self._spans = Spans(self._nbytes)

    def _take(self, nbytes: int) -> int | None:
        assert self._spans is not None
        self._take_back()
        begin = self._spans.take(-(-nbytes // _ALIGNMENT) * _ALIGNMENT)
        if begin is None:
            self._warn_once(
                f"{self._spans.used_bytes} of the {self._nbytes} bytes for this group's tensors are in use, and "
                f"{nbytes} more were asked for; raise {_VARIABLE}"
            )
        elif not self._commit(begin + nbytes):
            self._spans.give_back(begin)
            return None
        return begin

    def _take_back(self) -> None:
        while self._spans is not None and self._freed:
            self._spans.give_back(self._freed.popleft())

    def _commit(self, end: int) -> bool:
        if end <= self._committed_bytes:
            return True
        end = min(self._nbytes, -(-end // _COMMIT_BYTES) * _COMMIT_BYTES)
        try:
            self._region.commit(self._committed_bytes, end)
        except SharedMemoryError as error:
            self._warn_once(str(error))
            return False
        self._committed_bytes = end
        return True

    def _warn_once(self, text: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "dcomm: a tensor of a group is ordinary memory, so its collectives are copied through slots: %s",
                text,
            )


def _limit(world_size: int) -> int:
    """Bytes of addresses for one rank.

    Raises:
        ValueError: The environment has no number.
    """
    text = os.environ.get(_VARIABLE, "")
    if text:
        if not text.isdecimal():
            raise ValueError(f"{_VARIABLE}={text!r}: expected a number of bytes; unset it for the default")
        return int(text)
    machine_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return machine_bytes // world_size
