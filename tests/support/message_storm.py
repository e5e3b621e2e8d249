"""A storm of random messages, and what MPI's rules of matching allow to arrive where.

Every rank issues its sends and its receives in an order of its own, most of them asynchronous. For one receiver and tag
either all receives name their rank or all take any, so that every receive is served whatever is matched first.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np

import dcomm

NUM_TAGS = 4
COUNTS = (0, 1, 7, 300, 20_000)


@dataclass
class Message:
    src: int
    dst: int
    tag: int
    number: int  # among those of src to dst with this tag


def count_of(dst: int, tag: int) -> int:
    """One for each receiver and tag, so that a receive of any rank fits what comes."""
    return COUNTS[(5 * dst + 3 * tag) % len(COUNTS)] + 2


class Storm:
    """The same plan on every rank of a job with one seed."""

    def __init__(self, world_size: int, seed: int, num_messages: int = 150) -> None:
        self.rng_seed = seed
        rng = random.Random(seed)
        self.messages: list[Message] = []
        numbers: dict[tuple[int, int, int], int] = {}
        for _ in range(num_messages):
            src = rng.randrange(world_size)
            dst = (src + rng.randrange(1, world_size)) % world_size
            key = (src, dst, rng.randrange(NUM_TAGS))
            numbers[key] = numbers.get(key, 0) + 1
            self.messages.append(Message(*key, number=numbers[key] - 1))
        self.takes_any = {(dst, tag): rng.random() < 0.5 for dst in range(world_size) for tag in range(NUM_TAGS)}

    def run(self, comm: dcomm.Communicator) -> None:
        rng = random.Random(1000 * self.rng_seed + comm.rank)
        sends = [m for m in self.messages if m.src == comm.rank]
        receives = [m for m in self.messages if m.dst == comm.rank]
        rng.shuffle(receives)
        works: list[Any] = []
        posted: list[tuple[Message, Any, Any]] = []  # in the order of the calls
        while sends or receives:
            if sends and (not receives or rng.random() < 0.5):
                m = sends.pop(0)
                x = np.full(count_of(m.dst, m.tag), float(m.number))
                x[0] = m.src
                if rng.random() < 0.8:
                    works.append(comm.send(x, m.dst, tag=m.tag, async_op=True))
                else:
                    comm.send(x, m.dst, tag=m.tag, timeout=60)
            else:
                m = receives.pop()
                y = np.full(count_of(m.dst, m.tag), -1.0)
                if self.takes_any[m.dst, m.tag]:
                    work = comm.recv_any(y, tag=m.tag, async_op=True)
                else:
                    work = comm.recv(y, m.src, tag=m.tag, async_op=True)
                posted.append((m, y, work))
                if rng.random() < 0.1:
                    rng.choice(posted)[2].done()
        for work in works:
            work.wait(timeout=60)
        self.check(posted)
        comm.barrier()

    def check(self, posted: list[tuple[Message, Any, Any]]) -> None:
        """By source and tag, in the order of the receives, the messages are those sent, in order, none twice."""
        next_number: dict[tuple[int, int], int] = {}
        for m, y, work in posted:
            result = work.wait(timeout=60)
            source = int(y[0])
            if self.takes_any[m.dst, m.tag]:
                assert result == source
            else:
                assert source == m.src
                assert result is y
            expected = next_number.get((source, m.tag), 0)
            next_number[source, m.tag] = expected + 1
            assert (y[1:] == expected).all(), (m, source, y[:5], expected)
        for (source, tag), count in next_number.items():
            dst = posted[0][0].dst
            assert count == sum(1 for m in self.messages if (m.src, m.dst, m.tag) == (source, dst, tag))
