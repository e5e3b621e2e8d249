"""What torch asks a process group about itself.

torch keeps names, devices and backends of a group in C++ Backend objects; a group that is a Python class has none, so
DTensor, FSDP2, functional collectives and ``new_group`` would find nothing. These are the methods that they call.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

BACKEND_NAME = "dcomm"

# torch's stub gives every method the signatures of C++ as well, which Python callers of a Python group do not use.
_Base: Any = dist.ProcessGroup


class GroupIdentity(_Base):  # type: ignore[misc]
    """Names, devices and sequence number of a group, and the group as its own backend for every device."""

    supports_splitting = False
    supports_coalescing = False
    supports_time_estimate = False

    def __init__(self, rank: int, world_size: int, store: Any, timeout: timedelta) -> None:
        """Without the store: torch 2.13's constructor that takes one fails for subclasses."""
        super().__init__(rank, world_size)
        self._rank = rank
        self._world_size = world_size
        self._store = store
        self._timeout = timeout
        self._name = ""
        self._desc = "undefined"
        self._bound_device: torch.device | None = None

    def rank(self) -> int:
        """This rank's number in the group."""
        return self._rank

    def size(self) -> int:
        """How many ranks the group has."""
        return self._world_size

    def name(self) -> str:
        """The backend's name."""
        return BACKEND_NAME

    getBackendName = name
    _get_backend_name = name

    def get_group_store(self) -> Any:
        """The store that the group was made with."""
        return self._store

    def _set_group_name(self, name: str) -> None:
        self._name = name

    def _set_group_desc(self, desc: str) -> None:
        self._desc = desc

    def getGroupName(self) -> str:
        """Called from C++; as `group_name`."""
        return self._name

    def getGroupDesc(self) -> str:
        """Called from C++; as `group_desc`."""
        return self._desc

    setGroupName = _set_group_name
    setGroupDesc = _set_group_desc

    @property
    def group_name(self) -> str:
        """The name by which functional collectives find the group."""
        return self._name

    @property
    def group_desc(self) -> str:
        """What the group is for, in words."""
        return self._desc

    @property
    def bound_device_id(self) -> torch.device | None:
        """Always None: with one, DeviceMesh would call split_group, which only C++ backends serve."""
        return None

    @bound_device_id.setter
    def bound_device_id(self, device: torch.device | None) -> None:
        self._bound_device = device

    @property
    def _device_types(self) -> list[torch.device]:
        return [torch.device("cpu"), torch.device("cuda")]

    def _get_backend(self, device: torch.device) -> GroupIdentity:
        """The group serves every device itself."""
        return self

    @property
    def options(self) -> GroupIdentity:
        """What torch reads timeouts from (``pg._get_backend(device).options._timeout``)."""
        return self

    def set_timeout(self, timeout: timedelta) -> None:
        """The longest single wait of later operations that name none."""
        self._timeout = timeout

    _set_default_timeout = set_timeout

    def _has_hooks(self) -> bool:
        return False

    def _set_sequence_number_for_group(self) -> None:
        """The group's numbers start at 0 by themselves."""

    def split_group(self, *_args: Any, **_kwargs: Any) -> Any:
        """Refused.

        Raises:
            NotImplementedError: Always; it names ``new_group``.
        """
        raise NotImplementedError("split_group is not there on a dcomm group: use torch.distributed.new_group(ranks)")
