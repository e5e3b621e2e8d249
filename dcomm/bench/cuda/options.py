"""What ``dcomm bench --device cuda`` is asked for, and what of it cannot be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from dcomm.bench.cuda.case import MODES, TIMINGS
from dcomm.bench.cuda.rivals import RIVALS
from dcomm.bench.options import OptionError, Options, parse_names
from dcomm.cuda_operation import ALGOS, FLOATS, SUM_OPS

COLLECTIVES = (
    "all_reduce",
    "reduce_scatter",
    "all_gather",
    "broadcast",
    "reduce",
    "gather",
    "scatter",
    "all_to_all",
)
_ON = "with --device cuda"
_ALGOS = tuple(name for name in ALGOS if name != "direct")  # whose arrays are not a program's own


@dataclass(frozen=True)
class CudaOptions:
    """One run on a GPU; :meth:`checked` says whether it can be carried out."""

    base: Options  # without peers
    modes: tuple[str, ...] = MODES
    timings: tuple[str, ...] = TIMINGS
    compare: tuple[str, ...] = ()
    compare_all: bool = False  # those of `compare` that are here

    def checked(self, why_not: Callable[[], str]) -> CudaOptions:
        """The options; with compare_all without the rivals that are not here.

        Args:
            why_not: Why there can be no measurement on a GPU here, "" where there can.

        Raises:
            OptionError: One of them cannot be, or there is no GPU, or no such rival.
        """
        base = self.base.checked()
        if base.collective not in COLLECTIVES:
            raise OptionError(f"COLLECTIVE {base.collective} {_ON}: expected one of {', '.join(COLLECTIVES)}")
        for flag, given, known in (
            ("--mode", self.modes, MODES),
            ("--timing", self.timings, TIMINGS),
            ("--compare", self.compare, tuple(RIVALS)),
            ("--algo", base.algos, _ALGOS),
            *((("-d", base.dtypes, FLOATS), ("-o", base.ops, SUM_OPS)) if _reduces(base) else ()),
        ):
            for name in given:
                if name not in known:
                    raise OptionError(f"{flag} {name} {_ON}: expected {', '.join(known)}")
        for flag, other in (("--level c", base.levels != ("python",)), ("--buffers", base.buffers > 1)):
            if other:
                raise OptionError(f"{flag}: expected --device cpu")
        if self.compare and not self.compare_all and base.collective != "all_reduce":
            raise OptionError(f"--compare {_ON}: expected COLLECTIVE all_reduce, got {base.collective}")
        self._check_modes()
        if reason := why_not():
            raise OptionError(f"--device cuda: {reason}")
        return self

    def _check_modes(self) -> None:
        for name in self.compare:
            if not self.compare_all and RIVALS[name].mode not in self.modes:
                raise OptionError(f"--compare {name}: expected --mode {RIVALS[name].mode}, where it is compared")

    def rivals(self) -> tuple[list[str], dict[str, str]]:
        """Those to measure, and those that are left out with the reason.

        Raises:
            OptionError: One that was named is not here.
        """
        found: list[str] = []
        absent: dict[str, str] = {}
        for name in self.compare:
            rival = RIVALS[name]
            if rival.mode not in self.modes or self.base.collective != "all_reduce":
                continue
            reason = rival.why_not()
            if reason and not self.compare_all:
                raise OptionError(f"--compare {name}: {reason}")
            if reason:
                absent[name] = reason
            else:
                found.append(name)
        return found, absent


def cuda_options(base: Options, *, mode: str = "all", timing: str = "all", compare: str = "none") -> CudaOptions:
    """From what the flags say.

    Args:
        base: All other flags. Its `threads` is another word for mode="threads".
        mode: Of MODES, by commas.
        timing: Of TIMINGS, by commas.
        compare: Rivals by commas; "all": those that are here; "none".

    Raises:
        OptionError: base.threads with another mode.
    """
    modes = parse_names(mode, MODES)
    if base.threads:
        if mode not in ("all", "threads"):
            raise OptionError(f"--threads: expected --mode threads, got {mode}")
        modes = ("threads",)
    rivals = () if compare == "none" else parse_names(compare, tuple(RIVALS))
    return CudaOptions(
        replace(base, threads=False), modes, parse_names(timing, TIMINGS), rivals, compare_all=compare == "all"
    )


def _reduces(base: Options) -> bool:
    return base.collective in ("all_reduce", "reduce_scatter", "reduce")
