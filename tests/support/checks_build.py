"""Builds the C++ checks of tests/cc in a process beside the tests that do not need them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "checks" / str(sys.implementation.cache_tag)


class ChecksBuild:
    """One incremental build of some targets, which takes only what the tests leave of the CPUs."""

    def __init__(self, targets: list[str]) -> None:
        """Start it. Several pytest processes may share a checkout: one builds at a time."""
        FOLDER.mkdir(parents=True, exist_ok=True)
        self._lock: IO[str] | None = (FOLDER / ".lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._log = FOLDER / "pytest.log"
        commands, environment = _commands(targets)
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                ["sh", "-e", "-c", "\n".join(shlex.join(command) for command in commands)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        with contextlib.suppress(OSError):  # refused in some containers, or ended already
            os.setpriority(os.PRIO_PGRP, self._process.pid, 19)
            # Linux weighs sessions against each other before it looks at the nice values inside one.
            Path(f"/proc/{self._process.pid}/autogroup").write_text("19")

    def wait(self) -> str | None:
        """None once it is built, else what cmake and the compiler printed."""
        status = self._process.wait()
        self._unlock()
        return None if status == 0 else self._log.read_text(errors="replace")

    def stop(self) -> None:
        """End it where it is, unless it has ended."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)
            self._process.wait()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _commands(targets: list[str]) -> tuple[list[list[str]], dict[str, str]]:
    import pybind11

    # The tools of this interpreter's environment first: it need not be activated.
    environment = dict(os.environ)
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
    cmake = shutil.which("cmake", path=environment["PATH"])
    ninja = shutil.which("ninja", path=environment["PATH"])
    if cmake is None or ninja is None:
        return [["echo", "cmake or ninja is missing; pip install '.[test]' brings both"], ["false"]], environment
    options = [
        f"-DCMAKE_MAKE_PROGRAM={ninja}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        "-DDCOMM_CHECKS=ON",
    ]
    return [
        [cmake, "-S", str(ROOT), "-B", str(FOLDER), "-G", "Ninja", *options],
        [cmake, "--build", str(FOLDER), "--target", *targets],
    ], environment
