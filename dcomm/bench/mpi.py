"""The MPI libraries of this machine as peers: found, a C program compiled for each, run once in every round.

Found are what Debian calls ``mpicc.openmpi`` and ``mpicc.mpich``, an unnamed ``mpicc`` on PATH, and Intel MPI where
``I_MPI_ROOT`` says, in this Python environment (PyPI ``impi-rt``) or where ``benchmarks/install_peers.sh`` puts it.
Each runs with the settings that were best somewhere, and the best of them counts for each message.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from dcomm.bench import exact
from dcomm.bench.case import Case, Measured

TYPES = ("float32", "float64", "int8", "uint8", "int32", "int64")
OPS = ("sum", "prod", "min", "max", "band", "bor", "bxor")
SOURCE = Path(__file__).with_name("mpi_all_reduce.c")
_CHECKOUT_ROOT = Path(__file__).resolve().parents[2] / "build" / "peers" / "impi"
_CC = ("-O3", "-w")


class MpiError(Exception):
    """No MPI, or one that does not compile or run the program."""


@dataclass(frozen=True)
class Library:
    """An MPI of this machine."""

    name: str
    version: str
    compiler: tuple[str, ...]
    launcher: str
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Variant:
    """A library with settings; `slow`: it spins where ranks share a core, so that a call takes a time slice or more."""

    library: Library
    name: str
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    slow: bool = False

    @property
    def title(self) -> str:
        """Open MPI 4.1.4, vader-cma."""
        return f"{self.library.name} {self.library.version}, {self.name}"


def _version(launcher: str, environment: dict[str, str]) -> str:
    try:
        command = [launcher, "--version"]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=20, check=False, env={**os.environ, **environment}
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def find_libraries() -> list[Library]:
    """Open MPI, MPICH and Intel MPI, each at most once."""
    found: dict[str, Library] = {}
    for suffix in (".openmpi", ".mpich", ""):
        compiler, launcher = shutil.which(f"mpicc{suffix}"), shutil.which(f"mpirun{suffix}")
        if compiler is None or launcher is None:
            continue
        text = _version(launcher, {})
        number = re.search(r"\d+\.\d+(\.\d+)?", text)
        name = "Open MPI" if "Open" in text else "MPICH" if "HYDRA" in text else ""
        if name and number:
            found.setdefault(name, Library(name, number[0], (compiler,), launcher))
    intel = _find_intel(found.get("MPICH"))
    return [*found.values(), *([intel] if intel else [])]


def _find_intel(mpich: Library | None) -> Library | None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    for root in (os.environ.get("I_MPI_ROOT"), sys.prefix, _CHECKOUT_ROOT):
        if root is None or compiler is None:
            continue
        launcher, library = Path(root) / "bin" / "mpiexec.hydra", Path(root) / "lib" / "libmpi.so.12"
        if not launcher.exists() or not library.exists():
            continue
        environment = {"I_MPI_ROOT": str(root)}
        text = _version(str(launcher), environment)
        number = re.search(r"Version (\d+(\.\d+)+)", text)
        if "Intel" not in text or number is None:
            continue
        linked = (str(library), f"-Wl,-rpath,{library.parent}")
        if (Path(root) / "include" / "mpi.h").exists():
            command: tuple[str, ...] = (compiler, f"-I{root}/include", *linked)
        elif mpich is not None:  # of the same binary interface
            flags = subprocess.run([*mpich.compiler, "-show"], capture_output=True, text=True, timeout=20, check=False)
            command = (compiler, *(flag for flag in flags.stdout.split() if flag.startswith("-I")), *linked)
        else:
            continue
        return Library("Intel MPI", number[1], command, str(launcher), environment)
    return None


def variants_of(library: Library, ranks: int, cpus: int) -> list[Variant]:
    """The settings worth measuring."""
    shared = ranks > cpus
    if library.name == "Open MPI":
        common = ("--allow-run-as-root", "--oversubscribe", "--bind-to", "none")
        vader = (*common, "--mca", "btl", "self,vader", "--mca", "btl_vader_single_copy_mechanism")
        if not library.version.startswith("4."):  # the transport has another name since 5
            return [Variant(library, "default", common)]
        return [
            Variant(library, "default", common),
            Variant(library, "vader-cma", (*vader, "cma")),
            Variant(library, "vader-nocma", (*vader, "none")),
        ]
    if library.name == "Intel MPI":
        settings = {"I_MPI_FABRICS": "shm"}
        if shared:
            return [Variant(library, "shm-wait", (), {**settings, "I_MPI_WAIT_MODE": "1"})]
        return [Variant(library, "shm", (), settings)]
    return [Variant(library, "default", slow=shared)]


class Peers:
    """The compiled programs of all libraries, and the files with their inputs, in a folder of their own."""

    def __init__(self, ranks: int, timeout_s: float = 300.0) -> None:
        """Find and compile.

        Raises:
            MpiError: There is no MPI.
        """
        self.ranks, self.timeout_s = ranks, timeout_s
        self.libraries = find_libraries()
        if not self.libraries:
            raise MpiError("no MPI found: run benchmarks/install_peers.sh, or leave mpi out of --compare")
        cpus = len(os.sched_getaffinity(0))
        self.variants = [variant for library in self.libraries for variant in variants_of(library, ranks, cpus)]
        self._folder = tempfile.TemporaryDirectory(prefix="dcomm-mpi-")
        self._root = Path(self._folder.name)
        self._periods: dict[tuple[object, ...], tuple[Path, int]] = {}
        try:
            for library in self.libraries:
                self._compile(library)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Peers:
        """The peers themselves."""
        return self

    def __exit__(self, *error: object) -> None:
        """Remove the files."""
        self.close()

    def close(self) -> None:
        """Remove the files."""
        self._folder.cleanup()

    def _program(self, library: Library) -> Path:
        return self._root / library.name.replace(" ", "-")

    def _compile(self, library: Library) -> None:
        first, *rest = library.compiler  # libraries come after the source
        command = [first, *_CC, str(SOURCE), *rest, "-o", str(self._program(library))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode != 0:
            raise MpiError(f"{library.name}: {' '.join(command)}: {done.stderr.strip()[-500:]}")

    def cases(self, variant: Variant, cases: list[Case]) -> list[Case]:
        """`cases` as this variant runs them: a slow one makes fewer calls, and none where a call takes seconds."""
        mine = [replace(case, variant=variant.title) for case in cases]
        if not variant.slow:
            return mine
        return [replace(case, calls=1, buffers=1, batches=2, warm=1) for case in mine if case.count <= 64 << 10]

    def measure(self, variant: Variant, cases: list[Case]) -> list[Measured]:
        """Run `cases`, in turn, in one start of the program.

        Raises:
            MpiError: It failed, or did not end in time.
        """
        lines = []
        for case in cases:
            folder, period = self._inputs(case)
            numbers = (case.count, case.calls, case.batches, case.warm, case.buffers, int(case.in_place), period)
            lines.append(" ".join(map(str, (case.dtype, case.redop, *numbers, folder))) + "\n")
        plan = self._root / "plan"
        plan.write_text("".join(lines), encoding="utf-8")
        program = str(self._program(variant.library))
        command = [variant.library.launcher, *variant.arguments, "-n", str(self.ranks), program, str(plan)]
        rows = [line.split() for line in self._run(variant, command).splitlines() if re.match(r"\d+ [\d. ]+$", line)]
        if len(rows) != len(cases):
            raise MpiError(f"{variant.title}: {len(rows)} results for {len(cases)} cases")
        return [Measured([float(us) for us in row[1:]], int(row[0])) for row in rows]

    def _run(self, variant: Variant, command: list[str]) -> str:
        environment = {**os.environ, **variant.library.environment, **variant.environment}
        started = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            found, complaint = started.communicate(timeout=self.timeout_s)
        except BaseException as error:
            with suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGTERM)  # the launcher ends its ranks
            with suppress(subprocess.TimeoutExpired):
                started.communicate(timeout=10)
            with suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)
            started.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                raise MpiError(f"{variant.title}: no end within {self.timeout_s:g} s") from None
            raise
        if started.returncode != 0:
            raise MpiError(f"{variant.title}: exit status {started.returncode}: {complaint.strip()[-500:]}")
        return found

    def _inputs(self, case: Case) -> tuple[Path, int]:
        """The folder with one period of each rank's input and of the result, and the period."""
        key = (case.dtype, case.redop, case.chain)
        if key not in self._periods:
            folder = self._root / f"inputs{len(self._periods)}"
            folder.mkdir()
            made = exact.make(case.dtype, case.carrier, case.redop, self.ranks, case.chain)
            assert made.reduced is not None
            for rank, period in enumerate(made.inputs):
                period.tofile(folder / str(rank))
            made.reduced.tofile(folder / "right")
            self._periods[key] = folder, made.reduced.size
        return self._periods[key]
