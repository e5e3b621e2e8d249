"""DDP's buckets are registered and reduced where they lie; what happens when they move or go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from rank_processes import process_values, run_processes  # noqa: E402

import dcomm.torch  # noqa: E402
from dcomm.torch.bucket_memory import BucketMemory  # noqa: E402

SCRIPT = Path(__file__).with_name("bucket_memory_ranks.py")
ENV = {"GLOO_SOCKET_IFNAME": "lo"}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "beside backward": ({}, {}),
    "inline, bucket views": ({"overlap": False}, {"gradient_as_bucket_view": True}),
}


def train(folder: Path, settings: dict[str, Any], ddp: dict[str, Any]) -> list[Any]:
    return process_values(2, SCRIPT, "train", {"folder": str(folder), "settings": settings, "ddp": ddp}, env=ENV)


@pytest.mark.parametrize("name", ["beside backward", pytest.param("inline, bucket views", marks=pytest.mark.long)])
def test_buckets_are_reduced_where_ddp_keeps_them(name: str, tmp_path: Path) -> None:
    for value in train(tmp_path, *CASES[name]):
        print(value)
        assert value["bitwise"]
        assert value["shared"]
        # Through slots each rank sends its half of the terms and of the results; in place the results alone.
        assert value["sent"][-1] < 0.6 * value["sent"][0]
        assert value["private_after"]
        assert value["kept"]


@pytest.mark.long
def test_unregistered_buckets_stay_private(tmp_path: Path) -> None:
    for value in train(tmp_path, {"register_buckets": False, "overlap": False}, {}):
        assert value["bitwise"]
        assert not value["shared"]
        assert value["sent"][-1] == value["sent"][1]


@pytest.mark.long
def test_a_bucket_that_moves_or_grows(tmp_path: Path) -> None:
    results = run_processes(2, SCRIPT, "move", {"folder": str(tmp_path), "count": 50_000}, env=ENV)
    for result in results:
        assert result.returncode == 0, result
        assert result.value == {"wrong": 0, "was_shared": True, "first": False, "longer": True}
    notice = "DDP moved a registered bucket"
    assert [result.err.count(notice) for result in results] == [1, 0]


class Refusing:
    """A communicator whose ranks all refuse to register, as they do when one of them cannot."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.calls = 0

    def register(self, tensor: Any) -> Any:
        self.calls += 1
        raise self.error


@pytest.mark.parametrize("error", [ValueError("x is pinned"), dcomm.SharedMemoryError("no memory")])
def test_buckets_that_cannot_be_registered_are_reduced_all_the_same(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    comm = Refusing(error)
    memory = BucketMemory(comm)  # type: ignore[arg-type]
    bucket = torch.zeros(10)
    assert all(memory.place_of(index, bucket) is bucket for _ in range(6) for index in range(2))
    assert comm.calls == 2  # once for each bucket
    assert [record.getMessage() for record in caplog.records] == [
        f"dcomm: buckets are copied through the window: {error}"
    ]
    memory.close()


def test_a_lost_peer_is_not_taken_for_a_refusal() -> None:
    memory = BucketMemory(Refusing(dcomm.PeerLostError("rank 1 died")))  # type: ignore[arg-type]
    bucket = torch.zeros(10)
    assert memory.place_of(0, bucket) is memory.place_of(0, bucket)
    with pytest.raises(dcomm.PeerLostError):
        memory.place_of(0, bucket)


@pytest.mark.parametrize("name", ["overlap", "register_buckets", "reuse_gradients"])
def test_flags_are_checked(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name}=1: expected True or False"):
        dcomm.torch.HookState(**{name: 1})
