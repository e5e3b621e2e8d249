"""Memory that ranks share: whether it can be made the way the core makes it, and whether there is enough."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import resource
import secrets
from contextlib import suppress
from pathlib import Path

from dcomm.bench.text import nbytes_text
from dcomm.doctor.cgroup import Limits
from dcomm.doctor.finding import Finding, fail, ok, skip, warn

# As in csrc/memory/backing.cc.
_MFD_NOEXEC_SEAL = 0x8
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_REFUSALS = (errno.ENOSYS, errno.EPERM, errno.EACCES)  # after which the core falls back to /dev/shm
_PROBE_BYTES = 64 << 10
_DEFAULT_WINDOW_BYTES = 8 << 20
SHM = Path("/dev/shm")


def _gib(nbytes: int) -> str:
    return f"{nbytes / 2**30:.1f} GiB"


def make_memfd() -> int:
    """A memfd with the flags that the core asks for."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create("dcomm-doctor", flags | _MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:  # before Linux 6.3 the flag is unknown
            raise
    return os.memfd_create("dcomm-doctor", flags)


def _use(descriptor: int) -> None:
    """Allocate, map, write and read: what the core does with a window."""
    os.posix_fallocate(descriptor, 0, _PROBE_BYTES)
    with mmap.mmap(descriptor, _PROBE_BYTES) as window:
        window[-5:] = b"dcomm"
        if window[-5:] != b"dcomm":
            raise OSError(errno.EIO, "read other bytes than were written")


def _try_shm() -> None:
    path = SHM / f"dcomm-doctor-{secrets.token_hex(8)}"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        path.unlink()
        _use(descriptor)
    finally:
        os.close(descriptor)


def _refused(error: OSError) -> Finding:
    """memfd_create is not allowed: the fallback must work."""
    found = f"memfd_create is refused ({error.strerror})"
    fix = "allow memfd_create in the seccomp profile of the container or sandbox (Docker's own profile allows it)"
    try:
        _try_shm()
        space = os.statvfs(SHM)
        free = space.f_bavail * space.f_frsize
        used = f"windows are unnamed files in {SHM} instead, {_gib(free)} free"
        return warn("memfd", f"{found}: {used}", fix, errno=error.errno, fallback=str(SHM))
    except OSError as second:
        return fail(
            "memfd",
            f"{found}, and so is a file in {SHM} ({second.strerror})",
            f"{fix}, or mount a tmpfs on {SHM}",
            errno=error.errno,
        )


def memfd() -> Finding:
    """The windows of rank processes."""
    try:
        descriptor = make_memfd()
    except OSError as error:
        if error.errno in _REFUSALS:
            return _refused(error)
        return fail("memfd", f"memfd_create: {error.strerror}", "raise `ulimit -n`", errno=error.errno)
    try:
        _use(descriptor)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        try:
            os.ftruncate(descriptor, 0)
        except PermissionError:
            return ok("memfd", "memfd_create, fallocate, mmap and seals against shrinking work")
        return fail("memfd", "a sealed memfd could be shrunk", "use a newer kernel, or set DCOMM_FORCE_SHM=1")
    except OSError as error:
        return fail(
            "memfd",
            f"a memfd of {nbytes_text(_PROBE_BYTES)} cannot be used: {error.strerror}",
            "free memory, or allow fallocate, mmap and fcntl in the seccomp profile; else set DCOMM_FORCE_SHM=1",
            errno=error.errno,
        )
    finally:
        os.close(descriptor)


def shm() -> Finding:
    """For information: dcomm uses /dev/shm only where memfd_create is refused."""
    try:
        space = os.statvfs(SHM)
    except OSError:
        return skip("shm", f"no {SHM}", "mount a tmpfs there; needed only where memfd_create is refused")
    total, free = space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize
    found = f"{SHM} holds {_gib(total)}, {_gib(free)} free; used only where memfd_create is refused"
    return ok("shm", found, nbytes=total, free_bytes=free)


def window_bytes() -> int:
    """What a rank allocates at most: DCOMM_WINDOW_BYTES of main slots, and as much again for the others."""
    main = _DEFAULT_WINDOW_BYTES
    with suppress(ValueError):  # the settings' own check tells
        main = int(float(os.environ.get("DCOMM_WINDOW_BYTES") or main))
    return 2 * main


def _machine_free_bytes() -> int:
    with suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGESIZE")


def memory_limit(limits: Limits | None = None) -> Finding:
    """Whether the windows of one rank for each CPU fit."""
    ranks = max(2, len(os.sched_getaffinity(0)))
    needed = ranks * window_bytes()
    machine, group = _machine_free_bytes(), (limits or Limits()).free_memory_bytes()
    free = machine if group is None else min(machine, group)
    where = "in this container" if group is not None and group <= machine else "on this machine"
    found = f"{_gib(free)} free {where}; windows of {ranks} ranks take {nbytes_text(needed)} at most"
    details = {"free_bytes": free, "cgroup_free_bytes": group, "ranks": ranks, "window_bytes": window_bytes()}
    if free < needed:
        return warn("memory", found, "raise the memory limit, or lower DCOMM_WINDOW_BYTES on all ranks", **details)
    return ok("memory", found, **details)


def descriptors() -> Finding:
    """Whether a rank may hold a socket, a pidfd and a window for each other rank, and the program its own files."""
    ranks = max(2, len(os.sched_getaffinity(0)))
    needed = 64 + 3 * ranks
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{soft} open files allowed; {ranks} ranks need about {needed} each"
    if soft != resource.RLIM_INFINITY and soft < needed:
        return warn("descriptors", found, f"ulimit -n {max(1024, needed)}", soft=soft, hard=hard, needed=needed)
    return ok("descriptors", found, soft=soft, hard=hard, needed=needed)
