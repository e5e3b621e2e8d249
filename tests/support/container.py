"""A process in the conditions of a container: own mounts and IPC, read-only files, small /dev/shm, no privileges.

python container.py '{"shm": "64m", "uid": 65534, "refuse": ["ptrace"]}' program arguments...

Needs root to make the mounts; exits with CANNOT where the kernel or the machine does not let it, and says why.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import seccomp

CANNOT = 77
_NEW_MOUNTS, _NEW_IPC = 0x00020000, 0x08000000
_READ_ONLY, _NO_SUID, _NO_DEV, _NO_EXEC, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
_KEEP = ("/proc", "/sys", "/dev")
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    words = [word.encode() for word in (source, target, kind)]
    _check(_libc.mount(*words, ctypes.c_ulong(flags), data.encode()), f"mount {target}")


def _mount_flags(options: str) -> int:
    """Those that a remount must keep."""
    flags = {"nosuid": _NO_SUID, "nodev": _NO_DEV, "noexec": _NO_EXEC}
    return sum(flags.get(option, 0) for option in options.split(","))


def _let_others_reach(paths: list[str]) -> None:
    """Puts an empty folder in the way's place where only root may pass, and in it what lies at its end."""
    for path in dict.fromkeys(os.path.realpath(path) for path in paths):
        for parent in reversed(Path(path).parents):
            if parent.stat().st_mode & 0o001:
                continue
            end = os.open(path, os.O_PATH)
            _mount("tmpfs", str(parent), "tmpfs", _NO_SUID | _NO_DEV, "size=1m,mode=0755")
            os.makedirs(path)
            _mount(f"/proc/self/fd/{end}", path, "none", _BIND | _REC)
            os.close(end)
            break


def enter(shm: str = "64m", uid: int | None = None, read_only: bool = True, refuse: tuple[str, ...] = ()) -> None:
    """From here on this process lives in such a container; /dev/shm and its own temporary folder are writable."""
    _check(_libc.unshare(_NEW_MOUNTS | _NEW_IPC), "unshare")
    _mount("none", "/", "none", _REC | _PRIVATE)
    folder = "/dev/shm/tmp"
    _mount("tmpfs", "/dev/shm", "tmpfs", _NO_SUID | _NO_DEV, f"size={shm},mode=1777")
    os.mkdir(folder)
    _mount("tmpfs", folder, "tmpfs", _NO_SUID | _NO_DEV, "size=16m,mode=1777")
    os.environ |= {"TMPDIR": folder, "HOME": folder, "PYTHONDONTWRITEBYTECODE": "1"}
    if uid is not None:
        _let_others_reach([sys.base_prefix, sys.prefix, str(Path(__file__).parents[2])])
    if read_only:
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            path, options = line.split()[4:6]
            path = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)
            if not path.startswith(_KEEP):
                _mount("none", path, "none", _REMOUNT | _BIND | _READ_ONLY | _mount_flags(options))
    if uid is not None:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    if refuse:
        seccomp.refuse(*refuse)


def main() -> None:
    """Enters and runs the program in place of this process."""
    wanted: dict[str, Any] = json.loads(sys.argv[1])
    try:
        enter(**wanted)
        if not os.access(sys.argv[2], os.X_OK):
            raise PermissionError(f"user {os.getuid()} may not run {sys.argv[2]}")
    except OSError as error:
        print(f"no container here: {error}", file=sys.stderr)
        sys.exit(CANNOT)
    os.execv(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
