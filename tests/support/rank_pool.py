"""Ranks that stay: threads with communicators that run one body after the other, a millisecond each."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

import dcomm

Body = Callable[[dcomm.Communicator], Any]


class RankPool:
    """`world_size` ranks of this process. After an error it makes new ones."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self._results: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        self._start()

    def _start(self) -> None:
        self._comms = dcomm.init_threads(self.world_size)
        self._bodies: list[queue.SimpleQueue[Body | None]] = [queue.SimpleQueue() for _ in self._comms]
        self._threads = [
            threading.Thread(target=self._serve, args=(rank,), daemon=True) for rank in range(self.world_size)
        ]
        for thread in self._threads:
            thread.start()

    def _serve(self, rank: int) -> None:
        comm, bodies = self._comms[rank], self._bodies[rank]
        while (body := bodies.get()) is not None:
            try:
                self._results.put((rank, body(comm)))
            except BaseException as error:
                comm.abort()
                self._results.put((rank, error))

    def run(self, body: Body, timeout: float = 60) -> list[Any]:
        """What body(comm) returned on each rank; an exception on one ends the others and is raised."""
        for bodies in self._bodies:
            bodies.put(body)
        results: list[Any] = [None] * self.world_size
        for _ in range(self.world_size):
            rank, result = self._results.get(timeout=timeout)
            results[rank] = result
        failed = [(rank, error) for rank, error in enumerate(results) if isinstance(error, BaseException)]
        if failed:
            self.close()
            self._start()
            failed.sort(key=lambda pair: isinstance(pair[1], dcomm.AbortedError))  # these follow from the first
            raise AssertionError(f"rank {failed[0][0]} raised {failed[0][1]!r}") from failed[0][1]
        return results

    def close(self) -> None:
        for bodies in self._bodies:
            bodies.put(None)
        for thread in self._threads:
            thread.join(10)
        for comm in self._comms:
            comm.close()
