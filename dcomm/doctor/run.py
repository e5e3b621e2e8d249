"""Runs the parts side by side; one that raises, ends early or hangs costs its own lines and nothing else."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from dcomm.doctor.finding import Finding, Part, fail

_GRACE_S = 0.25  # for a part that ends its processes at the deadline


class Line(NamedTuple):
    """A finding and the group it is shown in."""

    group: str
    finding: Finding


class _Runner:
    """One part in a thread of its own. What it has found by the deadline counts."""

    def __init__(self, part: Part, deadline: float) -> None:
        self.part = part
        self._deadline = deadline
        self._found: dict[str, Finding] = {}
        self._error: Exception | None = None
        # A daemon: the interpreter does not wait for one that hangs.
        self._thread = threading.Thread(target=self._run, name=f"doctor {part.names[0]}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for finding in self.part.look(self._deadline):
                self._found[finding.name] = finding
        except Exception as error:  # whatever it is, it is this part's line and not the end of the command
            self._error = error

    def findings(self, seconds: float) -> list[Finding]:
        """One for each name; waits until the deadline and a little longer."""
        self._thread.join(max(0.0, self._deadline + _GRACE_S - time.monotonic()))
        hangs, found = self._thread.is_alive(), dict(self._found)
        return [found[name] if name in found else self._missing(name, hangs, seconds) for name in self.part.names]

    def _missing(self, name: str, hangs: bool, seconds: float) -> Finding:
        again = "give it more time with `dcomm doctor --seconds 30`"
        if hangs:
            return fail(name, f"no answer within {seconds:g} s", f"{again}; if it hangs then too, report it")
        if self._error is not None:
            text = f"the check itself failed: {type(self._error).__name__}: {self._error}"
            return fail(name, text, "report it with this line; the other lines stand")
        return fail(name, "the check ended without a result", f"{again}; if that does not help, report it")


def run(parts: Sequence[Part], seconds: float) -> list[Line]:
    """The findings of all parts, in their order, after about `seconds` at most."""
    deadline = time.monotonic() + seconds
    runners = [_Runner(part, deadline) for part in parts]
    return [Line(runner.part.group, finding) for runner in runners for finding in runner.findings(seconds)]
