"""``python -m dcomm``: what this installation can do on this machine, shown and checked in a few seconds.

Four rank processes all-reduce arrays whose exact results are known; then one of them is killed, and the others
must say so. Where torch is installed, a small model is then trained on 1, 2 and 4 ranks. The exit status is 0 only if
every element was right, the dead rank was named, nothing was left and the weights do not depend on the number of ranks.

``python -m dcomm bench``, which is ``dcomm bench``: the benchmark (dcomm/cli/bench.py). ``python -m dcomm doctor``,
which is ``dcomm doctor``: what is right and wrong with this machine and this installation (dcomm/doctor).
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import os
import platform
import shlex
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy

import dcomm
from dcomm.bench.case import Case, Measured
from dcomm.bench.collectives import bandwidths
from dcomm.bench.exact import exact_chain
from dcomm.bench.machine import cpu_model, kernel_version
from dcomm.bench.ranks import RankError, Ranks
from dcomm.bench.text import nbytes_text

_NBYTES = (8, 4 << 10, 256 << 10, 2 << 20, 16 << 20)
_NBYTES_BESIDE_GLOO = (4 << 10, 256 << 10, 2 << 20)
_VARIANTS: tuple[tuple[str, str | None], ...] = (
    ("ring", None),
    ("two_shot", None),
    ("ring", "float16"),
    ("two_shot", "float16"),
)
_MAX_ROUNDS = 9
_STORM_COUNT = 16 << 10

Row = tuple[object, ...]


def progress(text: str) -> None:
    """Say what is going on, beside the results."""
    print(text, file=sys.stderr, flush=True)


def say(text: str = "") -> None:
    """Print a line of the results."""
    print(text, flush=True)


def calls_for(nbytes: int) -> int:
    """Back-to-back calls in a batch."""
    return 16 if nbytes < 2 << 20 else 4 if nbytes < 16 << 20 else 2


# ---- What a job may leave behind ---------------------------------------------------------------------------


def shm_entries() -> set[str]:
    """The names in /dev/shm."""
    return set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()


def orphans(names: set[str]) -> list[str]:
    """Those names in /dev/shm that no process maps: a live one's is not ours, all of ours have ended."""
    mapped = ""
    for maps in Path("/proc").glob("[0-9]*/maps") if names else ():
        with suppress(OSError):  # it ended meanwhile, or it is another user's
            mapped += maps.read_text(encoding="utf-8", errors="replace")
    return sorted(name for name in names if f"/dev/shm/{name}" not in mapped)


def abstract_sockets() -> dict[str, str]:
    """Inode -> name of the abstract Unix sockets of dcomm on this machine, those of other jobs too."""
    lines = Path("/proc/net/unix").read_text(encoding="utf-8", errors="replace").splitlines()
    rows = [line.split() for line in lines]
    return {row[6]: row[7] for row in rows if len(row) > 7 and row[7].startswith("@dcomm")}


def sockets_of(pids: list[int]) -> set[str]:
    """The names of dcomm's abstract sockets that these processes hold."""
    names, found = abstract_sockets(), set()
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            target = os.readlink(entry)
            if target.startswith("socket:["):
                found.add(names.get(target[len("socket:[") : -1], ""))
    return found - {""}


def processes_of(job_id: str) -> list[int]:
    """The processes whose environment names the job."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and job_id.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:  # it ended meanwhile, or it is another user's
            continue
    return found


def left_behind(job_id: str, shm_before: set[str], sockets: set[str], patience_s: float = 2.0) -> list[str]:
    """What is left of a job: new names in /dev/shm, processes, sockets; empty when all is gone."""
    end = time.monotonic() + patience_s
    while True:
        left = [f"/dev/shm/{name}" for name in orphans(shm_entries() - shm_before)]
        left += [f"process {pid}" for pid in processes_of(job_id)]
        left += [f"socket {name}" for name in sorted(sockets & set(abstract_sockets().values()))]
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.05)


# ---- The three parts ---------------------------------------------------------------------------------------


def _rounds(cases: list[Callable[[], Measured]], budget_s: float) -> list[Measured]:
    """Run all cases in turn, again and again until the budget is spent; all their batches together."""
    merged = [Measured([], 0) for _ in cases]
    start = time.monotonic()
    for number in range(1, _MAX_ROUNDS + 1):
        for index, case in enumerate(cases):
            measured, before = case(), merged[index]
            merged[index] = Measured(before.us + measured.us, before.num_wrong + measured.num_wrong)
        elapsed = time.monotonic() - start
        progress(f"  round {number} of at most {_MAX_ROUNDS}, {elapsed:.1f} s")
        if elapsed * (number + 1) / number > budget_s:
            break
    return merged


def _case(ranks: Ranks, nbytes: int, batches: int, **how: Any) -> Callable[[], Measured]:
    carrier = str(how.get("wire") or "float32")
    calls = exact_chain(ranks.world_size, calls_for(nbytes), carrier)
    return lambda: ranks.measure(Case(nbytes // 4, calls, batches, **how))


def show_table(ranks: Ranks, budget_s: float) -> int:
    """Measure and print all variants and sizes; the number of wrong elements."""
    progress("measuring; every element of every result is checked")
    shapes = [(nbytes, algo, wire) for nbytes in _NBYTES for algo, wire in _VARIANTS]
    cases = [_case(ranks, nbytes, 3 if nbytes < 2 << 20 else 1, algo=a, wire=w) for nbytes, a, w in shapes]
    say(f"{'size':>8}  {'algo':<9}{'wire':<9}{'time us':>11}{'algbw GB/s':>12}{'busbw GB/s':>12}{'#wrong':>8}")
    num_wrong = 0
    for (nbytes, algo, wire), measured in zip(shapes, _rounds(cases, budget_s), strict=True):
        us = statistics.median(measured.us)
        algbw, busbw = bandwidths(nbytes, us, ranks.world_size)
        say(
            f"{nbytes_text(nbytes):>8}  {algo:<9}{wire or 'float32':<9}{us:11.2f}{algbw:12.3f}{busbw:12.3f}"
            f"{measured.num_wrong:8d}"
        )
        num_wrong += measured.num_wrong
    return num_wrong


def show_gloo(ranks: Ranks, budget_s: float) -> int:
    """The same sums by gloo, in turn with dcomm's; the number of wrong elements."""
    if importlib.util.find_spec("torch") is None:
        say("\ntorch is not installed, so there is no comparison with its gloo")
        return 0
    progress("starting gloo in the same processes (torch is imported there)")
    with tempfile.TemporaryDirectory(prefix="dcomm-demo-") as folder:
        ranks.send({"do": "gloo", "store": str(Path(folder) / "store"), "threads": [2]})
        version = ranks.receive()[0]["torch"]
        cases = []
        for nbytes in _NBYTES_BESIDE_GLOO:
            cases += [_case(ranks, nbytes, 3), _case(ranks, nbytes, 1, lib="gloo", threads=2)]
        results = _rounds(cases, budget_s)
    say(f"\nbeside gloo of torch {version} on loopback: float32, same processes, in turn")
    say(f"{'size':>8}  {'dcomm us':>11}{'gloo us':>11}{'gloo/dcomm':>12}{'#wrong':>8}")
    for nbytes, ours, gloo in zip(_NBYTES_BESIDE_GLOO, results[::2], results[1::2], strict=True):
        mine, other = statistics.median(ours.us), statistics.median(gloo.us)
        wrong = ours.num_wrong + gloo.num_wrong
        say(f"{nbytes_text(nbytes):>8}  {mine:11.2f}{other:11.2f}{other / mine:11.1f}x{wrong:8d}")
    return sum(result.num_wrong for result in results)


def show_death(ranks: Ranks, shm_before: set[str]) -> list[str]:
    """Kill one rank in the middle of all-reduces, print what became of it; complaints."""
    victim = min(2, ranks.world_size - 1)
    survivors = [rank for rank in range(ranks.world_size) if rank != victim]
    pids = [process.pid for process in ranks.processes]
    sockets = sockets_of(pids)
    progress(f"kill -9 of rank {victim} (pid {pids[victim]}) while all ranks all-reduce")
    ranks.send({"do": "storm", "count": _STORM_COUNT})
    ranks.receive(timeout_s=30)
    time.sleep(0.1)
    killed_ns = time.monotonic_ns()
    os.kill(pids[victim], signal.SIGKILL)
    reports = ranks.receive(survivors, timeout_s=20)
    last_ms = (max(report["ns"] for report in reports) - killed_ns) / 1e6

    named = f"rank {victim} (pid {pids[victim]}) died"
    complaints = [
        f"rank {rank} did not name rank {victim}: {report['kind']}: {report['message']}"
        for rank, report in zip(survivors, reports, strict=True)
        if report["kind"] != "PeerLostError" or named not in report["message"]
    ]
    codes = ranks.leave(survivors)
    expected = [-signal.SIGKILL if rank == victim else 0 for rank in range(ranks.world_size)]
    if codes != expected:
        complaints.append(f"exit codes {codes}, expected {expected}")
    left = left_behind(ranks.job_id, shm_before, sockets)
    complaints += [f"left behind: {what}" for what in left]
    if not complaints:
        names = ", ".join(map(str, survivors))
        ranks_text = f"rank {names}" if len(survivors) == 1 else f"ranks {names}"
        say(f"\nrank {victim} died, named on {ranks_text} after {last_ms:.1f} ms, nothing left behind")
    return complaints


def show_same_weights() -> list[str]:
    """Train on 1, 2 and 4 ranks, deterministically, print the weights' SHA-256; complaints. Nothing without torch."""
    if importlib.util.find_spec("torch") is None:
        return []
    progress("training on 1, 2 and 4 ranks, as threads")
    import torch

    from dcomm.torch import same_weights

    before = torch.get_num_threads()
    torch.set_num_threads(1)  # so that a matrix product is the same sum everywhere
    shas = {world_size: same_weights.weights_sha256(world_size) for world_size in (1, 2, 4)}
    torch.set_num_threads(before)
    if len(set(shas.values())) != 1:
        return [f"deterministic=True: the weights depend on the number of ranks: {shas}"]
    say(
        f"the same weights on 1, 2 and 4 ranks (deterministic=True, {same_weights.NUM_STEPS} steps of "
        f"{same_weights.NUM_MICROBATCHES} microbatches): SHA-256 {shas[1]}"
    )
    return []


def _show_header(args: argparse.Namespace, isa: str) -> None:
    num_cpus = len(os.sched_getaffinity(0))
    arguments = shlex.join(sys.argv[1:])
    say(f"dcomm {dcomm.__version__}: {args.ranks} ranks (processes), {isa} kernels")
    say(
        f"machine: {cpu_model()}, {num_cpus} core{'s' * (num_cpus != 1)}, Linux {kernel_version()}, "
        f"Python {platform.python_version()}, NumPy {numpy.__version__}"
    )
    now = datetime.datetime.now().astimezone()
    say(f"command: {f'python -m dcomm {arguments}'.rstrip()}   date: {now:%Y-%m-%d %H:%M %Z}")
    if args.ranks > num_cpus:
        say(f"{args.ranks} ranks share {num_cpus} cores here: times include the switches between them")
    say("all_reduce, sum, in place; median over batches of calls, slowest rank; GB = 1e9 bytes\n")


def _run(args: argparse.Namespace) -> list[str]:
    complaints = []
    shm_before = shm_entries()
    progress(f"starting {args.ranks} ranks")
    with Ranks(args.ranks) as ranks:
        _show_header(args, ranks.receive(timeout_s=90)[0]["isa"])
        num_wrong = show_table(ranks, args.seconds)
        if not args.no_gloo:
            num_wrong += show_gloo(ranks, args.seconds / 3)
        if num_wrong:
            complaints.append(f"{num_wrong} wrong elements")
        complaints += show_death(ranks, shm_before)
    complaints += show_same_weights()
    return complaints


def _bench(argv: list[str]) -> int:
    try:
        from dcomm.cli import bench
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        print(f"dcomm bench needs {error.name}: pip install 'dcomm[cli]'", file=sys.stderr)
        return 2
    return bench.main(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the demonstration, or the command that is named first; 0 if everything held."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["bench"]:
        return _bench(arguments[1:])
    if arguments[:1] == ["doctor"]:
        from dcomm.doctor import command

        return command.main(arguments[1:])
    parser = argparse.ArgumentParser(
        prog="python -m dcomm",
        description="Shows dcomm at work on this machine: starts rank processes, checks and times all-reduce, then "
        "kills a rank with SIGKILL and checks that the others name it and that nothing is left behind.",
        epilog="Exit status: 0 everything held; 1 wrong data, a death not named, something left behind, or weights "
        "that differ. "
        "The benchmark: python -m dcomm bench --help. What may be wrong here: python -m dcomm doctor.",
    )
    parser.add_argument("-n", "--ranks", type=int, default=4, metavar="N", help="rank processes, 2 to 16 (default 4)")
    parser.add_argument(
        "--seconds", type=float, default=4.0, metavar="S", help="time for the table; a third more for gloo (default 4)"
    )
    parser.add_argument("--no-gloo", action="store_true", help="do not compare with torch's gloo")
    parser.add_argument("--version", action="version", version=f"dcomm {dcomm.__version__}")
    args = parser.parse_args(argv)
    if not 2 <= args.ranks <= 16:
        parser.error(f"--ranks {args.ranks}: expected 2 to 16")
    try:
        complaints = _run(args)
    except (RankError, dcomm.DcommError) as error:
        complaints = [str(error)]
    if complaints:
        for complaint in complaints:
            say(f"FAILED: {complaint}")
        return 1
    say("next: dcomm bench all_reduce -n 2 --compare gloo      (pip install 'dcomm[cli]')")
    say("      torchrun --standalone --nproc-per-node 2 examples/train_gpt.py --compare      (see README.md)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
