"""What a kill storm does, as a pure function of (seed, index): who works at what, who is killed where."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

MAX_BYTES = 64 << 20
DTYPES = ("float32", "float64", "float16", "int32", "int64", "uint8")
ALGOS = ("auto", "one_shot", "two_shot", "ring", "tree")
COLLECTIVES = (
    "all_reduce",
    "broadcast",
    "all_gather",
    "reduce_scatter",
    "reduce",
    "gather",
    "scatter",
    "all_to_all",
    "barrier",
)

# By scenario: the failpoints that it reaches (csrc/base/failpoint.h), and, where only some operations do, which.
FAILPOINTS: dict[str, dict[str, str | None]] = {
    "collectives": {
        "before_header": None,
        "header_published": None,
        "before_signal": None,
        "before_wake": None,
        "after_signal": None,
        "holding_slot": "ring",
        "holding_credit": "ring",
        "ring_step": "ring",
        "between_phases": "two_shot",
        "up_the_tree": "tree",
        "before_packet": "one_shot",
        "packet_half_sent": "one_shot",
        "falling_asleep": None,
        "waking_up": None,
        "before_completed": None,
        "after_completed": None,
        "progress_begins": "async",
        "progress_ends": "async",
    },
    "arrays": {"arrays_lent": None},
    "messages": {
        "envelope_sent": None,
        "piece_sent": None,
        "envelope_read": None,
        "piece_read": None,
        "waiting_for_messages": None,
    },
    "split": {
        "split_agreed": None,
        "split_window_sent": None,
        "split_joined": None,
        "split_made": None,
        "saying_member_goodbye": None,
    },
    "init": {
        "before_hello": None,
        "after_hello": None,
        "seating": None,
        "welcoming": None,
        "before_pairing": None,
        "after_pairing": None,
        "mesh_made": None,
        "set_up_sent": None,
        "window_sent": None,
        "windows_mapped": None,
    },
    "close": {"closing": None, "before_goodbye": None, "saying_goodbye": None},
}
# Passed once by a rank and no more than once per peer.
ONCE = {"before_hello", "after_hello", "before_pairing", "after_pairing", "mesh_made", "windows_mapped", "closing"}
PER_PEER = {"seating", "welcoming", "window_sent", "before_goodbye", "saying_goodbye"}
OF_RANK_0 = {"seating", "welcoming"}
NOT_OF_RANK_0 = {"before_hello", "after_hello"}
# The rank that dies here takes others' deaths in the middle of telling them.
ABORTING = "telling_abort"

WEIGHTS = {"collectives": 10, "messages": 3, "init": 3, "split": 2, "close": 2, "arrays": 1}


@dataclass(frozen=True)
class Victim:
    rank: int
    failpoint: str | None  # None: at a random moment
    passes: int  # which time it comes there
    delay_us: int  # at a random moment: after everybody works, or after the first victim's death


@dataclass(frozen=True)
class Case:
    seed: int
    index: int
    world_size: int
    scenario: str
    victims: tuple[Victim, ...]
    forks_workers: bool  # every rank has a live forked child, as with data loaders
    leave: str  # how survivors go: close, with (an exception through it), atexit, or nothing
    force_shm: bool

    @property
    def focus(self) -> str | None:
        """What must come up often, for the first victim's failpoint to be reached."""
        point = self.victims[0].failpoint
        return FAILPOINTS[self.scenario][point] if point is not None else None

    def __str__(self) -> str:
        def text(victim: Victim) -> str:
            where = f"{victim.failpoint}@{victim.passes}" if victim.failpoint else f"+{victim.delay_us} us"
            return f"rank {victim.rank} at {where}"

        extras = [name for name in ("forks_workers", "force_shm") if getattr(self, name)]
        return (
            f"seed {self.seed} case {self.index}: {self.scenario} of {self.world_size}, kills "
            f"{', '.join(map(text, self.victims))}; then {self.leave} {' '.join(extras)}".rstrip()
        )


def _victim(rng: random.Random, scenario: str, rank: int, point: str | None, num_peers: int) -> Victim:
    most = 1 if point in ONCE else num_peers if point in PER_PEER else 9 if scenario in ("split", "init") else 40
    return Victim(rank, point, int(most ** rng.random()), int(rng.uniform(0, 20_000)))


def make_case(seed: int, index: int) -> Case:
    rng = random.Random(f"{seed}/{index}")
    scenario = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    world_size = rng.choice((2, 4, 4, 4))
    point = rng.choice(list(FAILPOINTS[scenario])) if rng.random() < 0.75 or scenario in ("init", "close") else None
    ranks = [0] if point in OF_RANK_0 else list(range(1 if point in NOT_OF_RANK_0 else 0, world_size))
    first = rng.choice(ranks)
    others = [rank for rank in range(world_size) if rank != first]
    rng.shuffle(others)
    num_victims = 1 if world_size == 2 or scenario in ("init", "close") else rng.choice((1, 1, 1, 2, 3))
    victims = [_victim(rng, scenario, first, point, world_size - 1)]
    for rank in others[: num_victims - 1]:
        also = rng.choice((None, None, ABORTING, point))
        victims.append(Victim(rank, also, rng.randint(1, 3) if also == ABORTING else 1, int(rng.uniform(0, 3_000))))
    return Case(
        seed,
        index,
        world_size,
        scenario,
        tuple(victims),
        forks_workers=rng.random() < 0.25,
        leave=rng.choice(("close", "close", "with", "atexit", "nothing")),
        force_shm=rng.random() < 0.1,
    )


@dataclass(frozen=True)
class Operation:
    kind: str
    algo: str
    op: str
    dtype: str
    count: int  # of a block, where arrays hold one for each rank
    root: int
    is_async: bool


def operations(case: Case) -> Iterator[Operation]:
    """Endless, and the same on every rank."""
    rng = random.Random(f"{case.seed}/{case.index}/operations")
    algos = [algo for algo in ALGOS if algo != "tree" or case.world_size > 2]
    while True:
        focused = case.focus is not None and rng.random() < 0.6
        kind = "all_reduce" if focused or rng.random() < 0.6 else rng.choice(COLLECTIVES)
        algo = case.focus if focused and case.focus in algos else rng.choice(algos)
        dtype = rng.choice(DTYPES)
        itemsize = np.dtype(dtype).itemsize
        die = rng.random()
        largest = 256 << 10 if die < 0.85 else 4 << 20 if die < 0.98 else MAX_BYTES
        if algo == "one_shot" and focused:
            largest = 4096
        nbytes = 8 * (largest / 8) ** rng.random()
        blocks = 1 if kind in ("all_reduce", "broadcast", "reduce", "barrier") else case.world_size
        ops = ("sum", "max") if dtype[0] in "iu" else ("sum", "avg", "max")
        yield Operation(
            kind,
            algo,
            rng.choice(ops),
            dtype,
            max(1, int(nbytes / itemsize / blocks)),
            rng.randrange(case.world_size),
            is_async=case.focus == "async" or rng.random() < 0.3,
        )
