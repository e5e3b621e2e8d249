"""What a check says: how things are, what was found, and the fix where they are not well."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Status = Literal["ok", "warn", "fail", "skip"]
STATUSES: tuple[Status, ...] = ("ok", "warn", "fail", "skip")


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    ok: as it should be. warn: dcomm works, with less speed or comfort. fail: a part of dcomm that is there does not
    work. skip: not looked at, since something that it needs is absent.
    """

    name: str
    status: Status
    found: str
    fix: str = ""  # never empty unless ok
    details: dict[str, Any] = field(default_factory=dict)  # the same as numbers and names, for programs

    def __post_init__(self) -> None:
        """A line that tells of trouble tells the way out, too."""
        if self.status not in STATUSES or not self.found or (self.status != "ok" and not self.fix):
            raise ValueError(f"{self}: expected a status of {', '.join(STATUSES)}, what was found, and a fix unless ok")

    def as_json(self) -> dict[str, Any]:
        """The same as a JSON object."""
        return dataclasses.asdict(self)


def ok(name: str, found: str, **details: Any) -> Finding:
    """All is well."""
    return Finding(name, "ok", found, "", details)


def warn(name: str, found: str, fix: str, **details: Any) -> Finding:
    """It works, but not as well as it could."""
    return Finding(name, "warn", found, fix, details)


def fail(name: str, found: str, fix: str, **details: Any) -> Finding:
    """It does not work."""
    return Finding(name, "fail", found, fix, details)


def skip(name: str, found: str, fix: str, **details: Any) -> Finding:
    """It was not looked at."""
    return Finding(name, "skip", found, fix, details)


class Part(NamedTuple):
    """Checks that run one after the other; `look` gives a finding for each of `names`, in that order."""

    group: str
    names: tuple[str, ...]
    look: Callable[[float], Iterable[Finding]]  # its argument: when to be done, as time.monotonic() counts


def single(group: str, name: str, look: Callable[[], Finding]) -> Part:
    """A part of one check that takes no time to speak of."""
    return Part(group, (name,), lambda _: [look()])
