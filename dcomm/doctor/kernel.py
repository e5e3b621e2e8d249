"""What the kernel, and a seccomp filter before it, let this process do: sockets, pidfds and the core's other calls."""

from __future__ import annotations

import array
import ctypes
import errno
import mmap
import os
import platform
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dcomm.doctor.finding import Finding, fail, ok, skip, warn
from dcomm.doctor.memory import make_memfd

_SO_PEERPIDFD = 77  # Linux 6.5
_PATIENCE_S = 1.0
_FUTEX_WAKE = 1
_FUTEX_NUMBERS = {"x86_64": 202, "aarch64": 98}
_MODES = {"0": "no seccomp filter", "1": "seccomp strict mode", "2": "a seccomp filter"}


def _pass_descriptor() -> None:
    """Pass a pipe over an abstract socket, as ranks pass their windows; OSError where that does not work."""
    name = f"\0dcomm-doctor-{secrets.token_hex(8)}"
    kind = socket.SOCK_SEQPACKET
    received: list[int] = []
    with socket.socket(socket.AF_UNIX, kind) as listener, socket.socket(socket.AF_UNIX, kind) as client:
        for one in (listener, client):
            one.settimeout(_PATIENCE_S)
        listener.bind(name)
        listener.listen(1)
        client.connect(name)
        server, _ = listener.accept()
        with server:
            server.settimeout(_PATIENCE_S)
            uid = array.array("i", server.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
            if uid != os.geteuid():
                raise OSError(errno.EPERM, f"SO_PEERCRED says that uid {uid} connected, and this is {os.geteuid()}")
            source, sink = os.pipe()
            try:
                socket.send_fds(client, [b"x"], [source])
                received = socket.recv_fds(server, 1, 1)[1]
                os.write(sink, b"dcomm")
                if not received or os.read(received[0], 5) != b"dcomm":
                    raise OSError(errno.EBADF, "the descriptor did not arrive")
            finally:
                for descriptor in (source, sink, *received):
                    os.close(descriptor)


def sockets() -> Finding:
    """How ranks meet and pass their windows."""
    try:
        _pass_descriptor()
    except OSError as error:
        return fail(
            "sockets",
            f"no descriptor can be passed over an abstract Unix socket: {error.strerror or error}",
            "allow AF_UNIX sockets of type SOCK_SEQPACKET and SCM_RIGHTS in the seccomp or AppArmor profile; ranks "
            "that are threads (dcomm.init_threads) need none",
            errno=error.errno,
        )
    return ok("sockets", "a descriptor was passed over an abstract Unix socket of this user")


def _close(descriptor: int) -> None:
    os.close(descriptor)


def _peer_pidfd() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        _close(ours.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD))


def _open_pidfd() -> None:
    _close(os.pidfd_open(os.getpid()))


def pidfd() -> Finding:
    """How the death of a rank is seen at once, even where its children hold its sockets."""
    refused: dict[str, str] = {}
    for name, attempt in (("SO_PEERPIDFD", _peer_pidfd), ("pidfd_open", _open_pidfd)):
        try:
            attempt()
            return ok("pidfd", f"{name} works: a rank's death is seen at once", way=name, refused=refused)
        except OSError as error:
            refused[name] = error.strerror or str(error)
    reasons = ", ".join(f"{name}: {reason}" for name, reason in refused.items())
    return warn(
        "pidfd",
        f"none to be had ({reasons}): a death is seen when its sockets close, late where forked children hold them",
        "use Linux 5.3 or later, and allow pidfd_open in the seccomp profile",
        way=None,
        refused=refused,
    )


def _sched_setaffinity() -> None:
    os.sched_setaffinity(0, os.sched_getaffinity(0))


def _eventfd() -> None:
    _close(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))


def _getrandom() -> None:
    os.getrandom(16)


def _madvise() -> None:
    with mmap.mmap(-1, mmap.PAGESIZE) as pages:
        pages.madvise(mmap.MADV_DONTFORK)


def _futex() -> None:
    number = _FUTEX_NUMBERS.get(platform.machine())
    if number is None:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    word = ctypes.c_uint32(0)
    if libc.syscall(ctypes.c_long(number), ctypes.byref(word), _FUTEX_WAKE, 1, None, None, 0) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class _Call(NamedTuple):
    """A system call of the core that sandboxes are known to refuse."""

    name: str
    attempt: Callable[[], object]
    without: str  # what dcomm does without it; "": it does not work


_CALLS = (
    _Call("memfd_create", lambda: _close(make_memfd()), "windows are files in /dev/shm"),
    _Call("pidfd_open", _open_pidfd, "deaths are seen when sockets close"),
    _Call("sched_setaffinity", _sched_setaffinity, "ranks stay where the kernel puts them"),
    _Call("eventfd", _eventfd, ""),
    _Call("getrandom", _getrandom, ""),
    _Call("madvise", _madvise, ""),
    _Call("futex", _futex, ""),
)


def seccomp(status: Path = Path("/proc/self/status")) -> Finding:
    """Which of the core's system calls are refused here."""
    try:
        rows = status.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        rows = []
    mode = next((row.split()[1] for row in rows if row.startswith("Seccomp:")), "")
    refused = {}
    for call in _CALLS:
        try:
            call.attempt()
        except OSError as error:
            refused[call] = error.strerror or str(error)
    details = {"mode": mode, "refused": {call.name: reason for call, reason in refused.items()}}
    if refused:
        texts = [
            f"{call.name} ({reason}{': ' + call.without if call.without else ''})" for call, reason in refused.items()
        ]
        found = f"{_MODES.get(mode, 'seccomp mode unknown')}; refused: {', '.join(texts)}"
        fix = f"allow {', '.join(call.name for call in refused)} in the seccomp profile of the container or sandbox"
        harmless = all(call.without for call in refused)
        return warn("seccomp", found, fix, **details) if harmless else fail("seccomp", found, fix, **details)
    if mode not in _MODES:
        return skip(
            "seccomp", f"{status} does not say; none of {len(_CALLS)} calls is refused", "mount /proc", **details
        )
    return ok("seccomp", f"{_MODES[mode]}; none of the {len(_CALLS)} calls tried is refused", **details)
