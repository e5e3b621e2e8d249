"""Body of a rank process: rank_main.py TASK, where TASK is the JSON that rank_processes.py writes."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

_task: dict[str, Any] = {}


def mark(name: str) -> None:
    """Tells the test that this rank has come to the place called `name`."""
    Path(_task["folder"], f"{_task['rank']}.mark-{name}").touch()


def wait_for_all() -> None:
    """Returns when all rank processes have come here: from then on they are milliseconds apart, not process starts."""
    mark("here")
    paths = [Path(_task["folder"], f"{rank}.mark-here") for rank in range(_task["world_size"])]
    deadline = time.monotonic() + 40
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline, "not all rank processes have started"
        time.sleep(0.002)


def error_of(call: Any) -> dict[str, Any]:
    """Which error `call` ends with, and after how long."""
    start = time.monotonic()
    try:
        call()
    except (RuntimeError, KeyboardInterrupt) as error:
        seconds = time.monotonic() - start
        return {"error": type(error).__name__, "text": str(error), "seconds": seconds, "at_ns": time.monotonic_ns()}
    return {"error": None, "text": "", "seconds": time.monotonic() - start, "at_ns": time.monotonic_ns()}


def store_value(value: Any) -> None:
    """What the worker returns; a worker that ends without returning calls this itself."""
    path = Path(_task["folder"], f"{_task['rank']}.value")
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value))
    os.replace(partial, path)


def run(task: dict[str, Any]) -> None:
    """Calls the worker's function and stores what it returns."""
    # A shell's background jobs ignore it, and so would what they start; the tests interrupt ranks.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _task.update(task)
    spec = importlib.util.spec_from_file_location("rank_worker", task["script"])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["rank_worker"] = module
    spec.loader.exec_module(module)
    store_value(getattr(module, task["function"])(task["rank"], task["world_size"], **task["args"]))


if __name__ == "__main__":
    sys.modules["rank_main"] = sys.modules["__main__"]  # for the worker's `from rank_main import mark`
    run(json.loads(sys.argv[1]))
