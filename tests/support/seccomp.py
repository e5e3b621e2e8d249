"""A seccomp filter that refuses system calls with EPERM, for this process and all that it starts, for good.

Or that ends the process: for the calling thread and all that it starts.

python seccomp.py memfd_create,eventfd2 -- dcomm doctor --json     # the module dcomm, as `python -m` runs it
"""

from __future__ import annotations

import ctypes
import errno
import platform
import runpy
import struct
import sys

NUMBERS = {
    "x86_64": {"memfd_create": 319, "pidfd_open": 434, "eventfd2": 290, "sched_setaffinity": 203, "getpid": 39}
    | {"ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "pidfd_getfd": 438}
    | {"mbind": 237, "set_mempolicy": 238, "get_mempolicy": 239, "move_pages": 279, "userfaultfd": 323}
    | {"mount": 165, "umount2": 166, "unshare": 272, "setns": 308, "bpf": 321, "perf_event_open": 298}
    | {"add_key": 248, "request_key": 249, "keyctl": 250, "io_uring_setup": 425},
    "aarch64": {"memfd_create": 279, "pidfd_open": 434, "eventfd2": 19, "sched_setaffinity": 122, "getpid": 172}
    | {"ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272, "pidfd_getfd": 438}
    | {"mbind": 235, "set_mempolicy": 237, "get_mempolicy": 236, "move_pages": 239, "userfaultfd": 282}
    | {"mount": 40, "umount2": 39, "unshare": 97, "setns": 268, "bpf": 280, "perf_event_open": 241}
    | {"add_key": 217, "request_key": 218, "keyctl": 219, "io_uring_setup": 425},
}
# What a container's usual filter refuses to a process without capabilities.
CONTAINER = (
    *("ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "pidfd_getfd", "mbind", "set_mempolicy"),
    *("get_mempolicy", "move_pages", "userfaultfd", "mount", "umount2", "unshare", "setns", "bpf", "perf_event_open"),
    *("add_key", "request_key", "keyctl", "io_uring_setup"),
)
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER = 38, 22, 2
_LOAD_NUMBER, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000


def refuse(*names: str) -> None:
    """OSError where the kernel takes no filter."""
    _filter(names, _ERRNO | errno.EPERM)


def die_of(*names: str) -> None:
    """By SIGSYS, at once. OSError where the kernel takes no filter."""
    _filter(names, _KILL_PROCESS)


def _filter(names: tuple[str, ...], action: int) -> None:
    numbers = [NUMBERS[platform.machine()][name] for name in names]
    steps = [struct.pack("HBBI", _LOAD_NUMBER, 0, 0, 0)]
    for left, number in enumerate(reversed(numbers), 1):
        # To the last step if equal; `left` steps of comparisons and one return lie between.
        steps.insert(1, struct.pack("HBBI", _JUMP_IF_EQUAL, left, 0, number))
    steps += [struct.pack("HBBI", _RETURN, 0, 0, value) for value in (_ALLOW, action)]
    code = ctypes.create_string_buffer(b"".join(steps))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (_PR_SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0)):
        if libc.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    refuse(*sys.argv[1].split(","))
    module, sys.argv = sys.argv[3], sys.argv[3:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
