"""Ranks of one process on one GPU: a thread each, or all played by the calling thread."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import dcomm
from gpu.report import NotHere


class Ranks:
    """One thread and one communicator for each rank."""

    def __init__(self, world_size: int) -> None:
        self.comms = dcomm.init_threads(world_size)
        self._tasks: list[queue.SimpleQueue[Any]] = [queue.SimpleQueue() for _ in self.comms]
        self._results: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for rank in range(world_size):
            threading.Thread(target=self._serve, args=(rank,), daemon=True).start()

    def _serve(self, rank: int) -> None:
        while (body := self._tasks[rank].get()) is not None:
            try:
                self._results.put((rank, body(self.comms[rank])))
            except BaseException as error:
                self._results.put((rank, error))

    def outcomes(self, body: Callable[[Any], Any], timeout: float = 300) -> list[Any]:
        """What body(comm) returned or raised, by rank."""
        for tasks in self._tasks:
            tasks.put(body)
        found: list[Any] = [None] * len(self.comms)
        for _ in self.comms:
            rank, value = self._results.get(timeout=timeout)
            found[rank] = value
        return found

    def run(self, body: Callable[[Any], Any]) -> list[Any]:
        """outcomes(), raising the first error."""
        found = self.outcomes(body)
        for value in found:
            if isinstance(value, BaseException):
                raise value
        return found

    def close(self) -> None:
        for tasks in self._tasks:
            tasks.put(None)
        for comm in self.comms:
            comm.close()


@contextmanager
def _settings(names: dict[str, int]) -> Iterator[None]:
    """DCOMM_CUDA_* in the environment."""
    wanted = {f"DCOMM_CUDA_{name.upper()}": str(value) for name, value in names.items()}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def ranks(world_size: int, **settings: int) -> Iterator[Ranks]:
    """Ranks made under DCOMM_CUDA_* settings."""
    with _settings(settings):
        made = Ranks(world_size)
        try:
            yield made
        finally:
            made.close()


@contextmanager
def one_thread(world_size: int, **settings: int) -> Iterator[list[Any]]:
    """Communicators for dcomm.group, opened on the GPU; NotHere where it does not hold so many ranks at once."""
    with _settings(settings):
        try:
            comms = dcomm.init_threads(world_size, device="cuda")
        except dcomm.CudaError as error:
            if "thread blocks at once" in str(error):
                raise NotHere(str(error)) from error
            raise
    try:
        yield comms
    finally:
        for comm in comms:
            comm.close()
