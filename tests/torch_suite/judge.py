"""What an outcome means for the backend: the lists applied, and the proof that dcomm did the work."""

from __future__ import annotations

import re

from lists import NOT_APPLICABLE, SILENT
from single import Outcome


def judge(backend: str, outcome: Outcome, all_apply: bool = False) -> Outcome:
    """The outcome with its final verdict; other backends' stay as they are.

    With `all_apply` the tests that are not applicable count like the others, but need not run operations.
    """
    if backend != "dcomm" or outcome.verdict == "skipped":
        return outcome
    listed = NOT_APPLICABLE.get(outcome.test)
    if listed is not None:
        if all_apply:
            return outcome
        reason, error = listed
        if outcome.verdict == "passed":
            return _failed(outcome, "passes, yet lists.NOT_APPLICABLE has it: take it out there")
        if re.search(error, outcome.reason):
            outcome.verdict, outcome.reason = "not applicable", reason
        return outcome
    if outcome.verdict == "passed":
        any_operation = sum(outcome.operations) > 0
        if not any_operation and outcome.test not in SILENT:
            return _failed(outcome, "passed without one operation on dcomm")
        if any_operation and outcome.test in SILENT:
            return _failed(outcome, "runs operations on dcomm, yet lists.SILENT has it: take it out there")
    return outcome


def _failed(outcome: Outcome, reason: str) -> Outcome:
    outcome.verdict, outcome.reason = "failed", reason
    return outcome
