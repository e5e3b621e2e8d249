"""All-reduce of sparse tensors on the "dcomm" backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from rank_processes import process_values  # noqa: E402

SCRIPT = Path(__file__).with_name("sparse_ranks.py")


def run(world_size: int, function: str, folder: Path, **args: Any) -> list[Any]:
    return process_values(world_size, SCRIPT, function, {"folder": str(folder), **args}, timeout=110)


def test_sums(tmp_path: Path) -> None:
    assert run(3, "sums", tmp_path) == [[]] * 3


@pytest.mark.long
def test_ddp_of_a_sparse_embedding(tmp_path: Path) -> None:
    found = run(2, "embedding", tmp_path)
    assert found[0]["dcomm"] == found[1]["dcomm"]
    for ours, theirs in zip(found[0]["dcomm"], found[0]["gloo"], strict=True):
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs))


@pytest.mark.long
def test_refused(tmp_path: Path) -> None:
    for rank, told in enumerate(run(2, "refused", tmp_path)):
        assert "expected SUM" in told["op"]
        assert f"rank {1 - rank} has shape {(4 - rank,) * 2}" in told["shape"]
        assert f"with {2 - rank} sparse dimensions" in told["sparse_dim"]
        assert "sparse_csr" in told["layout"]
        assert told["after"] == 2.0
