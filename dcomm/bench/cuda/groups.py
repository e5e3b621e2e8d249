"""The parent's side: for each side of the bench its own child processes, so that a rival that hangs ends alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dcomm.bench.case import Measured
from dcomm.bench.cuda.case import CudaCase
from dcomm.bench.cuda.rivals import RIVALS, is_one_process
from dcomm.bench.ranks import Average, RankError, Ranks

PROGRAM = ("-m", "dcomm.bench.cuda.worker")


class Groups:
    """Starts, orders and ends the children of all sides; nothing of them outlives the ``with`` block.

    absent: rivals that failed, with the reason; the run goes on without them if `may_lack`.
    """

    def __init__(
        self, world_size: int, timeout_s: float, folder: Path, may_lack: bool, program: Sequence[str] = PROGRAM
    ) -> None:
        """`folder`: for the files in which rivals meet. `program`: what Python runs in a child."""
        self.absent: dict[str, str] = {}
        self.facts: dict[str, Any] = {}
        self.versions: dict[str, str] = {}
        self.isa = "unknown"
        self._world_size, self._timeout_s = world_size, timeout_s
        self._folder, self._may_lack, self._program = folder, may_lack, program
        self._sides: dict[str, Ranks] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Groups:
        """The groups themselves."""
        return self

    def __exit__(self, *error: object) -> None:
        """Ends all children."""
        self._stack.close()

    def start(self, side: str) -> None:
        """Start the children of a side and open it.

        Raises:
            RankError: They failed; of a rival only where none may be lacking.
        """
        num_children = 1 if is_one_process(side) else self._world_size
        settings = RIVALS[side].settings if side in RIVALS else {}
        ranks = Ranks(num_children, timeout_s=self._timeout_s, program=self._program, settings=settings)
        self._sides[side] = self._stack.enter_context(ranks)
        self._guarded(side, lambda: self._open(side, ranks))

    def _open(self, side: str, ranks: Ranks) -> None:
        self.isa = ranks.receive()[0]["isa"]
        store = str(self._folder / side)
        ranks.send({"do": "open", "side": side, "world_size": self._world_size, "store": store})
        answer = ranks.receive()[0]
        self.facts |= answer["facts"]
        self.versions |= answer["versions"]

    def _guarded(self, side: str, act: Callable[[], Any]) -> Any:
        """A rival that fails is gone: the reason is kept."""
        try:
            return act()
        except RankError as error:
            self._sides.pop(side).kill()
            if side not in RIVALS:
                raise
            if not self._may_lack:
                raise RankError(f"{side}: {error}") from error
            self.absent[side] = str(error).splitlines()[0]
            return None

    def measure(self, case: CudaCase, average: Average) -> Measured | None:
        """One case; None: its rival, or this variant of it, has failed."""
        if not self.has(case):
            return None
        ranks = self._sides[case.side]
        found: Measured | None = self._guarded(case.side, lambda: self._measure(case, ranks, average))
        return found

    def has(self, case: CudaCase) -> bool:
        """Whether nothing that it needs has failed."""
        return case.side in self._sides and _variant(case) not in self.absent

    def _measure(self, case: CudaCase, ranks: Ranks, average: Average) -> Measured | None:
        try:
            return ranks.measure(case, average)
        except RankError as error:
            # torch.compile without a compiler, say: other variants of one process go on.
            if case.side in RIVALS and ranks.world_size == 1 and ranks.processes[0].poll() is None:
                self.absent[_variant(case)] = str(error).splitlines()[0]
                return None
            raise

    def copy_bandwidth(self, side: str, nbytes: int) -> float:
        """Bytes read and written per second by a copy on the GPU, in the first child of `side`."""
        self._sides[side].send({"do": "bandwidth", "nbytes": nbytes}, [0])
        return float(self._sides[side].receive([0])[0]["bytes_per_second"])

    def leave(self) -> None:
        """Let all children end by themselves.

        Raises:
            RankError: One of dcomm's ended with another status than 0.
        """
        for side, ranks in list(self._sides.items()):
            self._guarded(side, lambda side=side, ranks=ranks: self._close(side, ranks))  # type: ignore[misc]

    def _close(self, side: str, ranks: Ranks) -> None:
        ranks.send({"do": "close"})
        ranks.receive()
        codes = ranks.leave()
        if any(codes) and side not in RIVALS:
            raise RankError(f"exit codes of the ranks ({side}): {codes}")


def _variant(case: CudaCase) -> str:
    return f"{case.side} ({case.variant})" if case.variant else ""
