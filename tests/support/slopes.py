"""Whether something grows: a straight line through samples, and how well it is known."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

NUM_BLOCKS = 12
T_95 = 2.228  # Student's t, two-sided 95%, NUM_BLOCKS - 2 degrees of freedom


class Slope(NamedTuple):
    per_hour: float
    half_width: float  # of the 95% interval
    hours: float  # between the first and the last sample

    @property
    def least(self) -> float:
        return self.per_hour - self.half_width

    @property
    def most(self) -> float:
        return self.per_hour + self.half_width


def slope(seconds: ArrayLike, values: ArrayLike) -> Slope:
    """By least squares over the means of NUM_BLOCKS stretches: neighbouring samples are no independent ones."""
    hours = np.asarray(seconds, float) / 3600
    blocks = [
        (float(np.mean(x)), float(np.mean(y)))
        for x, y in zip(
            np.array_split(hours, NUM_BLOCKS), np.array_split(np.asarray(values, float), NUM_BLOCKS), strict=True
        )
        if len(x)
    ]
    if len(blocks) < NUM_BLOCKS:
        raise ValueError(f"got {len(hours)} samples: expected at least {NUM_BLOCKS}")
    x, y = np.array(blocks).T
    centred = x - x.mean()
    per_hour = float(centred @ y / (centred @ centred))
    rest = y - y.mean() - per_hour * centred
    error = float(np.sqrt(rest @ rest / (NUM_BLOCKS - 2) / (centred @ centred)))
    return Slope(per_hour, T_95 * error, float(hours[-1] - hours[0]))
