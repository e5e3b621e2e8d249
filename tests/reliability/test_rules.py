"""Rules of waiting, deadlines, memory and threads that no failure shows: docs/protocol.md, docs/errors.md."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
from rank_processes import RankResult, process_values, run_processes
from rank_threads import run_threads

import dcomm
from dcomm.bootstrap import DEFAULT_TIMEOUT_S

SCRIPT = Path(__file__).with_name("rule_ranks.py")
CSRC = Path(__file__).resolve().parents[2] / "csrc"


def code_of(*patterns: str) -> dict[str, str]:
    """Source files by name, without their comments."""
    paths = [path for pattern in patterns for path in CSRC.glob(pattern)]
    return {str(path.relative_to(CSRC)): re.sub(r"//.*", "", path.read_text()) for path in paths}


def test_host_code_has_no_fence_that_thread_sanitizer_cannot_see() -> None:
    sources = code_of("**/*.cc", "**/*.h")
    assert len(sources) > 100
    assert [name for name, code in sources.items() if "atomic_thread_fence" in code] == []


def test_operations_do_not_ask_for_their_process_id() -> None:
    sources = code_of(
        "exec/*.cc", "exec/*.h", "algo/*.h", "protocol/*.h", "comm/communicator_execute.cc", "comm/entry.h"
    )
    assert len(sources) > 20
    assert [name for name, code in sources.items() if "getpid" in code] == []


def under_a_filter(calls: int, asks: bool) -> list[RankResult]:
    results = run_processes(2, SCRIPT, "operations_under_a_filter", {"calls": calls, "asks": asks})
    for result in results:
        if result.value is not None and "no_filter" in result.value:
            pytest.skip(f"no seccomp filter here: {result.value['no_filter']}")
    return results


def test_a_thousand_operations_never_ask_for_their_process_id() -> None:
    """Of the system calls themselves, whoever makes them: a filter ends a rank that makes one."""
    for result in under_a_filter(1000, asks=False):
        assert result.returncode == 0, result
        assert result.value == {"calls": 1000}, result


def test_a_rank_that_asks_for_its_process_id_is_ended() -> None:
    """The test above can tell."""
    for result in under_a_filter(1, asks=True):
        assert result.returncode == -signal.SIGSYS, result


def test_a_wait_warns_after_60_s_and_ends_after_300_s_where_nothing_else_is_said() -> None:
    settings = code_of("comm/settings.cc")["comm/settings.cc"]
    assert 'read_number("DCOMM_TIMEOUT_S", 300,' in settings
    assert 'read_number("DCOMM_WARN_S", 60,' in settings
    assert DEFAULT_TIMEOUT_S == 300


@pytest.mark.parametrize("value", ["inf", "0", "-1", "1e9"])
def test_no_wait_is_unlimited(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCOMM_TIMEOUT_S", value)
    with pytest.raises(ValueError, match=re.escape(f"DCOMM_TIMEOUT_S='{value}': expected a number from")):
        dcomm.init_threads(2)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8, 16])
def test_slots_share_8_mib(world_size: int) -> None:
    """floor_pow2(8 MiB / 2n), from 16 KiB to 64 KiB, or to 1 MiB where ranks share CPUs and a slot costs a switch."""
    most = (64 << 10) if world_size <= len(os.sched_getaffinity(0)) else (1 << 20)
    share = (8 << 20) // (2 * world_size)
    expected = min(max(1 << (share.bit_length() - 1), 16 << 10), most)
    comms = dcomm.init_threads(world_size)
    assert {comm._core.slot_bytes for comm in comms} == {expected}
    for comm in comms:
        comm.close()


def test_threads_come_with_the_first_asynchronous_operation_and_the_watcher_is_shared() -> None:
    for value in process_values(2, SCRIPT, "threads_of_communicators"):
        assert value["init"] == ["dcomm-liveness"]
        assert value["split"] == ["dcomm-liveness"]
        assert value["asynchronous"] == ["dcomm-liveness", "dcomm-progress", "dcomm-progress"]


def test_communicators_have_no_order_among_them() -> None:
    """Two ranks that queue on two communicators in opposite orders both end."""
    others = dcomm.init_threads(2)

    def body(comm: dcomm.Communicator) -> list[float]:
        pair = (comm, others[comm.rank])
        arrays = [np.full(1000, float(comm.rank + number)) for number in range(2)]
        order = (0, 1) if comm.rank == 0 else (1, 0)
        works = [pair[number].all_reduce(arrays[number], async_op=True, timeout=20) for number in order]
        for work in works:
            work.wait()
        return [float(x[0]) for x in arrays]

    assert run_threads(2, body) == [[1.0, 3.0]] * 2
    for comm in others:
        comm.close()
