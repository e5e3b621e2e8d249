"""The CPUs that this process may use, their cores and their caches."""

from __future__ import annotations

import os
from pathlib import Path

from dcomm.bench.text import nbytes_text
from dcomm.doctor.cgroup import Limits
from dcomm.doctor.finding import Finding, ok, skip, warn

SYSTEM = Path("/sys/devices/system/cpu")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def parse_cpu_list(text: str) -> set[int]:
    """The CPUs of a list as the kernel writes it: 0-3,8."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            found |= set(range(int(first), int(last or first) + 1))
    return found


def _cpus_of(path: Path) -> set[int]:
    try:
        return parse_cpu_list(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return set()


def cpus(system: Path = SYSTEM, limits: Limits | None = None) -> Finding:
    """How many ranks can run at the same time."""
    usable = os.sched_getaffinity(0)
    online = len(_cpus_of(system / "online")) or os.cpu_count() or len(usable)
    quota = (limits or Limits()).cpus()
    found = f"{len(usable)} of {online} online"
    details = {"usable": sorted(usable), "online": online, "quota": quota}
    if quota is not None and quota < len(usable):
        fix = f"raise the container's CPU limit to the number of ranks, or start at most {max(1, int(quota))} of them"
        return warn(
            "cpus", f"{found}, but a cgroup allows the time of {quota:g}: it stops ranks in the middle", fix, **details
        )
    if len(usable) == 1:
        fix = "allow one CPU for each rank (taskset -c, docker --cpuset-cpus, srun --cpus-per-task)"
        return warn("cpus", f"{found}: ranks take turns", fix, **details)
    return ok("cpus", found, **details)


def cores(system: Path = SYSTEM) -> Finding:
    """Whether these CPUs are cores of their own or hardware threads of one core."""
    usable = os.sched_getaffinity(0)
    siblings = {cpu: _cpus_of(system / f"cpu{cpu}" / "topology" / "thread_siblings_list") & usable for cpu in usable}
    if not all(siblings.values()):
        return skip("cores", f"{system} does not say", "mount /sys; dcomm itself does not need it")
    groups = sorted({tuple(sorted(group)) for group in siblings.values()})
    found = f"{len(groups)} core{'s' * (len(groups) != 1)} for {len(usable)} CPU{'s' * (len(usable) != 1)}"
    if len(groups) == 1 and len(usable) > 1:
        fix = "allow CPUs of different cores (see `lscpu -e`): ranks on one core share its units and its L1"
        return warn("cores", f"{found}: hardware threads of one core", fix, cores=groups)
    return ok("cores", found + (" (SMT siblings)" if len(groups) < len(usable) else ""), cores=groups)


def caches(system: Path = SYSTEM) -> Finding:
    """The caches of the first of these CPUs, and how many last-level caches they spread over."""
    usable = sorted(os.sched_getaffinity(0))
    last: dict[int, set[tuple[int, ...]]] = {}
    levels: list[dict[str, object]] = []
    for cpu in usable:
        for folder in sorted((system / f"cpu{cpu}" / "cache").glob("index*")):
            try:
                kind, size = ((folder / name).read_text(encoding="ascii").strip() for name in ("type", "size"))
                level = int((folder / "level").read_text(encoding="ascii"))
                nbytes = int(size.rstrip("KMG")) * _UNITS.get(size[-1:], 1)
            except (OSError, ValueError):
                continue
            shared = _cpus_of(folder / "shared_cpu_list") & set(usable)
            if kind == "Instruction":
                continue
            last.setdefault(level, set()).add(tuple(sorted(shared)))
            if cpu == usable[0]:
                levels.append({"level": level, "nbytes": nbytes, "cpus": sorted(shared)})
    if not levels:
        return skip("caches", f"{system} does not say", "mount /sys; dcomm itself does not need it")
    found = ", ".join(f"L{one['level']} {nbytes_text(int(str(one['nbytes'])))}" for one in levels)
    groups = len(last[max(last)])
    shared_text = "one" if groups == 1 else f"{groups}"
    found += (
        f"; the CPUs share {shared_text} L{max(last)}" if groups == 1 else f"; the CPUs are on {groups} L{max(last)}"
    )
    return ok("caches", found, caches=levels, last_level_caches=groups)
