"""The rank processes behind ``python -m dcomm`` and ``benchmarks/all_reduce.py``.

The parent (:class:`Ranks`) starts ``python -m dcomm.demo --rank R ...`` for each rank and sends orders, one JSON
object a line, to its standard input; answers come back on its standard output. So the parent alone decides what
is measured next, merges what the ranks say, and sees at once when one of them dies.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import IO, Any, NamedTuple, TextIO

import numpy as np
import numpy.typing as npt

import dcomm

_PR_SET_PDEATHSIG = 1
_NUM_SALTS = 8
# Significant bits, exponent of the smallest unit used, largest exponent: what a dtype holds exactly.
_CARRIERS = {"float32": (24, -126, 127), "float16": (11, -24, 15), "bfloat16": (8, -126, 127)}
_PRIMES = (997, 509, 251, 127, 61, 31, 13, 7)
_STORAGE: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}
_Data = tuple[npt.NDArray[Any], npt.NDArray[Any]]  # input, expected
_Say = Callable[[dict[str, Any]], None]


class RankError(Exception):
    """A rank process ended, failed or was silent when it should have answered."""


class Craft(NamedTuple):
    """Inputs ``scale * (1 ... prime)`` whose sums over ranks and over repeated calls are exact."""

    prime: int
    scale: float


class Measured(NamedTuple):
    """Times of one call, one entry per batch, slowest rank taken; wrong elements over all ranks and batches."""

    us: list[float]
    num_wrong: int


def craft(world_size: int, calls: int, carrier: str) -> Craft | None:
    """Choose inputs for `calls` sums in place over one buffer; None: no such inputs stay exact in `carrier`."""
    digits, lowest, highest = _CARRIERS[carrier]
    growth = world_size ** (calls - 1)  # after the first call all ranks hold the sum, then n times the sum, ...
    for prime in _PRIMES:
        first = prime * world_size
        if world_size & (world_size - 1) == 0:  # growth only moves the exponent
            exponent = min(0, highest - (first * growth).bit_length())
            if first < 2**digits and exponent >= lowest:
                return Craft(prime, 2.0**exponent)
        elif first * growth < 2 ** min(digits, highest):
            return Craft(prime, 1.0)
    return None


def exact_calls(world_size: int, wanted: int, carrier: str) -> int:
    """The most calls per batch, at most `wanted`, whose results are known exactly."""
    return next(n for n in range(wanted, 0, -1) if craft(world_size, n, carrier) is not None)


def _integers(craft: Craft, rank: int) -> npt.NDArray[np.int64]:
    """One period of the inputs; no power of two divides it, so that a chunk taken for its neighbour is seen."""
    index = np.arange(craft.prime**2, dtype=np.int64)
    return 1 + (index + index // craft.prime * 5 + rank * 11) % craft.prime


def _encode(values: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[Any]:
    if dtype == "bfloat16":  # the values have at most 8 significant bits
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(_STORAGE[dtype])


class _Worker:
    """One rank: carries out the parent's orders."""

    def __init__(self, comm: dcomm.Communicator) -> None:
        self._comm = comm
        self._data: dict[tuple[str, str, int], _Data] = {}
        self._buffers: dict[str, npt.NDArray[Any]] = {}
        self._gloo: dict[int, Any] = {}
        self._seen: set[str] = set()
        self._salt = 0
        # For tests of the checks: which batch of the last rank gets a wrong bit, from 1.
        self._corrupt = int(os.environ.get("DCOMM_DEMO_CORRUPT", "0")) * (comm.rank == comm.world_size - 1)

    def open_gloo(self, store: str, threads: list[int]) -> dict[str, Any]:
        """Join one gloo group for each number of gloo threads, over loopback."""
        import torch

        dist: Any = torch.distributed
        group_class = dist.ProcessGroupGloo
        shared = dist.FileStore(store, self._comm.world_size)
        for number in threads:
            options = group_class._Options()
            options._threads = number
            options._devices = [group_class.create_device(interface="lo")]
            options._timeout = timedelta(seconds=60)
            prefixed = dist.PrefixStore(f"threads{number}", shared)
            self._gloo[number] = group_class(prefixed, self._comm.rank, self._comm.world_size, options)
        return {"torch": torch.__version__}

    def measure(self, key: str, count: int, calls: int, batches: int, **how: Any) -> dict[str, Any]:
        """Time batches of calls; every batch gets fresh data, every element of its result is checked."""
        dtype, carrier = how["dtype"], how["wire"] or how["dtype"]
        base, expected = self._crafted(dtype, carrier, calls, count)
        if dtype not in self._buffers or self._buffers[dtype].size < count:
            self._buffers[dtype] = np.zeros(count, _STORAGE[dtype])
        buffer = self._buffers[dtype][:count]
        call = self._call(buffer, **how)
        us: list[float] = []
        num_wrong, num_warm = 0, 0 if key in self._seen else 1
        self._seen.add(key)
        for batch in range(num_warm + batches):
            self._salt = (self._salt + 1) % _NUM_SALTS  # what is left of an earlier batch is wrong now
            np.copyto(buffer, base[self._salt : self._salt + count])
            self._comm.barrier()
            start = time.perf_counter_ns()
            for _ in range(calls):
                call()
            elapsed = time.perf_counter_ns() - start
            if batch >= num_warm:
                us.append(elapsed / calls / 1e3)
            bits = buffer.view(f"u{buffer.itemsize}")
            self._corrupt -= 1
            if self._corrupt == 0:
                bits[count // 2] ^= 1
            right = expected[self._salt : self._salt + count].view(bits.dtype)
            num_wrong += int(np.count_nonzero(bits != right))
        return {"us": us, "num_wrong": num_wrong}

    def _crafted(self, dtype: str, carrier: str, calls: int, count: int) -> _Data:
        key = (dtype, carrier, calls)
        data = self._data.get(key)
        if data is None or data[0].size < count + _NUM_SALTS:
            chosen = craft(self._comm.world_size, calls, carrier)
            if chosen is None:
                raise ValueError(f"{calls} calls on {self._comm.world_size} ranks are not exact in {carrier}")
            inputs = [_integers(chosen, rank) for rank in range(self._comm.world_size)]
            growth = float(self._comm.world_size ** (calls - 1))
            total = np.sum(inputs, axis=0) * (chosen.scale * growth)
            periods = (inputs[self._comm.rank] * chosen.scale, total)
            length = max(count, 1 << 16) + _NUM_SALTS
            base, expected = (np.resize(_encode(p.astype(np.float32), dtype), length) for p in periods)
            data = self._data[key] = base, expected
        return data

    def _call(
        self, buffer: npt.NDArray[Any], *, lib: str, dtype: str, wire: str | None, algo: str, threads: int
    ) -> Callable[[], Any]:
        x: Any = buffer
        if lib == "gloo" or dtype == "bfloat16":
            import torch

            x = torch.from_numpy(buffer.view(np.int16 if dtype == "bfloat16" else buffer.dtype))
            x = x.view(torch.bfloat16) if dtype == "bfloat16" else x
        if lib == "gloo":
            group, tensors = self._gloo[threads], [x]
            return lambda: group.allreduce(tensors).wait()
        options: dict[str, Any] = {} if wire is None else {"wire_dtype": wire}
        if algo != "auto":
            options["algo"] = algo
        return partial(self._comm.all_reduce, x, **options)

    def storm(self, count: int, say: _Say) -> dict[str, Any]:
        """All-reduce without a pause until an error ends it; says so on the way in."""
        x = np.zeros(count, np.float32)
        end = time.monotonic() + 60
        for number in range(10**9):
            try:
                self._comm.all_reduce(x)
            except dcomm.DcommError as error:
                return {"ns": time.monotonic_ns(), "kind": type(error).__name__, "message": str(error)}
            if number == 20:
                say({"storming": True})
            if number % 100 == 0 and time.monotonic() > end:
                break
        raise RankError("the storm ended without an error")

    def carry_out(self, do: str, say: _Say, **order: Any) -> dict[str, Any]:
        """The answer to one order."""
        if do == "gloo":
            return self.open_gloo(**order)
        return self.storm(**order, say=say) if do == "storm" else self.measure(**order)


def _die_with_parent(parent: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it died before the line above
        sys.exit("the parent process is gone")


def _serve(rank: int, world_size: int, orders: TextIO, answers: TextIO) -> None:
    def say(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    with dcomm.init(rank=rank, world_size=world_size, timeout=60) as comm:
        say({"isa": comm._core.isa, "slot_bytes": comm._core.slot_bytes})
        worker = _Worker(comm)
        for line in orders:
            try:
                answer = worker.carry_out(say=say, **json.loads(line))
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            say(answer)


def main() -> int:
    """Be one rank; :class:`Ranks` starts it."""
    parser = argparse.ArgumentParser(prog="python -m dcomm.demo", description=main.__doc__)
    for name in ("--rank", "--world-size", "--parent"):
        parser.add_argument(name, type=int, required=True)
    args = parser.parse_args()
    _die_with_parent(args.parent)
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what a library prints must not end up among the answers
    _serve(args.rank, args.world_size, sys.stdin, answers)
    return 0


class Ranks:
    """The parent's side: starts the rank processes, gives orders, ends them by their ids whatever happens."""

    def __init__(self, world_size: int, timeout_s: float = 120.0) -> None:
        """Start `world_size` processes as a job of their own; their first answer says that they have met."""
        self.world_size = world_size
        self.timeout_s = timeout_s
        self.job_id = f"demo-{secrets.token_hex(8)}"
        defaults = {"DCOMM_TIMEOUT_S": "60", "OMP_NUM_THREADS": "1"}
        environment = {**defaults, **os.environ, "DCOMM_JOB_ID": self.job_id}
        self.processes: list[subprocess.Popen[bytes]] = []
        self._unread = [b""] * world_size
        numbers, pipe = ["--world-size", str(world_size), "--parent", str(os.getpid())], subprocess.PIPE
        try:
            for rank in range(world_size):  # in sessions of their own: Ctrl-C is for the parent, which ends them
                mine = [sys.executable, "-m", "dcomm.demo", *numbers, "--rank", str(rank)]
                started = subprocess.Popen(mine, stdin=pipe, stdout=pipe, env=environment, start_new_session=True)
                self.processes.append(started)
        except BaseException:
            self.kill()
            raise

    def __enter__(self) -> Ranks:
        """The ranks themselves."""
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing that was started here outlives the block."""
        self.kill()

    def kill(self) -> None:
        """End what still runs, reap it, close the pipes."""
        for process in self.processes:
            process.kill()  # does nothing to one that has been reaped
        for process in self.processes:
            process.wait(timeout=30)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(BrokenPipeError):
                        pipe.close()

    def send(self, order: dict[str, Any], ranks: list[int] | None = None) -> None:
        """Give an order to `ranks` (default: all)."""
        line = json.dumps(order).encode() + b"\n"
        for rank in range(self.world_size) if ranks is None else ranks:
            try:
                self._pipe(rank).write(line)
                self._pipe(rank).flush()
            except BrokenPipeError:
                raise self._ended(rank) from None

    def receive(self, ranks: list[int] | None = None, timeout_s: float | None = None) -> list[dict[str, Any]]:
        """One answer from each of `ranks`, in that order; RankError when one ended, failed or is silent."""
        deadline = time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s)
        return [self._receive_one(rank, deadline) for rank in (range(self.world_size) if ranks is None else ranks)]

    def _pipe(self, rank: int) -> IO[bytes]:
        pipe = self.processes[rank].stdin
        assert pipe is not None
        return pipe

    def _ended(self, rank: int) -> RankError:
        return RankError(f"rank {rank} ended early (exit code {self.processes[rank].wait(30)})")

    def _receive_one(self, rank: int, deadline: float) -> dict[str, Any]:
        pipe = self.processes[rank].stdout
        assert pipe is not None
        while b"\n" not in self._unread[rank]:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([pipe], [], [], left)[0]:
                raise RankError(f"rank {rank} did not answer in time")
            chunk = os.read(pipe.fileno(), 1 << 16)
            if not chunk:
                raise self._ended(rank)
            self._unread[rank] += chunk
        line, self._unread[rank] = self._unread[rank].split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RankError(f"rank {rank}: {answer['error']}")
        return answer

    def measure(
        self,
        count: int,
        calls: int,
        batches: int,
        *,
        lib: str = "dcomm",
        dtype: str = "float32",
        wire: str | None = None,
        algo: str = "auto",
        threads: int = 0,
    ) -> Measured:
        """Time `batches` batches of `calls` sums in place of `count` elements, all verified."""
        how = {"lib": lib, "dtype": dtype, "wire": wire, "algo": algo, "threads": threads}
        key = json.dumps([count, calls, how])
        self.send({"do": "measure", "key": key, "count": count, "calls": calls, "batches": batches, **how})
        answers = self.receive()
        us = [max(times) for times in zip(*(answer["us"] for answer in answers), strict=True)]
        return Measured(us, sum(answer["num_wrong"] for answer in answers))

    def leave(self, ranks: list[int] | None = None) -> list[int]:
        """Let `ranks` end by themselves; the exit codes of all, killed ones negative."""
        for rank in range(self.world_size) if ranks is None else ranks:
            self._pipe(rank).close()
        return [process.wait(timeout=30) for process in self.processes]


if __name__ == "__main__":
    sys.exit(main())
