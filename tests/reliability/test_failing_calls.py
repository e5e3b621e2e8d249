"""Every system call of init() fails once: a typed error or a way around it, no crash, no hang, nothing left behind."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from figures import record_figure
from rank_processes import process_values

SCRIPT = Path(__file__).with_name("failing_call_ranks.py")
SHIM = Path(__file__).resolve().parents[1] / "support" / "failing_calls.c"
FUNCTIONS = [
    ("memfd_create", "ENOSYS"),
    ("memfd_create", "EMFILE"),
    ("fallocate", "ENOSPC"),
    ("mmap", "ENOMEM"),
    ("madvise", "EINVAL"),
    ("fcntl", "EPERM"),
    ("socket", "EMFILE"),
    ("bind", "ENOMEM"),
    ("listen", "ENOMEM"),
    ("connect", "ENOMEM"),
    ("accept4", "EMFILE"),
    ("sendmsg", "ENOBUFS"),
    ("sendmsg", "EPIPE"),
    ("recvmsg", "ENOMEM"),
    ("recvmsg", "EINTR"),
    ("getsockopt", "EPERM"),
    ("eventfd", "EMFILE"),
    ("pthread_create", "EAGAIN"),
    ("getrandom", "EINTR"),
    ("open", "EMFILE"),
    ("ppoll", "EINTR"),
]


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    library = tmp_path_factory.mktemp("shim") / "failing_calls.so"
    command = [compiler, "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(library), str(SHIM), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return library


def what(outcome: dict[str, Any]) -> str:
    return (
        f"{outcome['function']} #{outcome['n']} = {outcome['errno']} on rank {outcome['victim']}: {outcome['values']}"
    )


def fail_all(key: str, functions: list[tuple[str, str]], shim: Path) -> None:
    before = set(os.listdir("/dev/shm"))
    args = {"functions": functions}
    (outcomes,) = process_values(1, SCRIPT, "fail_every_call", args, env={"LD_PRELOAD": str(shim)}, timeout=400)
    assert {outcome["function"] for outcome in outcomes} == {name for name, _ in functions}
    kinds: Counter[str] = Counter()
    for outcome in outcomes:
        for rank, value in enumerate(outcome["values"]):
            assert "crash" not in value, what(outcome)
            assert value["error"] is None or value["typed"], what(outcome)
            assert value["seconds"] < 5, what(outcome)
            assert value["left"] == [], what(outcome)
            if rank == outcome["victim"]:
                kinds[value["error"] or "went on"] += 1
    assert [name for name in set(os.listdir("/dev/shm")) - before if "dcomm" in name] == []
    went_on = kinds.pop("went on", 0)
    record_figure(key, calls=len(outcomes), typed=sum(kinds.values()), went_on=went_on, crashes=0, left_behind=0)


def test_failing_calls_that_make_memory(shim: Path) -> None:
    fail_all("failing_calls", FUNCTIONS[:4], shim)


@pytest.mark.long
@pytest.mark.timeout(170)
def test_every_failing_call(shim: Path) -> None:
    fail_all("every_failing_call", FUNCTIONS, shim)


def test_a_call_that_finds_no_thread_can_be_repeated(shim: Path) -> None:
    (values,) = process_values(1, SCRIPT, "refuse_threads", env={"LD_PRELOAD": str(shim)})
    for value in values:
        assert "cannot start the progress thread" in value["text"], value
        assert value["sum"] == 1.0, value
