"""A process that has imported what ranks need, and forks them: rank_server.py FD [torch], run by rank_processes.py.

A rank that is a new interpreter spends a second or two importing torch, and all ranks of a test do. A forked one has
everything at once and is otherwise such a process: it ends through atexit, its output and environment are its own, and
no thread and no communicator exist in the server. On the socket FD, JSON: {"start": ...} is answered with the pid,
{"wait": pid} with the exit status of a rank that has ended; who asks has the socket's other end, and the server ends
when that closes.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import socket
import sys
from typing import Any

MESSAGE_BYTES = 1 << 20


def serve(connection: socket.socket) -> dict[str, Any] | None:
    """Answers until the other end closes: None. Returns in each rank, too, with what it was started for."""
    while True:
        text = connection.recv(MESSAGE_BYTES)
        if not text:
            return None
        order = json.loads(text)
        if "wait" in order:
            answer = os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                connection.close()
                start: dict[str, Any] = order["start"]
                return start
        connection.send(json.dumps(answer).encode())


def become_rank(start: dict[str, Any]) -> None:
    """The environment and the files of the rank, as if it had been started with them."""
    os.environ.clear()
    os.environ.update(start["env"])
    for number, name, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, start["out"], os.O_WRONLY),
        (2, start["err"], os.O_WRONLY),
    ):
        file = os.open(name, flags)
        os.dup2(file, number)
        os.close(file)


def main() -> None:
    for name in ("numpy", "dcomm", "rank_main", *(("torch.distributed", "dcomm.torch") if "torch" in sys.argv else ())):
        importlib.import_module(name)
    gc.freeze()  # the ranks neither search nor copy what is there already
    start = serve(socket.socket(fileno=int(sys.argv[1])))
    if start is not None:
        become_rank(start)
        sys.modules["rank_main"].run(start["task"])


if __name__ == "__main__":
    main()
