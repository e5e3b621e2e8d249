"""In a container's conditions: small /dev/shm, read-only files, no privileges, system calls refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import container
import pytest
import seccomp
from figures import record_figure

INSIDE = Path(__file__).with_name("contained.py")
NOBODY = 65534

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make mounts of its own")


def run_inside(function: str, **conditions: Any) -> dict[str, Any]:
    command = [sys.executable, container.__file__, json.dumps(conditions), sys.executable, str(INSIDE), function]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    if done.returncode == container.CANNOT:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


CONDITIONS = {
    "own ipc, 64 MB shm": {},
    "read-only files": {"read_only": True},
    "another user than root": {"uid": NOBODY},
    "refused system calls": {"uid": NOBODY, "refuse": seccomp.CONTAINER},
    "no pidfd and no memfd either": {
        "read_only": True,
        "uid": NOBODY,
        "refuse": (*seccomp.CONTAINER, "pidfd_open", "memfd_create"),
    },
}


STRICTEST = "no pidfd and no memfd either"


@pytest.mark.parametrize(
    "conditions",
    [
        pytest.param(value, id=key, marks=() if key == STRICTEST else pytest.mark.long)
        for key, value in CONDITIONS.items()
    ],
)
def test_deaths_and_mismatches_are_told(conditions: dict[str, Any], request: pytest.FixtureRequest) -> None:
    found = run_inside("death_and_mismatch", **{"read_only": False, **conditions})
    assert found["shm_bytes"] == 64 << 20
    assert found["uid"] == conditions.get("uid", 0)
    if "uid" in conditions:
        assert int(found["capabilities"], 16) == 0
    if conditions.get("read_only"):
        assert not found["writable"]
    assert len(found["lost"]) == 3
    for value in found["lost"]:
        assert value["error"] == "PeerLostError", found
        assert value["named"], found
        assert value["ms"] <= 2000, found
    for value in found["differing"]:
        assert value["error"] == "MismatchError", found
        assert "count=1000," in value["text"]
        assert "count=1001," in value["text"]
    assert found["left"] == []
    worst = max(value["ms"] for value in found["lost"])
    record_figure(f"container: {request.node.callspec.id}", lost_ms=worst)


def test_a_dev_shm_of_one_megabyte() -> None:
    found = run_inside("small_shm", shm="1m", read_only=False)
    assert found["shm_bytes"] == 1 << 20
    assert [value for value in found["memfd"] if "error" not in value or value["error"]] == []
    assert len(found["memfd"]) == len(found["forced"]) == 40
    for value in found["forced"]:
        assert "crash" not in value, value  # SIGBUS would be one
        assert value["error"] == "SharedMemoryError", value
    text = found["forced"][0]["text"]
    numbers = re.findall(r"\d+", text)
    record_figure("small_shm", ran=len(found["memfd"]) // 2, refused=len(found["forced"]) // 2)
    assert len(numbers) >= 2  # needed, free
    assert "/dev/shm" in text
    assert found["left"] == []
