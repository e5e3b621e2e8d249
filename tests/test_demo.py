"""`python -m dcomm` as a user runs it, and that each of its checks can fail."""

from __future__ import annotations

import importlib.util
import mmap
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import dcomm.__main__ as demo_main
from dcomm.bench.case import Case
from dcomm.bench.ranks import RankError, Ranks

LAST_LINE = r"rank 2 died, named on ranks 0, 1, 3 after \d+\.\d ms, nothing left behind"


def run_demo(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dcomm", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.long
def test_the_demonstration_holds() -> None:
    done = run_demo("--seconds", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(rf"^{LAST_LINE}$", done.stdout, re.MULTILINE)
    rows = re.findall(
        r"^ *(\d+ \w+)  (ring|two_shot) +(float32|float16) +[\d.]+ +[\d.]+ +[\d.]+ +(\d+)$", done.stdout, re.M
    )
    sizes = ("8 B", "4 KiB", "256 KiB", "2 MiB", "16 MiB")
    assert len(rows) == len(sizes) * 4
    assert {row[0] for row in rows} == set(sizes)
    assert {row[3] for row in rows} == {"0"}
    if importlib.util.find_spec("torch") is not None:
        assert re.search(r"^the same weights on 1, 2 and 4 ranks \(.*\): SHA-256 [0-9a-f]{64}$", done.stdout, re.M)
    assert "machine: " in done.stdout
    assert "command: python -m dcomm --seconds 1" in done.stdout


@pytest.mark.long
def test_one_flipped_bit_fails_it() -> None:
    done = run_demo("--seconds", "0.1", "--no-gloo", DCOMM_BENCH_CORRUPT="1")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAILED: 1 wrong elements" in done.stdout


def test_weights_that_depend_on_the_number_of_ranks_fail_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    same_weights = pytest.importorskip("dcomm.torch.same_weights")
    assert demo_main.show_same_weights() == []
    right = same_weights.weights_sha256
    monkeypatch.setattr(same_weights, "weights_sha256", lambda world_size: right(world_size, deterministic=False))
    assert "the weights depend on the number of ranks" in demo_main.show_same_weights()[0]
    assert capsys.readouterr().out.count("SHA-256") == 1


def test_usage() -> None:
    done = run_demo("--help")
    assert done.returncode == 0
    assert "usage: python -m dcomm" in done.stdout
    assert run_demo("--ranks", "1").returncode == 2


def test_what_is_left_behind_is_seen(tmp_path: Path) -> None:
    before = demo_main.shm_entries()
    with Ranks(2) as ranks:
        ranks.receive()
        pids = [process.pid for process in ranks.processes]
        sockets = demo_main.sockets_of(pids)
        assert sockets
        left = demo_main.left_behind(ranks.job_id, before, sockets, patience_s=0)
        assert {f"process {pid}" for pid in pids} <= set(left)
        assert {f"socket {name}" for name in sockets} <= set(left)
    assert not demo_main.left_behind(ranks.job_id, demo_main.shm_entries(), sockets)

    segment = Path(f"/dev/shm/dcomm-test-{os.getpid()}")
    segment.write_bytes(bytes(4096))
    try:
        with segment.open("r+b") as file, mmap.mmap(file.fileno(), 4096):  # some other program's
            assert str(segment) not in demo_main.left_behind("no such job", before, set(), patience_s=0)
        assert str(segment) in demo_main.left_behind("no such job", before, set(), patience_s=0)
    finally:
        segment.unlink()


def test_a_rank_that_ends_early_is_an_error_and_the_others_end_too() -> None:
    with Ranks(2) as ranks:
        ranks.receive()
        ranks.processes[1].kill()
        with pytest.raises(RankError, match=r"rank 1 ended early \(exit code -9\)"):
            ranks.receive([1], timeout_s=30)
    assert ranks.processes[0].returncode is not None


def test_a_bad_order_is_reported_and_survived() -> None:
    with Ranks(2) as ranks:
        ranks.receive()
        with pytest.raises(RankError, match=r"rank 0: .*not exact"):
            ranks.measure(Case(count=2, calls=60, batches=1, wire="float16"))
        assert ranks.leave() == [0, 0]


def test_ranks_die_with_their_parent(tmp_path: Path) -> None:
    code = (
        "import os, time\n"
        "from dcomm.bench.ranks import Ranks\n"
        "ranks = Ranks(2)\n"
        "ranks.receive()\n"
        "print(ranks.job_id, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    job_id = parent.stdout.readline().strip()
    assert len(demo_main.processes_of(job_id)) == 2
    parent.send_signal(signal.SIGKILL)
    parent.wait(30)
    parent.stdout.close()
    end = time.monotonic() + 20
    while demo_main.processes_of(job_id) and time.monotonic() < end:
        time.sleep(0.05)
    assert demo_main.processes_of(job_id) == []
