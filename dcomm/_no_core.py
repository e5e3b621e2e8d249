"""What happens where the compiled core cannot be imported: one clear sentence, and `dcomm doctor` still runs.

Nothing here, and nothing that the doctor imports at module level, needs the core.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NoReturn

_FOLDER = Path(__file__).parent


def reason_and_fix(error: ImportError, folder: Path = _FOLDER) -> tuple[str, str]:
    """Why ``dcomm._core`` in `folder` cannot be imported, and what to do."""
    again = f"{sys.executable} -m pip install --force-reinstall dcomm"
    cores = sorted(path.name for path in folder.glob("_core*.so"))
    if not cores:
        if (folder.parent / "csrc").is_dir():
            return (
                f"{folder} is a source checkout without a compiled core",
                "run Python in another folder if dcomm is installed, or: pip install -e .",
            )
        return f"{folder} holds no compiled core", again
    tag = sys.implementation.cache_tag or ""
    if not any(tag in name for name in cores):
        return f"{folder} holds {', '.join(cores)}, and this is {tag}", again
    return f"{', '.join(cores)} does not load: {error}", f"install it again on this machine: {again}"


def _doctor_arguments() -> list[str] | None:
    """What follows ``dcomm doctor`` or ``python -m dcomm doctor`` on the command line; None: it is another command."""
    if sys.argv[1:2] != ["doctor"]:
        return None
    # While `python -m` imports the package, argv[0] is "-m", and only the original command line has the module's name.
    by_module = sys.argv[0] == "-m" and sys.orig_argv[: -len(sys.argv[1:])][-2:] == ["-m", "dcomm"]
    return sys.argv[2:] if by_module or Path(sys.argv[0]).name == "dcomm" else None


def explain(error: ImportError) -> NoReturn:
    """Run the doctor and leave, if the command line asks for it.

    Raises:
        ImportError: It does not; the text says why there is no core, and what to do.
        SystemExit: With the doctor's exit status.
    """
    arguments = _doctor_arguments()
    if arguments is not None:
        from dcomm.doctor.command import main

        raise SystemExit(main(arguments, core_error=error))
    reason, fix = reason_and_fix(error)
    raise ImportError(f"dcomm: {reason}; {fix}; `python -m dcomm doctor` shows what else is amiss") from error
