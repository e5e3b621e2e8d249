"""`dcomm doctor` as it is run: its document, its exit status, its time, and machines that lack something."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import seccomp

import dcomm
from dcomm.__main__ import main
from dcomm.doctor import gpu
from dcomm.doctor.finding import STATUSES
from dcomm.doctor.parts import all_parts

ROOT = Path(__file__).resolve().parents[1]
SECCOMP = ROOT / "tests" / "support" / "seccomp.py"
NAMES = [name for part in all_parts(None) for name in part.names]
LIMIT_S = 10.0  # the promise is 3 s on two cores; tests share theirs with others
needs_seccomp = pytest.mark.skipif(platform.machine() not in seccomp.NUMBERS, reason="no table of system calls for it")


def run(*command: str, cwd: Path | None = None, **changes: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DCOMM_")}
    return subprocess.run(
        [sys.executable, *command],
        env={**environment, **changes},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def document(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Its document, with everything checked that holds whatever was found."""
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(done.stdout)
    assert list(found) == ["schema", "dcomm", "date", "machine", "status", "counts", "elapsed_s", "checks"]
    assert found["schema"] == 1
    assert list(found["machine"]) == ["cpu", "cores", "kernel", "isa"]
    assert [check["name"] for check in found["checks"]] == NAMES
    for check in found["checks"]:
        assert list(check) == ["group", "name", "status", "found", "fix", "details"]
        assert check["found"]
        assert (check["fix"] == "") == (check["status"] == "ok"), check
    statuses = [check["status"] for check in found["checks"]]
    assert found["counts"] == {status: statuses.count(status) for status in STATUSES}
    assert found["status"] == ("fail" if "fail" in statuses else "warn" if "warn" in statuses else "ok")
    assert done.returncode == ("fail" in statuses)
    assert 0 < found["elapsed_s"] < LIMIT_S
    return found


def check(found: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in found["checks"] if one["name"] == name)


def test_a_machine_that_passes_the_tests_fails_nothing() -> None:
    found = document(run("-m", "dcomm", "doctor", "--json"))
    for name in ("python", "core", "numpy", "settings", "memfd", "sockets", "seccomp", "two_processes", "two_threads"):
        assert check(found, name)["status"] in ("ok", "warn"), check(found, name)
    assert found["dcomm"] == dcomm.__version__
    isa = dcomm.init_threads(1)[0]._core.isa
    assert found["machine"]["isa"] == isa
    assert check(found, "core")["details"]["folder"] == str(Path(dcomm.__file__).parent)
    assert check(found, "cpus")["details"]["usable"] == sorted(os.sched_getaffinity(0))
    for name in ("two_processes", "two_threads"):
        details = check(found, name)["details"]
        assert details["num_wrong"] == 0
        assert details["isa"] == isa
        assert list(details["p50_us"]) == ["8", str(1 << 20)]
        assert 0 < details["p50_us"]["8"] < 1e5
    names = [name for name in found["checks"] if name["group"] == "gpu"]
    if not Path("/dev/nvidiactl").exists():
        assert {one["status"] for one in names} <= {"ok", "skip"}  # ok: the CUDA part loads without a GPU
        assert check(found, "two_gpu_ranks")["status"] == "skip"


def test_text_has_a_line_for_each_check_and_the_fix_below_what_is_wrong() -> None:
    done = run("-m", "dcomm", "doctor", DCOMM_TIMEOUT="3")
    lines = done.stdout.splitlines()
    assert "\x1b" not in done.stdout
    shown = [match for match in (re.match(r"  (ok|WARN|FAIL|skip) +(\w+) +(.+)", line) for line in lines) if match]
    assert [match[2] for match in shown] == NAMES
    for above, below in itertools.pairwise(lines):
        assert below.strip().startswith("fix: ") == above.startswith(("  WARN", "  FAIL")), (above, below)
    assert "  WARN  settings       not known to dcomm: DCOMM_TIMEOUT" in lines
    assert any(line.endswith("fix: unset DCOMM_TIMEOUT, or did you mean DCOMM_TIMEOUT_S?") for line in lines)
    assert re.match(rf"{len(NAMES)} checks in \d+\.\d s: \d+ ok, [1-9]\d* warn, \d+ fail, \d+ skip$", lines[-1])


@pytest.mark.parametrize("arguments", [["--seconds", "0"], ["--seconds", "601"], ["--bogus"], ["extra"]])
def test_wrong_options(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "usage: dcomm doctor" in captured.err
    assert any(argument in captured.err for argument in arguments)


def test_help_says_the_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--help"]) == 0
    out = capsys.readouterr().out
    assert "Exit status: 0 nothing failed" in out
    assert "--gpu-side" not in out


@pytest.mark.long
def test_torch_is_not_imported() -> None:
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    done = run("-X", "importtime", "-m", "dcomm", "doctor", "--json")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "dcomm.doctor.parts" in imported
    assert not {name for name in imported if name.partition(".")[0] in ("torch", "cupy", "mpi4py", "typer", "rich")}
    torch = check(json.loads(done.stdout), "torch")["details"]
    code = "import torch, json; print(json.dumps([torch.__version__, torch.version.cuda]))"
    assert [torch["version"], torch["cuda"]] == json.loads(run("-c", code).stdout)


def build_driver(folder: Path, code: str) -> dict[str, str]:
    """The environment in which this C code is libcuda, found as the real one is."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler is not None
    flags = ["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-I/usr/local/cuda/include"]
    command = [compiler, *flags, "-x", "c", "-", "-o", str(folder / "libcuda.so.1")]
    subprocess.run(command, input=code, text=True, check=True)
    return {"LD_LIBRARY_PATH": str(folder)}


@pytest.mark.long
def test_a_driver_that_hangs_costs_its_line_and_no_more_time(tmp_path: Path) -> None:
    code = "#include <unistd.h>\nint cuInit(unsigned flags) { (void)flags; for (;;) pause(); }\n"
    environment = build_driver(tmp_path, code)
    found = document(run("-m", "dcomm", "doctor", "--json", **environment))
    assert check(found, "driver")["status"] == "fail"
    assert check(found, "driver")["found"].startswith("no answer within ")
    assert check(found, "two_gpu_ranks")["status"] == "skip"
    assert check(found, "two_processes")["status"] == "ok"
    assert found["elapsed_s"] < 4  # 2.5 s for the checks, and a moment to end the process
    owner = f"LD_LIBRARY_PATH={tmp_path}".encode()
    assert not [path for path in Path("/proc").glob("[0-9]*/environ") if owner in read_bytes(path)]


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it ended meanwhile, or is another user's
        return b""


@pytest.mark.long
def test_gpus_of_a_driver_written_in_c(tmp_path: Path) -> None:
    """What Python hands over arrives in C: names, sizes, addresses, bytes between three GPUs."""
    environment = build_driver(tmp_path, (ROOT / "tests" / "support" / "fake_libcuda.c").read_text())
    found = document(run("-m", "dcomm", "doctor", "--json", FAKE_GPUS="3", **environment))
    assert check(found, "driver")["details"]["cuda"] == [13, 1]
    assert check(found, "gpus")["details"]["gpus"] == [
        {"number": number, "name": f"Fake GPU {number}", "nbytes": (80 << 30) + number, "capability": [9, 0]}
        for number in range(3)
    ]
    assert check(found, "peer_access")["status"] == "ok"
    assert check(found, "peer_access")["found"] == "6 copies between 3 GPUs, all direct, gave the right bytes"

    found = document(run("-m", "dcomm", "doctor", "--json", FAKE_GPUS="2", FAKE_CORRUPT="1", **environment))
    assert check(found, "peer_access")["status"] == "fail"
    assert check(found, "peer_access")["details"]["matrix"] == [["-", "wrong"], ["wrong", "-"]]

    found = document(run("-m", "dcomm", "doctor", "--json", FAKE_GPUS="0", **environment))
    assert check(found, "driver")["found"] == "cuInit: CUDA_ERROR_FAKE (100)"
    assert "CUDA_VISIBLE_DEVICES" in check(found, "driver")["fix"]


@needs_seccomp
def test_memfd_refused_by_a_seccomp_filter() -> None:
    found = document(run(str(SECCOMP), "memfd_create,pidfd_open", "--", "dcomm", "doctor", "--json"))
    memfd, filtered = check(found, "memfd"), check(found, "seccomp")
    assert memfd["status"] == "warn"
    assert "memfd_create is refused (Operation not permitted)" in memfd["found"]
    assert memfd["fix"].startswith("allow memfd_create in the seccomp profile")
    assert filtered["status"] == "warn"
    assert list(filtered["details"]["refused"]) == ["memfd_create", "pidfd_open"]
    assert filtered["details"]["mode"] == "2"
    assert filtered["fix"].startswith("allow memfd_create, pidfd_open in the seccomp profile")
    assert check(found, "pidfd")["details"]["refused"].keys() <= {"SO_PEERPIDFD", "pidfd_open"}
    assert check(found, "two_processes")["status"] == "ok"  # what the line says is true: there is a fallback


@needs_seccomp
def test_a_call_without_which_ranks_cannot_run() -> None:
    found = document(run(str(SECCOMP), "eventfd2", "--", "dcomm", "doctor", "--json"))
    assert check(found, "seccomp")["status"] == "fail"
    assert check(found, "seccomp")["details"]["refused"] == {"eventfd": "Operation not permitted"}
    assert check(found, "two_processes")["status"] == "fail"
    assert "eventfd" in check(found, "two_processes")["found"]
    assert check(found, "memfd")["status"] == "ok"


def test_one_flipped_bit_is_seen() -> None:
    found = document(run("-m", "dcomm", "doctor", "--json", DCOMM_BENCH_CORRUPT="3"))
    for name in ("two_processes", "two_threads"):
        assert check(found, name)["status"] == "fail"
        assert check(found, name)["details"]["num_wrong"] == 1
    assert check(found, "settings")["status"] == "warn"
    assert check(found, "settings")["fix"] == "unset DCOMM_BENCH_CORRUPT"


def test_a_bad_value_is_named_and_costs_no_other_line() -> None:
    found = document(run("-m", "dcomm", "doctor", "--json", DCOMM_ISA="avx1024"))
    assert check(found, "settings")["status"] == "fail"
    assert "DCOMM_ISA" in check(found, "settings")["found"]
    assert check(found, "core")["status"] == "ok"
    assert "DCOMM_ISA" in check(found, "two_threads")["found"]  # the rank's own words


def broken_package(folder: Path, core: bytes | None, name: str = "") -> Path:
    """A copy of the package with another core, or none."""
    package = folder / "dcomm"
    shutil.copytree(Path(dcomm.__file__).parent, package, ignore=shutil.ignore_patterns("*.so", "__pycache__", "torch"))
    if core is not None:
        suffix = f"{sys.implementation.cache_tag}-linux-gnu"
        (package / (name or f"_core.{suffix}.so")).write_bytes(core)
    return folder


def run_broken(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Without site, whose editable install would find the core of the checkout for the copied package."""
    paths = [str(folder), str(Path(numpy.__file__).parents[1])]
    return run("-S", *command, cwd=folder, PYTHONPATH=os.pathsep.join(paths))


@pytest.mark.long
@pytest.mark.parametrize(
    ("core", "name", "reason"),
    [
        (None, "", "holds no compiled core"),
        (
            b"x",
            "_core.cpython-27-linux-gnu.so",
            f"_core.cpython-27-linux-gnu.so, and this is {sys.implementation.cache_tag}",
        ),
    ],
)
def test_a_core_that_does_not_load(core: bytes | None, name: str, reason: str, tmp_path: Path) -> None:
    folder = broken_package(tmp_path, core, name)
    found = document(run_broken(folder, "-m", "dcomm", "doctor", "--json"))
    assert check(found, "core")["status"] == "fail"
    assert reason in check(found, "core")["found"]
    assert "pip install" in check(found, "core")["fix"]
    assert found["dcomm"] is None
    assert check(found, "two_processes")["status"] == "skip"
    assert check(found, "memfd")["status"] in ("ok", "warn")
    assert check(found, "driver")["status"] in ("ok", "skip")

    other = run_broken(folder, "-c", "import dcomm", "doctor")
    assert other.returncode == 1
    assert other.stderr.splitlines()[-1].startswith("ImportError: dcomm: ")
    assert "`python -m dcomm doctor`" in other.stderr
    assert reason in other.stderr


@pytest.mark.long
def test_a_core_that_is_no_library(tmp_path: Path) -> None:
    folder = broken_package(tmp_path, b"no library")
    found = document(run_broken(folder, "-m", "dcomm", "doctor", "--json"))
    assert "does not load: " in check(found, "core")["found"]
    assert "install it again on this machine" in check(found, "core")["fix"]
    child = run_broken(folder, "-m", "dcomm", "doctor", "--gpu-side", "0")  # its checks do without the core, too
    assert [json.loads(line)["name"] for line in child.stdout.splitlines()] == list(gpu.NAMES)


@pytest.mark.long
def test_the_script_works_without_a_core(tmp_path: Path) -> None:
    """What `pip install` writes as bin/dcomm, with a package that has no core."""
    script = tmp_path / "dcomm-script" / "dcomm"
    script.parent.mkdir()
    script.write_text("import sys\nfrom dcomm.__main__ import main\nsys.exit(main())\n")
    folder = broken_package(tmp_path, None)
    done = run_broken(folder, str(script), "doctor", "--json")
    assert check(document(done), "core")["status"] == "fail"
    for command in ([str(script)], [str(script), "bench"], ["-m", "dcomm"], ["-m", "dcomm", "bench", "doctor"]):
        other = run_broken(folder, *command)
        assert (other.returncode, other.stdout) == (1, "")
        assert "`python -m dcomm doctor`" in other.stderr
