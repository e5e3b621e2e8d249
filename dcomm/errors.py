"""Exceptions of dcomm.

Bad arguments raise :class:`ValueError` or :class:`TypeError`; everything that happens between ranks is a
:class:`DcommError`. After one of these a communicator is broken on every rank: each later call raises the first
reason again, and the way on is a new communicator.
"""

from __future__ import annotations

from collections.abc import Iterable


class DcommError(RuntimeError):
    """Base class of all errors between ranks. Its text ends with the section of docs/errors.md about its class."""

    def __str__(self) -> str:
        text = super().__str__()
        pointer = f"docs/errors.md#{_documented(type(self)).__name__.lower()}"
        return text if pointer in text else f"{text} (see {pointer})"


def _documented(kind: type[BaseException]) -> type[BaseException]:
    """The class with a section of its own: `kind`, or the nearest base where it is none of these."""
    return next(cls for cls in kind.__mro__ if _BY_NAME.get(cls.__name__) is cls)


class _RankError(DcommError):
    """An error that is about some ranks, and has their numbers besides its text. They survive pickling.

    Args:
        args: The text.
        ranks: See the attribute.
        pids: See the attribute; in the order of `ranks`.
        last_seq: See the attribute.

    Attributes:
        ranks: By their numbers in the communicator that raised it, the one that was noticed first at the front. Empty
            where the text names no rank.
        pids: Of each of `ranks`; None where they are threads, or where it is not known.
        last_seq: The number of the last operation that the first of them had completed when the error was made, as
            "#41" in the text; 0: none so far. None where it is not known: during set-up, and of operations on a GPU.
    """

    ranks: tuple[int, ...] = ()
    pids: tuple[int | None, ...] = ()
    last_seq: int | None = None

    def __init__(
        self,
        *args: object,
        ranks: Iterable[int] = (),
        pids: Iterable[int | None] | None = None,
        last_seq: int | None = None,
    ) -> None:
        super().__init__(*args)
        self.ranks = tuple(ranks)
        self.pids = (None,) * len(self.ranks) if pids is None else tuple(pids)
        self.last_seq = last_seq

    @property
    def rank(self) -> int | None:
        """The first of :attr:`ranks`."""
        return self.ranks[0] if self.ranks else None

    @property
    def pid(self) -> int | None:
        """The first of :attr:`pids`."""
        return self.pids[0] if self.pids else None


class PeerLostError(_RankError):
    """A rank died, closed its communicator or was interrupted while others still needed it.

    `ranks`, `pids` and `last_seq` say which (`rank` and `pid`: the first). Later calls raise it again, with those
    that have died since behind it.
    """


class CollectiveTimeoutError(_RankError):
    """A rank is alive but did not answer before the deadline.

    `ranks`, `pids` and `last_seq` say which (`rank` and `pid`: the first): the one furthest behind; at init all that
    did not come; on the rank that the others gave up on, itself. Empty where a wait of this rank alone was too short,
    as in ``work.wait(timeout)``, and where any rank could have sent.
    """


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
