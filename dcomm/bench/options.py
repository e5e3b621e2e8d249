"""What a run is asked for: the values behind the flags of ``dcomm bench`` and ``benchmarks/all_reduce.py``."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from dcomm.bench import gloo, mpi
from dcomm.bench.codes import ALGO_CODES, BLOCK_ALGO_CODES, OP_CODES
from dcomm.bench.collectives import COLLECTIVES
from dcomm.bench.dtypes import ALIASES, COMPLEX_PARTS, FLOATS, FP8, HALVES, NAMES
from dcomm.bench.exact import exact_chain

ALGOS = {  # by collective; the others have no choice
    "all_reduce": tuple(ALGO_CODES),
    "reduce_scatter": tuple(BLOCK_ALGO_CODES),
    "all_gather": tuple(BLOCK_ALGO_CODES),
}
OPS = tuple(op for op in OP_CODES if op != "premul_sum")  # that one has a factor
LEVELS = ("python", "c")
PEERS = ("gloo", "mpi", "pass")
AVERAGES = ("rank0", "avg", "min", "max")  # nccl-tests' -a 0 to 3
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_BITWISE = ("band", "bor", "bxor")


class OptionError(ValueError):
    """A flag that cannot be carried out: which one, what was given, what is expected."""


@dataclass(frozen=True)
class Options:
    """One run; :meth:`checked` says whether it can be carried out."""

    collective: str = "all_reduce"
    ranks: int = 2
    min_bytes: int = 8
    max_bytes: int = 128 << 20
    factor: int = 2
    step_bytes: int = 0  # instead of the factor
    iters: int = 0  # timed calls per size and round; 0: 400 below 2 MiB, else 3 batches
    warmup: int = 1  # calls before the clock counts, rounded up to batches
    check: bool = True
    average: str = "max"
    ops: tuple[str, ...] = ("sum",)
    dtypes: tuple[str, ...] = ("float32",)
    roots: tuple[int, ...] = (0,)
    algos: tuple[str, ...] = ("auto",)
    wires: tuple[str | None, ...] = (None,)
    levels: tuple[str, ...] = ("python",)
    arrays: tuple[str, ...] = ("numpy",)  # torch: 8-byte messages as tensors too
    compare: tuple[str, ...] = ()
    threads: bool = False  # the ranks are threads of one process
    in_place_only: bool = False
    buffers: int = 0  # 0: one for each call of a batch, as far as 64 MiB go
    rounds: int = 5
    max_seconds: float = 120.0
    timeout: float = 300.0

    def checked(self) -> Options:
        """The options, with names spelled out.

        Raises:
            OptionError: One of them, or two together, cannot be.
        """
        what = _one_of("COLLECTIVE", self.collective, COLLECTIVES)
        if not 2 <= self.ranks <= 64:
            raise OptionError(f"-n {self.ranks}: expected 2 to 64 ranks")
        if not 1 <= self.min_bytes <= self.max_bytes:
            raise OptionError(f"-b {self.min_bytes} -e {self.max_bytes}: expected 1 <= -b <= -e")
        if self.factor < 2 and self.step_bytes < 1:
            raise OptionError(f"-f {self.factor}: expected a factor of at least 2, or -i")
        for flag, number, least in (("--iters", self.iters, 0), ("-w", self.warmup, 0), ("--buffers", self.buffers, 0)):
            if number < least:
                raise OptionError(f"{flag} {number}: expected at least {least}")
        if self.rounds < 1 or self.max_seconds <= 0 or self.timeout <= 0:
            raise OptionError("--rounds, --max-seconds, -T: expected more than 0")
        for root in self.roots:
            if not 0 <= root < self.ranks:
                raise OptionError(f"-r {root}: expected a rank from 0 to {self.ranks - 1}")
        _one_of("-a", self.average, AVERAGES)
        if self.algos != ("auto",) and what not in ALGOS:
            raise OptionError(f"--algo: expected COLLECTIVE {', '.join(ALGOS)}, got {what}")
        for name in self.algos:
            _one_of("--algo", name, algos_of(what))
        for name in self.levels:
            _one_of("--level", name, LEVELS)
        if what != "all_reduce":
            for flag, other in (
                ("--wire", self.wires != (None,)),
                ("--level c", self.levels != ("python",)),
            ):
                if other:
                    raise OptionError(f"{flag}: expected COLLECTIVE all_reduce, got {what}")
        if self.threads and self.compare:
            raise OptionError(
                f"--threads --compare {','.join(self.compare)}: expected ranks that are processes, as peers'"
            )
        self._check_types()
        self._check_peers()
        return self

    def _check_types(self) -> None:
        for dtype in self.dtypes:
            _one_of("-d", dtype, NAMES)
            if dtype == "bfloat16" and importlib.util.find_spec("torch") is None:
                raise OptionError("-d bfloat16: NumPy has no such dtype; install torch")
            for op in self.ops if COLLECTIVES[self.collective].reduces else ():
                _one_of("-o", op, OPS)
                if not defined(op, dtype):
                    raise OptionError(f"-o {op} -d {dtype}: not defined; expected another op or dtype")
        for wire in self.wires:
            if wire is not None and wire not in (*HALVES, *FP8):
                raise OptionError(f"--wire {wire}: expected none, float16, bfloat16, fp8 or fp8_block128")
            if wire is not None and self.dtypes != ("float32",):
                raise OptionError(f"--wire {wire}: expected -d float32, got {', '.join(self.dtypes)}")
            if wire in FP8:
                self._check_fp8(wire)

    def _check_fp8(self, wire: str) -> None:
        for op in self.ops:
            if op not in ("sum", "avg"):
                raise OptionError(f"--wire {wire} -o {op}: expected sum or avg, which alone it carries")
            if self.check and exact_chain(self.ranks, 1, wire, op) == 0:
                raise OptionError(
                    f"--wire {wire} -o {op} -n {self.ranks}: there are no inputs whose results are exact with so many "
                    "ranks; expected fewer, or -c 0, which does not check results"
                )

    def _check_peers(self) -> None:
        for peer in self.compare:
            _one_of("--compare", peer, PEERS)
        if "gloo" in self.compare:
            if importlib.util.find_spec("torch") is None:
                raise OptionError("--compare gloo: needs torch; pip install torch")
            if self.collective not in gloo.COLLECTIVES:
                raise OptionError(f"--compare gloo: gloo has no {self.collective}")
            for op in self.ops if COLLECTIVES[self.collective].reduces else ():
                if op not in gloo.OPS:
                    raise OptionError(f"--compare gloo: gloo has no -o {op}")
        if "pass" in self.compare and self.collective != "all_reduce":
            raise OptionError(f"--compare pass: expected COLLECTIVE all_reduce, got {self.collective}")
        if "mpi" in self.compare:
            if not mpi.find_libraries():
                raise OptionError("--compare mpi: no MPI found; run benchmarks/install_peers.sh")
            if self.collective != "all_reduce":
                raise OptionError(f"--compare mpi: expected COLLECTIVE all_reduce, got {self.collective}")
            for flag, given, known in (("-d", self.dtypes, mpi.TYPES), ("-o", self.ops, mpi.OPS)):
                for name in given:
                    if name not in known:
                        raise OptionError(f"--compare mpi: expected {flag} {', '.join(known)}, got {name}")


def algos_of(collective: str) -> tuple[str, ...]:
    """What ``--algo all`` means."""
    return ALGOS.get(collective, ("auto",))


def serves(wire: str | None, algo: str) -> bool:
    """Whether an algorithm sends in a type other than the array's."""
    if wire in FP8:
        return algo in ("auto", "two_shot")
    return wire is None or algo != "direct"


def defined(op: str, dtype: str) -> bool:
    """Whether dcomm reduces this type by this operation."""
    if dtype in COMPLEX_PARTS:
        return op in ("sum", "avg")
    return op not in _BITWISE if dtype in FLOATS else op != "avg"


def _one_of(flag: str, name: str, known: Collection[str]) -> str:
    if name not in known:
        raise OptionError(f"{flag} {name}: expected one of {', '.join(known)}")
    return name


def parse_nbytes(text: str) -> int:
    """8, 32K, 2M, 1G, also with B or iB behind, as bytes.

    Raises:
        OptionError: Not such a number.
    """
    plain = text.upper().removesuffix("B").removesuffix("I")
    factor = UNITS.get(plain[-1:], 1)
    digits = plain[:-1] if factor > 1 else plain
    if not digits.isdecimal() or int(digits) < 1:
        raise OptionError(f"{text!r}: expected bytes such as 8, 32K, 2M or 1G")
    return int(digits) * factor


def parse_names(text: str, every: Sequence[str] = ()) -> tuple[str, ...]:
    """Names by commas, aliases spelled out; "all" stands for `every`."""
    if text == "all" and every:
        return tuple(every)
    return tuple(dict.fromkeys(ALIASES.get(name.strip(), name.strip()) for name in text.split(",")))


def parse_ops(text: str, dtypes: Sequence[str]) -> tuple[str, ...]:
    """Operations by commas; "all": those that every one of `dtypes` has."""
    return parse_names(text, [op for op in OPS if all(defined(op, dtype) for dtype in dtypes)])


def parse_wires(text: str, dtype: str = "float32") -> tuple[str | None, ...]:
    """Wire dtypes by commas; none, or the array's own, is None."""
    names: list[str | None] = [None if name in ("none", dtype) else name for name in parse_names(text)]
    return tuple(dict.fromkeys(names))


def parse_roots(text: str, ranks: int) -> tuple[int, ...]:
    """Ranks by commas, or "all".

    Raises:
        OptionError: Not a number.
    """
    if text == "all":
        return tuple(range(ranks))
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise OptionError(f"-r {text}: expected ranks by commas, or all") from None


def parse_average(text: str) -> str:
    """nccl-tests' numbers, or the names."""
    return AVERAGES[int(text)] if text.isdecimal() and int(text) < len(AVERAGES) else text
