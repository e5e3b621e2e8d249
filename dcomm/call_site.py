"""Where the program called dcomm, for the texts of errors: file and line of its innermost frame."""

from __future__ import annotations

import os
import sys
import threading
from types import FrameType, TracebackType

_OWN = os.path.dirname(os.path.abspath(__file__)) + os.sep
_THREADING = threading.__file__  # where a thread of a library's own begins


def _is_library(filename: str) -> bool:
    """True for files of dcomm's and torch's, through which a program calls."""
    if filename.startswith(_OWN) or filename == _THREADING:
        return True
    torch = sys.modules.get("torch")
    file = getattr(torch, "__file__", None)
    return file is not None and filename.startswith(os.path.dirname(file) + os.sep)


def _text(filename: str, line: int | None) -> str:
    return f"{os.path.basename(filename)}:{line}"


def call_site() -> str:
    """Where the calling thread left the program for dcomm: "train.py:88"; "" where it runs nothing of the program's.

    The core calls it when an operation stalls or fails, never before.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None and _is_library(frame.f_code.co_filename):
        frame = frame.f_back
    return "" if frame is None else _text(frame.f_code.co_filename, frame.f_lineno)


def describe(error: BaseException) -> str:
    """Type, first line and place of a caught exception: "KeyError: 'x' at train.py:88"."""
    step: TracebackType | None = error.__traceback__
    place = ""
    while step is not None:
        if not place or not _is_library(step.tb_frame.f_code.co_filename):
            place = f" at {_text(step.tb_frame.f_code.co_filename, step.tb_lineno)}"
        step = step.tb_next
    lines = str(error).splitlines()
    text = f"{type(error).__name__}: {lines[0][:150]}" if lines else type(error).__name__
    return text + place
