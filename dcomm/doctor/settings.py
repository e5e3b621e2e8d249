"""The DCOMM_* variables of this process: names that dcomm does not know, values that it does not take."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping

from dcomm import environment
from dcomm.doctor.finding import Finding, fail, ok, warn


def _advice(name: str) -> str:
    # Without the prefix, which would make everything similar.
    known = [each.removeprefix(environment.PREFIX) for each in environment.KNOWN]
    near = difflib.get_close_matches(name.removeprefix(environment.PREFIX), known, n=1, cutoff=0.6)
    advice = f", or did you mean {environment.PREFIX}{near[0]}?" if near else "; docs/doctor.md lists what there is"
    return f"unset {name}{advice}"


def _try_values() -> None:
    """Make the smallest communicator there is: it reads every setting of the CPU side."""
    import dcomm

    dcomm.init_threads(1)[0].close()


def settings(environ: Mapping[str, str] | None = None) -> Finding:
    """Which are set, and whether they mean anything."""
    env = os.environ if environ is None else environ
    mine = {name: env[name] for name in sorted(env) if name.startswith(environment.PREFIX)}
    unknown = [name for name in mine if name not in environment.KNOWN]
    try:
        _try_values()
    except ValueError as error:
        return fail("settings", str(error), "unset the variable, or give it a value that the text names", set=mine)
    except ImportError:  # no core: its own line says so
        pass
    if unknown:
        found = f"not known to dcomm: {', '.join(unknown)}"
        return warn("settings", found, "; ".join(map(_advice, unknown)), set=mine, unknown=unknown)
    harmful = [name for name in mine if name in environment.TESTS]
    if harmful:
        found = f"for dcomm's own tests only: {', '.join(f'{name}={mine[name]}' for name in harmful)}"
        return warn("settings", found, f"unset {' '.join(harmful)}", set=mine, unknown=[])
    text = ", ".join(f"{name}={value}" for name, value in mine.items())
    return ok("settings", text or "no DCOMM_* variable is set", set=mine, unknown=[])
