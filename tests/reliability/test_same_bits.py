"""The same bytes: on every rank, in every launch, for every split of a tensor, on whatever cores the ranks run."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from figures import record_figure
from rank_pool import RankPool

import dcomm

LAUNCHER = Path(__file__).with_name("launch_ranks.py")
ALGOS = ["auto", "one_shot", "two_shot", "ring", "tree"]
FLOATS = {"float32": np.float32, "float64": np.float64, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
PER_RUN = 25  # reductions of a pool of ranks between two looks at the results


def random_reductions(comm: dcomm.Communicator, seed: int, num: int) -> list[tuple[str, bytes]]:
    """What each was, and its result's digest. The same calls on every rank, on values of its own."""
    rng = np.random.default_rng([seed, 26])
    own = np.random.default_rng([seed, 27, comm.rank])
    found = []
    for _ in range(num):
        dtype = str(rng.choice(list(FLOATS)))
        count = int(2 ** rng.uniform(0, 14.5))
        op = str(rng.choice(["sum", "avg", "prod", "min", "max"]))
        algo = str(rng.choice(ALGOS))
        wire = str(rng.choice(["float16", "bfloat16"])) if dtype == "float32" and rng.random() < 0.4 else None
        x = own.standard_normal(count).astype(np.float32)
        x[own.integers(0, count, 1 + count // 9)] *= np.float32(10.0 ** rng.integers(-30, 30))
        x[own.integers(0, count)] = own.choice([np.nan, np.inf, -0.0, 1.0]).astype(np.float32)
        with np.errstate(over="ignore"):
            x = x.astype(FLOATS[dtype])
        comm.all_reduce(x, op, algo=algo, wire_dtype=wire)
        found.append((f"{dtype} {op} {algo} {wire} of {count}", hashlib.blake2b(x.tobytes()).digest()))
    return found


def compare(first_seed: int, num_reductions: int, spoil: Callable[[list[Any]], None] | None = None) -> list[str]:
    """The reductions whose results differ between ranks."""
    pools = {n: RankPool(n) for n in (2, 3, 4, 6)}
    seen: Counter[str] = Counter()
    differing = []
    try:
        for index in range(num_reductions // PER_RUN):
            n = list(pools)[index % len(pools)]
            seed = first_seed + index
            results = pools[n].run(lambda comm, seed=seed: random_reductions(comm, seed, PER_RUN))
            if spoil is not None:
                spoil(results)
            for of_ranks in zip(*results, strict=True):
                seen.update(of_ranks[0][0].split(" ")[:4])
                if len(set(of_ranks)) != 1:
                    differing.append(f"seed {seed}, {n} ranks: {of_ranks[0][0]}")
    finally:
        for pool in pools.values():
            pool.close()
    assert all(seen[name] > 0 for name in (*FLOATS, *ALGOS, "float16", "bfloat16"))
    return differing


def test_every_rank_has_the_same_bytes() -> None:
    differing = compare(0, 300)
    record_figure("bits_on_every_rank", reductions=300, different=len(differing))
    assert differing == []


@pytest.mark.long
@pytest.mark.timeout(600)
def test_every_rank_has_the_same_bytes_10000_times() -> None:
    differing = compare(1000, 10_000)
    record_figure("many_bits_on_every_rank", reductions=10_000, different=len(differing))
    assert differing == []


def test_one_different_bit_is_found() -> None:
    def flip(results: list[Any]) -> None:
        what, digest = results[-1][7]
        results[-1][7] = (what, bytes([digest[0] ^ 1]) + digest[1:])

    assert len(compare(0, 100, flip)) == 100 // PER_RUN


def launches(task: dict[str, Any], timeout: float) -> list[dict[str, Any]]:
    command = [sys.executable, str(LAUNCHER), json.dumps(task)]
    done = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["how"] for line in lines] == task["launches"]
    return lines


def shas_by_name(lines: list[dict[str, Any]]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for line in lines:
        for of_rank in line["ranks"]:
            for name, sha in of_rank.items():
                found.setdefault(name, set()).add(sha)
    return found


def check_launches(key: str, num_launches: int, counts: list[int], timeout: float) -> None:
    algos = [*ALGOS, "direct"]
    task = {"world_size": 3, "algos": algos, "counts": counts, "launches": ["free"] * num_launches}
    found = shas_by_name(launches(task, timeout))
    assert len(found) == len(algos) * len(counts)
    different = [name for name, shas in found.items() if len(shas) != 1]
    record_figure(
        key, launches=num_launches, algorithms=len(algos), sizes=len(counts), ranks=3, different=len(different)
    )
    assert different == []
    # Canonical and other orders of summation do differ on these values: the comparison could fail.
    assert found[f"ring of {counts[-1]}"] != found[f"two_shot of {counts[-1]}"]
    assert found[f"direct of {counts[-1]}"] == found[f"two_shot of {counts[-1]}"] == found[f"one_shot of {counts[-1]}"]


def test_every_launch_gives_the_same_bytes() -> None:
    check_launches("bits_run_to_run", 3, [1, 1000, 100_003], timeout=60)


@pytest.mark.long
@pytest.mark.timeout(400)
def test_fifty_launches_give_the_same_bytes() -> None:
    check_launches("many_bits_run_to_run", 50, [1, 100, 5000, 70_001, 1_000_003], timeout=380)


def test_splits_and_cores_change_no_byte() -> None:
    """deterministic=True: whole, in 7 random splits, and with the ranks on other cores."""
    pins = ["free", "together", "in turn", "reversed"]
    task = {"world_size": 2, "deterministic": True, "count": 60_001, "num_splits": 7, "launches": pins}
    found = shas_by_name(launches(task, timeout=60))
    assert len(found) == 2 * 8
    shas = {
        wire: set().union(*(found[f"wire {wire}, split {seed}"] for seed in range(8))) for wire in (None, "float16")
    }
    record_figure(
        "bits_of_splits_and_cores", splits=7, placements=len(pins), different=sum(map(len, shas.values())) - 2
    )
    assert all(len(of_wire) == 1 for of_wire in shas.values()), shas
    assert shas[None] != shas["float16"]
