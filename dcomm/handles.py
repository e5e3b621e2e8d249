"""Names for communicators, for callers that can pass text and numbers only: graphs that torch.compile makes."""

from __future__ import annotations

import itertools
import weakref
from typing import TYPE_CHECKING

from dcomm.errors import AbortedError

if TYPE_CHECKING:
    from dcomm.communicator import Communicator

_numbers = itertools.count()
_communicators: weakref.WeakValueDictionary[str, Communicator] = weakref.WeakValueDictionary()


def register(comm: Communicator) -> str:
    """A handle of `comm` that no other communicator of this process ever gets; it does not keep `comm` alive.

    The text is ``"<how many were made before>/<world_size>"``: equal on all ranks of a job that makes its communicators
    in one order, so that they can share compiled graphs, and enough to tell the shapes of results without the
    communicator itself.
    """
    handle = f"{next(_numbers)}/{comm.world_size}"
    _communicators[handle] = comm
    return handle


def world_size(handle: str) -> int:
    """The number of ranks that `handle` says."""
    return int(handle.partition("/")[2])


def find(handle: str) -> Communicator:
    """The communicator that has `handle`.

    Raises:
        AbortedError: It is gone.
    """
    comm = _communicators.get(handle)
    if comm is None:
        raise AbortedError(
            f"communicator {handle!r} is not in this process: it was dropped, or the handle is another process's; keep "
            "the Communicator alive as long as what was compiled with it"
        )
    return comm
