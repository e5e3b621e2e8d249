"""Communicators of some of the ranks of another."""

from __future__ import annotations

import operator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from dcomm.operation import timeout_to_ns

if TYPE_CHECKING:
    from dcomm._core import Communicator as CoreCommunicator

_Self = TypeVar("_Self", bound="Splitting")


class Splitting:
    """The part of a :class:`dcomm.Communicator` that makes others of it."""

    if TYPE_CHECKING:
        _core: CoreCommunicator
        _local_rank: int
        _device: int | None

        def __init__(
            self, core: CoreCommunicator, *, local_rank: int | None = None, device: int | None = None
        ) -> None: ...
        def _check_on_host(self, stream: Any = None) -> None: ...

    def split(
        self: _Self, color: int | None, key: int = 0, *, timeout: float | timedelta | None = None
    ) -> _Self | None:
        """Make a communicator of all ranks that pass the same `color`. Collective: every rank of this one calls it.

        The new communicator has memory, order, errors and abort of its own; it is closed on its own and works on after
        this one is closed. What it shares is the watch over the processes: a rank that dies is lost in both. An
        argument error on one rank is raised there alone, so the others wait for it until their deadline. As
        MPI_Comm_split of the MPI standard.

        Args:
            color: The ranks of one color belong together; any integer of 64 bits. None: this rank belongs nowhere.
            key: The new ranks are in the order of (key, rank in this communicator).
            timeout: Seconds (or timedelta) that a single wait for another rank may last; None: the communicator's.

        Returns:
            The new communicator, or None where `color` is None.

        Raises:
            TypeError: `color` or `key` is no integer.
            ValueError: `color` or `key` does not fit 64 bits, or a bad timeout.
            SharedMemoryError: A window could not be made, on this rank or another; this communicator is still usable.
            PeerLostError, CollectiveTimeoutError, MismatchError, AbortedError, ForkedProcessError,
            ConcurrentUseError: See :mod:`dcomm.errors`.
        """
        self._check_on_host()
        color_number = None if color is None else _integer("color", color)
        core = self._core.split(color_number, _integer("key", key), timeout_to_ns(timeout))
        return None if core is None else type(self)(core, local_rank=self._local_rank, device=self._device)


def _integer(name: str, value: Any) -> int:
    expected = "an integer or None" if name == "color" else "an integer"
    if isinstance(value, bool):
        raise TypeError(f"{name}={value!r}: expected {expected}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}={value!r}: expected {expected}") from None
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{name}={value!r}: expected {expected} of 64 bits")
    return number
