"""DDP's buckets as memory that all ranks reach, so that their all-reduce stages nothing.

DDP allocates its buckets itself. The communicator can put shared pages in place of a tensor's own ones, behind the same
addresses (:meth:`dcomm.Communicator.register`); DDP notices nothing. Two facts about DDP make this safe: it lays its
buckets out anew at most once, after the first step, and then keeps them as long as it lives; and all ranks have the
same buckets in the same order.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch

from dcomm.communicator import Communicator
from dcomm.errors import SharedMemoryError

logger = logging.getLogger("dcomm")

# The call for a bucket in which it is registered: after the one move that DDP makes. A number, not a look at the
# addresses, because registering is collective and addresses are each rank's own.
SETTLED = 3


@dataclass
class _Known:
    """A bucket that was seen; count and dtype are the same on all ranks, the address is not."""

    count: int
    dtype: torch.dtype
    calls: int = 0
    registration: Any = None
    tensor: torch.Tensor | None = None  # what was registered


class BucketMemory:
    """The registered buckets of one DDP module."""

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm
        self._known: dict[int, _Known] = {}
        self._has_warned = False

    def place_of(self, index: int, tensor: torch.Tensor) -> torch.Tensor:
        """Where bucket `index` is to be reduced; collective when it is registered.

        Returns:
            `tensor`, or, should DDP have moved the bucket on this rank after all, the memory that the other ranks
            know: `tensor` is to be copied there and back.
        """
        known = self._known.get(index)
        if known is None or known.count != tensor.numel() or known.dtype != tensor.dtype:
            if known is not None and known.registration is not None:
                known.registration.close()
            known = self._known[index] = _Known(tensor.numel(), tensor.dtype)
        known.calls += 1
        if known.calls == SETTLED:
            self._register(known, tensor)
        if known.tensor is None or known.tensor.data_ptr() == tensor.data_ptr():
            return tensor
        self._warn_once("DDP moved a registered bucket; it is copied in every step from now on")
        return known.tensor

    def _register(self, known: _Known, tensor: torch.Tensor) -> None:
        try:
            known.registration = self._comm.register(tensor)
        except (ValueError, SharedMemoryError) as error:  # raised by all ranks, which go on through the window
            self._warn_once(f"buckets are copied through the window: {error}")
        else:
            known.tensor = tensor

    def _warn_once(self, text: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            logger.warning("dcomm: %s", text)

    def close(self) -> None:
        """Give the buckets pages of their own again, with their contents."""
        for known in self._known.values():
            if known.registration is not None:
                known.registration.close()
        self._known.clear()
