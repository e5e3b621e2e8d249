"""Exceptions of dcomm.

Bad arguments raise :class:`ValueError` or :class:`TypeError`; everything that happens between ranks is a
:class:`DcommError`. After one of these a communicator is broken on every rank: each later call raises the first
reason again, and the way on is a new communicator.
"""

from __future__ import annotations


class DcommError(RuntimeError):
    """Base class of all errors between ranks. Its text ends with the section of docs/errors.md about its class."""

    def __str__(self) -> str:
        text = super().__str__()
        pointer = f"docs/errors.md#{_documented(type(self)).__name__.lower()}"
        return text if pointer in text else f"{text} (see {pointer})"


def _documented(kind: type[BaseException]) -> type[BaseException]:
    """The class with a section of its own: `kind`, or the nearest base where it is none of these."""
    return next(cls for cls in kind.__mro__ if _BY_NAME.get(cls.__name__) is cls)


class PeerLostError(DcommError):
    """A rank died, closed its communicator or was interrupted while others still needed it."""


class CollectiveTimeoutError(DcommError):
    """A rank is alive but did not answer before the deadline."""


class MismatchError(DcommError):
    """The ranks called different collectives, or the same one with different arguments."""


class VersionMismatchError(DcommError):
    """The ranks run different versions of dcomm."""


class AbortedError(DcommError):
    """The communicator was aborted or closed."""


class ForkedProcessError(DcommError):
    """A forked child used its parent's communicator."""


class SharedMemoryError(DcommError):
    """The memory that ranks share could not be created or mapped."""


class ConcurrentUseError(DcommError):
    """Two threads used one communicator at the same time."""


class CudaError(DcommError):
    """The CUDA part is missing, or a CUDA call failed."""


_BY_NAME: dict[str, type[BaseException]] = {
    "ValueError": ValueError,
    **{
        cls.__name__: cls
        for cls in (
            DcommError,
            PeerLostError,
            CollectiveTimeoutError,
            MismatchError,
            VersionMismatchError,
            AbortedError,
            ForkedProcessError,
            SharedMemoryError,
            ConcurrentUseError,
            CudaError,
        )
    },
}
