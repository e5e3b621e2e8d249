"""What the control groups of this process allow it: CPU time and memory. Version 1 and 2, and both at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_NO_LIMIT_BYTES = 1 << 60  # version 1 says "none" as about 2^63


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):  # absent, or not for us
        return ""


def _folders(controller: str, membership: Path, mount: Path) -> Iterator[Path]:
    """This process's group for `controller`, then the groups around it: a limit of any of them holds."""
    for line in _read(membership).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            roots = [mount, mount / "unified"]
        elif controller in controllers.split(","):
            roots = [mount / controllers, mount / controller]
        else:
            continue
        for root in roots:
            folder = root / path.lstrip("/")
            while folder != root.parent:
                # In a container the path may be the host's, and only the mount's root is there.
                if folder.is_dir():
                    yield folder
                folder = folder.parent


class Limits:
    """Reads the limits; both arguments are for tests."""

    def __init__(self, membership: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")) -> None:
        self._membership = membership
        self._mount = mount

    def cpus(self) -> float | None:
        """How many CPUs' time this process may use; None: no limit."""
        quotas = []
        for folder in _folders("cpu", self._membership, self._mount):
            quota, _, period = _read(folder / "cpu.max").partition(" ")
            if not quota:
                quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
            if quota.isdecimal() and period.isdecimal() and int(period) > 0:
                quotas.append(int(quota) / int(period))
        return min(quotas, default=None)

    def free_memory_bytes(self) -> int | None:
        """What is left below the lowest memory limit, caches that can be dropped counted as free; None: no limit."""
        free = []
        for folder in _folders("memory", self._membership, self._mount):
            for limit_name, usage_name, cache_name in (
                ("memory.max", "memory.current", "inactive_file "),
                ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "),
            ):
                limit, usage = _read(folder / limit_name), _read(folder / usage_name)
                if limit.isdecimal() and usage.isdecimal() and int(limit) < _NO_LIMIT_BYTES:
                    rows = _read(folder / "memory.stat").splitlines()
                    cache = sum(int(row.split()[1]) for row in rows if row.startswith(cache_name))
                    free.append(max(0, int(limit) - int(usage) + cache))
        return min(free, default=None)
