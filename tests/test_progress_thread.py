"""The progress thread: when there is one, and how soon the kernel lets it run."""

from __future__ import annotations

import ctypes
import os
import platform
import struct

import numpy as np
import pytest
from own_threads import dcomm_threads

import dcomm


def progress_threads() -> list[int]:
    return [number for number, name in dcomm_threads().items() if name == "dcomm-progress"]


def test_one_rank_alone_needs_no_progress_thread_for_small_calls() -> None:
    (comm,) = dcomm.init_threads(1)
    with comm:
        comm._core.set_patience(1)
        assert comm.all_gather(np.ones(4, np.float32), async_op=True).wait() is not None
        assert not progress_threads()
        assert comm.all_gather(np.ones(100_000, np.float32), async_op=True).wait() is not None
        assert progress_threads()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the number of the system call")
def test_the_progress_thread_has_the_shortest_slices() -> None:
    release = tuple(int(number) for number in platform.release().split("-")[0].split(".")[:2])
    if release < (6, 12):
        pytest.skip(f"Linux {platform.release()} has one slice for all threads")
    (comm,) = dcomm.init_threads(1)
    with comm:
        comm.all_reduce(np.ones(4, np.float32), async_op=True).wait()
        attributes = (ctypes.c_uint8 * 48)()
        libc = ctypes.CDLL(None, use_errno=True)
        for thread in progress_threads():
            assert libc.syscall(315, thread, attributes, 48, 0) == 0, os.strerror(ctypes.get_errno())  # sched_getattr
            policy, slice_ns = struct.unpack_from("I", attributes, 4)[0], struct.unpack_from("Q", attributes, 24)[0]
            assert (policy, slice_ns) == (0, 100_000)
        assert progress_threads()
