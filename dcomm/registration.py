"""Memory that a caller has already, made reachable for all ranks of a communicator while it is registered."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

from dcomm.errors import ConcurrentUseError, SharedMemoryError

if TYPE_CHECKING:
    from dcomm import _core

_abandoned: list[Any] = []  # what must outlive its owner: its pages could not be given back


class Registration:
    """An array whose whole pages are shared with the other ranks' processes, until :meth:`close`.

    Made by :meth:`dcomm.Communicator.register`. It keeps the array's memory: what is registered is neither freed nor
    resized, whatever happens to the array object. A context manager.
    """

    def __init__(self, core: _core.Communicator, region: _core.Region, array: Any, memory: Any) -> None:
        """Wrap what the core has made; use :meth:`dcomm.Communicator.register` instead."""
        self._core = core
        self._region: _core.Region | None = region
        self._reach_bytes = region.reach_bytes
        self._array = array
        self._memory = memory

    @property
    def array(self) -> Any:
        """What was registered; None after :meth:`close`."""
        return self._array

    @property
    def reach_bytes(self) -> int:
        """How many of its bytes all ranks have mapped; they are reduced where they lie."""
        return self._reach_bytes

    @property
    def closed(self) -> bool:
        """True after :meth:`close`."""
        return self._region is None

    def close(self) -> None:
        """Make the array ordinary memory again, with its present content; then let go of it. Idempotent.

        Waits for this rank's queued operations. Not collective; but once a rank has closed, the others must not pass
        their registered array where this one passes its ordinary one. Nothing may write to the array meanwhile.

        Raises:
            SharedMemoryError: No memory for the private pages; the array is still registered.
            ConcurrentUseError: Another thread is using the communicator.
        """
        if self._region is None:
            return
        self._core.release(self._region)
        self._region = self._array = self._memory = None

    def __enter__(self) -> Registration:
        """The registration itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def __del__(self) -> None:
        try:
            if getattr(self, "_region", None) is not None:
                self.close()
        except (SharedMemoryError, ConcurrentUseError):
            _abandoned.append((self._region, self._memory))  # rather lost than reused while peers have it mapped

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.reach_bytes} bytes reached by all ranks"
        return f"dcomm.Registration({state})"
