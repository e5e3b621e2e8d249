"""The checks of `dcomm doctor` one by one, on made-up machines, and what becomes of a check that fails itself."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from dcomm.doctor import cpus, gpu_process, installation, kernel, memory, ranks, report, settings
from dcomm.doctor.cgroup import Limits
from dcomm.doctor.finding import Finding, Part, fail, ok, single, skip, warn
from dcomm.doctor.run import Line, run

SLEEP = "import time; time.sleep(60)"


def refusing(number: int) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return call


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


# ---- Findings and the runner ----


@pytest.mark.parametrize("status", ["warn", "fail", "skip"])
def test_a_finding_that_is_not_ok_needs_a_fix(status: Any) -> None:
    assert Finding("x", status, "found", "fix").as_json()["fix"] == "fix"
    with pytest.raises(ValueError, match="a fix unless ok"):
        Finding("x", status, "found", "")
    with pytest.raises(ValueError, match="what was found"):
        Finding("x", status, "", "fix")


def test_a_check_that_raises_ends_early_or_hangs_costs_its_own_lines() -> None:
    def raises(_: float) -> Iterator[Finding]:
        yield ok("first", "well")
        raise KeyError("second")

    def hangs(_: float) -> Iterable[Finding]:
        time.sleep(30)
        return []

    parts = [
        Part("a", ("first", "second"), raises),
        Part("b", ("third",), hangs),
        Part("c", ("fourth",), lambda _: []),
        single("d", "fifth", lambda: ok("fifth", "well")),
        *(Part("e", (f"{number}th",), hangs) for number in range(6, 12)),
    ]
    start = time.monotonic()
    lines = run(parts, 0.3)
    assert time.monotonic() - start < 1.5  # they hang side by side
    assert [(line.group, line.finding.name, line.finding.status) for line in lines[:5]] == [
        ("a", "first", "ok"),
        ("a", "second", "fail"),
        ("b", "third", "fail"),
        ("c", "fourth", "fail"),
        ("d", "fifth", "ok"),
    ]
    assert lines[1].finding.found == "the check itself failed: KeyError: 'second'"
    assert lines[2].finding.found == "no answer within 0.3 s"
    assert {line.finding.status for line in lines[5:]} == {"fail"}
    assert all(line.finding.fix for line in lines if line.finding.status == "fail")


def test_report_counts_and_exit_status() -> None:
    core = Line("i", ok("core", "well", version="1.2", isa="scalar"))
    for others, status, code in (
        ([], "ok", 0),
        ([skip("a", "x", "y")], "ok", 0),
        ([warn("a", "x", "y")], "warn", 0),
        ([warn("a", "x", "y"), fail("b", "x", "do this")], "fail", 1),
    ):
        found = report.document([core, *(Line("g", one) for one in others)], 0.5)
        assert (found["status"], report.exit_status(found)) == (status, code)
        texts = [line.text for line in report.text_lines(found)]
        assert ("fix: do this" in "\n".join(texts)) == (code == 1)
    assert found["counts"] == {"ok": 1, "warn": 1, "fail": 1, "skip": 0}
    assert (found["dcomm"], found["machine"]["isa"]) == ("1.2", "scalar")


# ---- CPUs ----


def test_cpu_lists() -> None:
    assert cpus.parse_cpu_list("0-3,8,10-11\n") == {0, 1, 2, 3, 8, 10, 11}
    assert cpus.parse_cpu_list("\n") == set()


V2 = {"proc": "0::/job/step\n", "fs/cpu.max": "max 100000", "fs/job/cpu.max": "150000 100000"}
V1 = {"proc": "4:cpu,cpuacct:/job\n3:memory:/job\n", "fs/cpu,cpuacct/job/cpu.cfs_quota_us": "50000"}
V1 |= {"fs/cpu,cpuacct/job/cpu.cfs_period_us": "100000", "fs/memory/memory.limit_in_bytes": str(2**63 - 4096)}


@pytest.mark.parametrize(
    ("files", "allowed"),
    [
        (V2, 1.5),
        ({**V2, "fs/job/step/cpu.max": "25000 100000"}, 0.25),
        ({**V2, "fs/job/cpu.max": "max 100000"}, None),
        (V1, 0.5),
        ({**V1, "fs/cpu,cpuacct/job/cpu.cfs_quota_us": "-1"}, None),
        ({"proc": "0::/not/in/this/container\n", "fs/cpu.max": "200000 100000"}, 2.0),
        ({"proc": ""}, None),
    ],
)
def test_cpu_quota(files: dict[str, str], allowed: float | None, tmp_path: Path) -> None:
    write(tmp_path, files)
    assert Limits(tmp_path / "proc", tmp_path / "fs").cpus() == allowed


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({"fs/job/memory.max": "1000", "fs/job/memory.current": "700"}, 300),
        ({"fs/memory.max": "900", "fs/memory.current": "800", "fs/memory.stat": "anon 1\ninactive_file 50\n"}, 150),
        ({"fs/job/memory.max": "max", "fs/job/memory.current": "700"}, None),
    ],
)
def test_memory_limit_of_version_2(files: dict[str, str], free: int | None, tmp_path: Path) -> None:
    write(tmp_path, {"proc": "0::/job\n", "fs/job/x": "", **files})
    assert Limits(tmp_path / "proc", tmp_path / "fs").free_memory_bytes() == free


def test_memory_limit_of_version_1(tmp_path: Path) -> None:
    names = ("limit_in_bytes", "usage_in_bytes")
    sizes = dict(zip((f"fs/memory/job/memory.{name}" for name in names), ("1000", "1200"), strict=True))
    write(tmp_path, {**V1, **sizes, "fs/memory/memory.usage_in_bytes": "5"})
    limits = Limits(tmp_path / "proc", tmp_path / "fs")
    assert limits.free_memory_bytes() == 0
    assert memory.memory_limit(limits).status == "warn"
    assert memory.memory_limit(limits).details["cgroup_free_bytes"] == 0


def test_cpus_with_a_quota_or_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {**V2, "cpu/online": "0-7"})
    none = Limits(tmp_path / "none", tmp_path / "fs")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 4, 5})
    found = cpus.cpus(tmp_path / "cpu", none)
    assert (found.status, found.found) == ("ok", "4 of 8 online")
    found = cpus.cpus(tmp_path / "cpu", Limits(tmp_path / "proc", tmp_path / "fs"))
    assert (found.status, found.details["quota"]) == ("warn", 1.5)
    assert "at most 1 of them" in found.fix
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert cpus.cpus(tmp_path / "cpu", none).status == "warn"


def test_cores_and_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {}
    for cpu in range(4):
        core = f"{cpu % 2},{cpu % 2 + 2}"
        files[f"cpu{cpu}/topology/thread_siblings_list"] = core
        rows = ((0, "1", "Data", "48K", core), (1, "1", "Instruction", "32K", core), (2, "2", "Unified", "2M", core))
        for index, *values in rows:
            for name, value in zip(("level", "type", "size", "shared_cpu_list"), values, strict=True):
                files[f"cpu{cpu}/cache/index{index}/{name}"] = value
    write(tmp_path, files)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert cpus.cores(tmp_path).found == "2 cores for 4 CPUs (SMT siblings)"
    found = cpus.caches(tmp_path)
    assert found.found == "L1 48 KiB, L2 2 MiB; the CPUs are on 2 L2"
    assert found.details["last_level_caches"] == 2
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2})
    assert cpus.cores(tmp_path).status == "warn"
    assert cpus.caches(tmp_path).found.endswith("the CPUs share one L2")
    assert [look(tmp_path / "none").status for look in (cpus.cores, cpus.caches)] == ["skip", "skip"]


# ---- Memory and kernel ----


def test_memfd_and_its_fallback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory.memfd().status == "ok"
    monkeypatch.setattr(os, "memfd_create", refusing(errno.ENOSYS))
    assert memory.memfd().status == "warn"
    monkeypatch.setattr(memory, "SHM", tmp_path / "none")
    found = memory.memfd()
    assert found.status == "fail"
    assert f"mount a tmpfs on {tmp_path / 'none'}" in found.fix
    assert memory.shm().status == "skip"
    monkeypatch.setattr(os, "memfd_create", refusing(errno.EMFILE))
    assert memory.memfd().fix == "raise `ulimit -n`"


def test_memfd_without_memory_or_seals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fallocate", refusing(errno.ENOSPC))
    assert (memory.memfd().status, memory.memfd().details["errno"]) == ("fail", errno.ENOSPC)
    monkeypatch.undo()
    monkeypatch.setattr("fcntl.fcntl", lambda *_: 0)
    assert memory.memfd().found == "a sealed memfd could be shrunk"


def test_nothing_stays_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "SHM", tmp_path)
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(2):
        for look in (memory.memfd, kernel.sockets, kernel.pidfd, kernel.seccomp):
            look()
        monkeypatch.setattr(os, "memfd_create", refusing(errno.EPERM))
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert memory.memfd().status == "warn"  # it was the fallback
    assert os.listdir(tmp_path) == []


def test_window_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory.window_bytes() == 16 << 20
    monkeypatch.setenv("DCOMM_WINDOW_BYTES", "1e6")
    assert memory.window_bytes() == 2_000_000
    monkeypatch.setenv("DCOMM_WINDOW_BYTES", "many")
    assert memory.window_bytes() == 16 << 20


def test_few_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (32, 4096))
    found = memory.descriptors()
    assert (found.status, found.fix) == ("warn", "ulimit -n 1024")


def test_sockets_and_pidfds_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernel.sockets().status == "ok"
    monkeypatch.setattr("socket.send_fds", refusing(errno.EPERM))
    assert (kernel.sockets().status, kernel.sockets().details["errno"]) == ("fail", errno.EPERM)
    monkeypatch.setattr(kernel, "_SO_PEERPIDFD", 9999)  # as before Linux 6.5
    assert kernel.pidfd().details["way"] == "pidfd_open"
    monkeypatch.setattr(os, "pidfd_open", refusing(errno.ENOSYS))
    found = kernel.pidfd()
    assert (found.status, list(found.details["refused"])) == ("warn", ["SO_PEERPIDFD", "pidfd_open"])
    assert kernel.seccomp().status == "warn"
    monkeypatch.setattr(os, "getrandom", refusing(errno.EPERM))
    assert kernel.seccomp().status == "fail"


def test_seccomp_without_proc(tmp_path: Path) -> None:
    assert kernel.seccomp(tmp_path / "none").status == "skip"


# ---- Settings and packages ----


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("DCOMM_TIMEOUT", "unset DCOMM_TIMEOUT, or did you mean DCOMM_TIMEOUT_S?"),
        ("DCOMM_WINDOW_BYTE", "unset DCOMM_WINDOW_BYTE, or did you mean DCOMM_WINDOW_BYTES?"),
        ("DCOMM_QQQ", "unset DCOMM_QQQ; docs/doctor.md lists what there is"),
    ],
)
def test_unknown_settings(name: str, advice: str) -> None:
    found = settings.settings({name: "1", "DCOMM_ALGO": "ring", "HOME": "/"})
    assert (found.status, found.fix, found.details["unknown"]) == ("warn", advice, [name])
    assert found.details["set"] == {"DCOMM_ALGO": "ring", name: "1"}


def test_settings_that_are_well() -> None:
    assert settings.settings({"HOME": "/"}).found == "no DCOMM_* variable is set"
    found = settings.settings({"DCOMM_JOB_ID": "7", "DCOMM_CUDA": "OFF"})
    assert (found.status, found.found) == ("ok", "DCOMM_CUDA=OFF, DCOMM_JOB_ID=7")


def test_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"numpy": "1.25.2", "torch": "2.12.0+cu130", "nvidia-nccl-cu13": "2.28.3"}
    monkeypatch.setattr(
        installation, "version_of", lambda *names: next(((n, versions[n]) for n in names if n in versions), None)
    )
    monkeypatch.setattr(installation, "torch_cuda", lambda: "13.0")
    found = {one.name: one for one in installation.packages()}
    assert tuple(found) == installation.PACKAGES
    assert (found["numpy"].status, found["numpy"].fix) == ("warn", "pip install 'numpy>=1.26'")
    assert found["torch"].found == "2.12.0+cu130, built for CUDA 13.0"
    assert found["nccl"].found == "2.28.3 (nvidia-nccl-cu13)"
    assert (found["cupy"].status, found["mpi4py"].status) == ("skip", "skip")
    versions.clear()
    assert {one.name: one.status for one in installation.packages()}["numpy"] == "fail"


def test_a_version_without_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> str:
        raise PackageNotFoundError(name)

    installed = installation.version_of("numpy")
    monkeypatch.setattr("importlib.metadata.version", none)
    assert installation.version_of("numpy") == installed
    assert installation.version_of("no-such-package") is None


@pytest.mark.parametrize(
    ("text", "cuda"),
    [
        ("cuda: Optional[str] = '13.0'\nhip = None\n", "13.0"),
        ("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\n", None),
        ("cuda = '12.8'\n", "12.8"),
        ("not python", None),
    ],
)
def test_the_cuda_version_of_torch(
    text: str, cuda: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"torch/__init__.py": "raise RuntimeError('imported')", "torch/version.py": text})
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "torch"]:
        monkeypatch.delitem(sys.modules, name)
    assert installation.torch_cuda() == cuda


# ---- Ranks and the GPU process ----


def test_ranks_that_hang_are_ended_at_the_deadline() -> None:
    start = time.monotonic()
    found = ranks.two_ranks("two_processes", start + 0.5, ("-c", SLEEP))
    assert time.monotonic() - start < 5
    assert (found.status, found.found) == ("fail", "rank 0 did not answer in time")
    assert found.fix.startswith("give it more time")
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    running = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children]
    assert not [line for line in running if SLEEP.encode() in line]


def test_ranks_that_die_are_quoted() -> None:
    found = ranks.two_ranks("two_processes", time.monotonic() + 10, ("-c", "raise SystemExit('no such luck')"))
    assert found.status == "fail"
    assert found.found.startswith("rank 0 ended early (exit code 1) (")
    assert "no such luck" in found.found  # both ranks write to one file, so their lines may mix


def child(code: str) -> tuple[str, ...]:
    return ("-c", code)


def test_the_gpu_process_hangs_after_its_first_words() -> None:
    first = ok(gpu_process.NAMES[0], "well").as_json()
    start = time.monotonic()
    found = list(
        gpu_process.gpu_side(start + 1.0, child(f"import json; print(json.dumps({first}), flush=True); {SLEEP}"))
    )
    assert time.monotonic() - start < 5
    assert [one.name for one in found] == list(gpu_process.NAMES)
    assert [one.status for one in found] == ["ok", "fail"] + ["skip"] * (len(found) - 2)
    assert found[1].found.startswith("no answer within 1.")
    assert "nvidia-persistenced" in found[1].fix


def test_a_gpu_process_that_never_ends_its_line_is_ended_too() -> None:
    start = time.monotonic()
    found = list(gpu_process.gpu_side(start + 0.5, child("while True: print(end='.', flush=True)")))
    assert time.monotonic() - start < 5
    assert (found[0].status, found[0].found[:17]) == ("fail", "no answer within ")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise SystemExit('broken driver')", "ended (exit status 1) (broken driver)"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended (exit status -11)"),
        ("pass", "ended (exit status 0)"),
    ],
)
def test_the_gpu_process_dies(code: str, said: str) -> None:
    found = list(gpu_process.gpu_side(time.monotonic() + 20, child(code)))
    assert [one.name for one in found] == list(gpu_process.NAMES)
    assert found[0].status == "fail"
    assert found[0].found.endswith(said)


def test_the_gpu_process_dies_with_its_parent(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time, os\n"
        "words = 'import os, sys, time; from dcomm.bench.parent import die_with_parent;'\n"
        "words += 'die_with_parent(int(sys.argv[1]));'\n"
        "words += 'open(sys.argv[2], \"w\").write(str(os.getpid())); time.sleep(60)'\n"
        "child = subprocess.Popen([sys.executable, '-c', words, str(os.getpid()), sys.argv[1]])\n"
        "while not os.path.exists(sys.argv[1]) or not open(sys.argv[1]).read(): time.sleep(0.01)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    path = tmp_path / "pid"
    subprocess.run([sys.executable, "-c", code, str(path)], timeout=30, check=False)
    pid = int(path.read_text())
    end = time.monotonic() + 10
    # A command line is empty once the process has ended, even if nobody has reaped it.
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < end, "the child outlived its parent"
        time.sleep(0.01)
