"""Bugs that storms found, staged by failpoints: `python regression_ranks.py CORE NAME` prints what each rank saw."""

from __future__ import annotations

import json
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "support"))

import failpoint_core
from killable_ranks import ForkedRanks, prepare

Main = Callable[[int, Callable[[str], None]], None]


def run(world_size: int, main: Main, failpoints: Mapping[int, str]) -> dict[int, str]:
    """The last word of each rank."""
    job = secrets.token_hex(8)

    def environment(rank: int) -> dict[str, str]:
        return {"DCOMM_JOB_ID": job, "DCOMM_FAILPOINT": failpoints.get(rank, "")}

    deadline = time.monotonic() + 20
    with ForkedRanks(world_size, main, environment) as ranks:
        while not all(rank.ended for rank in ranks.ranks) and time.monotonic() < deadline:
            for _ in ranks.news(deadline):
                pass
        return {rank.rank: rank.lines[-1] if rank.lines else f"status {rank.status}" for rank in ranks.ranks}


def killed_while_the_ranks_meet() -> dict[int, str]:
    """Rank 1 gives up because of rank 0, and lives on; rank 3 comes to its door only then."""
    import dcomm

    def main(rank: int, say: Callable[[str], None]) -> None:
        try:
            dcomm.init(rank=rank, world_size=4, timeout=10)
        except dcomm.DcommError as error:
            say(f"{type(error).__name__}: {error}")
            time.sleep(1.0)

    return run(4, main, {0: "before_pairing:kill", 3: "before_pairing:sleep=400"})


if __name__ == "__main__":
    failpoint_core.install(Path(sys.argv[1]))
    import dcomm  # noqa: F401  (the ranks then have it)

    prepare()
    print(json.dumps(globals()[sys.argv[2]]()))
