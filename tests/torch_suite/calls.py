"""How many operations a rank has run on dcomm: that a test passed says little if it ran on another backend.

The numbers are those of the core (``Communicator.stats``), not of the layer that is under test.
"""

from __future__ import annotations

from typing import Any

import dcomm
import dcomm.torch


class Calls:
    """Counts, from its making on, what this process does on all groups that it makes."""

    def __init__(self) -> None:
        """Once per process."""
        self._made: list[tuple[dcomm.Communicator, int]] = []
        group_class: Any = dcomm.torch.ProcessGroup
        make = group_class.__init__

        def make_and_note(group: Any, *args: Any, **kwargs: Any) -> None:
            make(group, *args, **kwargs)
            self._made += [(comm, _operations(comm)) for comm in (group._comm, group._messages)]

        group_class.__init__ = make_and_note

    def count(self) -> int:
        """Operations so far; a closed communicator still tells its own."""
        return sum(_operations(comm) - before for comm, before in self._made)


def _operations(comm: dcomm.Communicator) -> int:
    return int(comm.stats()["num_operations"])
