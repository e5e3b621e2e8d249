"""A barrier that names the ranks that do not come.

It goes through the group's store and not through the communicators, so that a rank which hangs in a collective is found
while the others still work, and a barrier that fails breaks nothing. torch's own ``dist.monitored_barrier`` refuses all
backends but gloo before it asks the group; the error texts are those that users of it look for.
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from dcomm.errors import CollectiveTimeoutError
from dcomm.torch.group_identity import GroupIdentity

_GRACE_S = 5.0  # rank 0's verdict comes this much later than the last rank at most


class GroupMonitored(GroupIdentity):
    """The monitored barrier of a group."""

    _num_monitored = 0

    def monitored_barrier(self, timeout: timedelta | float | None = None, wait_all_ranks: bool = False) -> None:
        """Return when every rank of the group has called it.

        Args:
            timeout: From the call of rank 0 on, a number in seconds; None: the group's.
            wait_all_ranks: Rank 0 names all ranks that did not come, and not only the first.

        Raises:
            CollectiveTimeoutError: On rank 0: a rank did not come. On the others: rank 0 did not come, or has given up
                on somebody.
        """
        limit = self._timeout if timeout is None else timeout
        limit_s = limit.total_seconds() if isinstance(limit, timedelta) else float(limit)
        number = self._num_monitored
        self._num_monitored += 1
        if self._rank == 0:
            self._collect(number, limit_s, wait_all_ranks)
        else:
            self._report(f"dcomm/monitored/{number}", limit_s)

    def _collect(self, number: int, limit_s: float, wait_all_ranks: bool) -> None:
        key = f"dcomm/monitored/{number}"
        deadline = time.monotonic() + limit_s
        if limit_s <= 0 and self._world_size > 1:
            raise CollectiveTimeoutError(
                f"Rank 0 timed out in monitoredBarrier: timeout={limit_s} s leaves no time to wait for anybody; "
                "expected more than 0"
            )
        missing: list[int] = []
        for rank in range(1, self._world_size):
            if not _arrived(self._store, f"{key}/{rank}", deadline - time.monotonic()):
                missing.append(rank)
                if not wait_all_ranks:
                    break
        names = ", ".join(map(str, missing))
        self._store.set(f"{key}/verdict", names or "all")
        if missing:
            raise CollectiveTimeoutError(
                f"Rank{'s' if len(missing) > 1 else ''} {names} failed to pass monitoredBarrier in "
                f"{limit_s * 1e3:.0f} ms; find out what they are doing",
                ranks=missing,
            )
        # Who has come to this barrier has read the verdict of the one before.
        for each in (*range(1, self._world_size), "verdict"):
            self._store.delete_key(f"dcomm/monitored/{number - 1}/{each}")

    def _report(self, key: str, limit_s: float) -> None:
        self._store.set(f"{key}/{self._rank}", "here")
        failed = (
            f"Rank {self._rank} successfully reached monitoredBarrier, but received errors while waiting for send/recv "
            "from rank 0"
        )
        if not _arrived(self._store, f"{key}/verdict", limit_s + _GRACE_S):
            raise CollectiveTimeoutError(f"{failed}: it did not come within {limit_s + _GRACE_S:.1f} s", ranks=[0])
        missing = self._store.get(f"{key}/verdict").decode()
        if missing != "all":
            ranks = [int(rank) for rank in missing.split(", ")]
            raise CollectiveTimeoutError(f"{failed}: it has given up on rank {missing}", ranks=ranks)


def monitored_barrier(
    group: Any = None, timeout: timedelta | float | None = None, wait_all_ranks: bool = False
) -> None:
    """``torch.distributed.monitored_barrier`` for groups of dcomm as well, with torch's arguments.

    >>> dcomm.torch.monitored_barrier(timeout=timedelta(seconds=30), wait_all_ranks=True)   # doctest: +SKIP

    Args:
        group: None: all ranks. A rank outside of it returns at once.
        timeout: As in :meth:`GroupMonitored.monitored_barrier`.
        wait_all_ranks: As there.

    Raises:
        CollectiveTimeoutError: A rank did not come; on rank 0 of the group with its name, or the names of all.
        ValueError: A group of a backend that has no such barrier.
    """
    found = dist.group.WORLD if group is None else group
    if isinstance(found, GroupMonitored):
        found.monitored_barrier(timeout, wait_all_ranks)
    elif found is not dist.GroupMember.NON_GROUP_MEMBER:
        dist.monitored_barrier(group, timeout, wait_all_ranks)


def _arrived(store: Any, key: str, limit_s: float) -> bool:
    """Whether `key` is there within the limit, of which there may be nothing left."""
    if store.check([key]):
        return True
    if limit_s <= 0:
        return False
    try:
        store.wait([key], timedelta(seconds=limit_s))
    except dist.DistNetworkError:  # the store is gone
        raise
    except RuntimeError:  # the time is up: some stores say so with a DistStoreError, a FileStore with just this
        return False
    return True
