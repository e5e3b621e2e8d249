"""Ranks that are threads of the test's own process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import dcomm

T = TypeVar("T")


def outcomes(
    comms: Sequence[dcomm.Communicator], body: Callable[[dcomm.Communicator], T], timeout: float = 60
) -> list[T | BaseException]:
    """What body(comm) returned or raised on each rank; a rank that hangs fails the test."""
    results: list[Any] = [None] * len(comms)

    def run(index: int) -> None:
        try:
            results[index] = body(comms[index])
        except BaseException as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(len(comms))]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    stuck = [rank for rank, thread in enumerate(threads) if thread.is_alive()]
    if stuck:
        for comm in comms:
            comm.abort()
        raise AssertionError(f"ranks {stuck} of {len(comms)} are still running after {timeout} s")
    return results


def values(
    comms: Sequence[dcomm.Communicator], body: Callable[[dcomm.Communicator], T], timeout: float = 60
) -> list[T]:
    """What body(comm) returned on each rank; an exception on one ends the others and is raised."""

    def checked(comm: dcomm.Communicator) -> T:
        try:
            return body(comm)
        except BaseException:
            comm.abort()
            raise

    results = outcomes(comms, checked, timeout)
    failed = [(rank, error) for rank, error in enumerate(results) if isinstance(error, BaseException)]
    failed.sort(key=lambda pair: isinstance(pair[1], dcomm.AbortedError))  # the others' errors follow from the first
    for rank, error in failed:
        raise AssertionError(f"rank {rank} raised {error!r}") from error
    return results  # type: ignore[return-value]


def run_threads(world_size: int, body: Callable[[dcomm.Communicator], T], timeout: float = 60) -> list[T]:
    """values() on `world_size` new communicators."""
    comms = dcomm.init_threads(world_size)
    try:
        return values(comms, body, timeout)
    finally:
        for comm in comms:
            comm.close()


def thread_outcomes(
    world_size: int, body: Callable[[dcomm.Communicator], T], timeout: float = 60
) -> list[T | BaseException]:
    """outcomes() on `world_size` new communicators."""
    comms = dcomm.init_threads(world_size)
    try:
        return outcomes(comms, body, timeout)
    finally:
        for comm in comms:
            comm.close()
