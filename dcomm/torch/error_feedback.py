"""Keeps what a narrow wire rounds away, and adds it to the next step's gradients.

    y = g + e            what this rank wants to say: its gradient and what it still owes
    q = n Q(y / n)       what the others hear: the wire divides by n before it rounds (Q)
    e' = y - q           owed from now on; committed in finish(), if the step's gradients are finite

Summed over steps, what was applied and what is still owed are the true gradients: small terms are late, not lost. A
wire rounds twice, each rank's part here and the mean of all at its owner. The second rounding is relative to the mean
itself, the same on all ranks, and not kept. Algorithms that round partial sums (ring, tree) have no such e: one_shot
and two_shot only.
Source: Seide et al. 2014 (1-bit SGD); Karimireddy et al. 2019 (arXiv 1901.09847).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from dcomm.arrays import FP8_CODES
from dcomm.rounding import quantize
from dcomm.torch.buckets import GradientBucket, GradientBuckets

_CASTS = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def wire_round_trip(x: torch.Tensor, wire_dtype: str, divisor: int = 1) -> torch.Tensor:
    """What the others hear of `x`, bit for bit: divided, rounded to the wire's dtype, and back in float32.

    Args:
        x: (count,) float32, a whole message.
        wire_dtype: "float16" or "bfloat16"; on the CPU also "fp8_block32" or "fp8_block128".
        divisor: The number of ranks for an average, 1 for a sum. A true division in float32, before the rounding.

    Returns:
        (count,) float32, new memory. inf where a value is beyond the wire's range.

    Raises:
        ValueError: Another wire.
    """
    if wire_dtype in FP8_CODES and x.device.type == "cpu":
        rounded: torch.Tensor = quantize(x, wire_dtype, divisor=divisor)
        return rounded
    if wire_dtype not in _CASTS:
        raise ValueError(f"wire_dtype={wire_dtype!r}: expected one of {', '.join(_CASTS)}, fp8 on the CPU only")
    scaled = x if divisor == 1 else x / divisor
    return scaled.to(_CASTS[wire_dtype]).to(torch.float32)


class ErrorFeedback:
    """The residuals of one rank, one float32 number for each element of the window, in unscaled units.

    Two numbers, in fact: `owed` holds until the step that is being made has been found good, `next` is what that step
    leaves. A step that is dropped leaves `owed` as it was.
    """

    def __init__(self, buckets: GradientBuckets, wire_dtype: str, divisor: int, scale: Callable[[], float]) -> None:
        """scale: what the gradients of a step are multiplied by, a GradScaler's scale, which changes between steps."""
        self._wire_dtype = wire_dtype
        self._divisor = divisor
        self._read_scale = scale
        self._may_wait = buckets.device.type == "cpu"  # the host never waits for a GPU here
        self._scale: float | None = None  # of this step, when a bucket has been encoded
        self._buckets = buckets
        self._owed = _zeros(buckets)
        self._next = _zeros(buckets)

    def use(self, buckets: GradientBuckets) -> None:
        """The gradients lie elsewhere from now on: what is owed moves, parameter by parameter."""
        owed = _zeros(buckets)
        for index in range(len(buckets.views)):
            if buckets.views[index].dtype is torch.float32:
                buckets.view_in(owed, index).copy_(self._buckets.view_in(self._owed, index))
        self._buckets, self._owed, self._next = buckets, owed, owed.clone()

    def encode(self, bucket: GradientBucket) -> None:
        """Add what is owed to a bucket of float32 that is about to be sent, and find out what it will owe.

        Again in one step, for a bucket that is reduced once more: from what it owes by now.
        """
        if self._scale is None:
            self._scale = float(self._read_scale())
        owed = bucket.part_of(self._next)
        if self._scale == 1.0:
            bucket.buffer.add_(owed)
        else:
            bucket.buffer.add_(owed, alpha=self._scale)
        heard = wire_round_trip(bucket.buffer, self._wire_dtype, self._divisor)
        torch.sub(bucket.buffer, heard, alpha=self._divisor, out=owed)
        if self._scale != 1.0:
            owed.div_(self._scale)

    def take_back(self, index: int) -> None:
        """What was sent for parameter `index` in this step was dropped, or nobody has a gradient for it."""
        if self._buckets.views[index].dtype is torch.float32:
            self._buckets.view_in(self._next, index).copy_(self._buckets.view_in(self._owed, index))

    def end_step(self) -> None:
        """Commit what the step leaves; if a result holds inf or NaN, which makes a GradScaler skip it, what was before.

        The results are the same on all ranks, so these decide alike. No rank's inf can hide: the wire carries it.
        """
        self._scale = None
        good = _all_finite([bucket.buffer for bucket in self._buckets.buckets])
        if not self._may_wait:
            torch.where(good, self._next, self._owed, out=self._owed)
            self._next.copy_(self._owed)
            return
        kept, spare = (self._next, self._owed) if good else (self._owed, self._next)
        spare.copy_(kept)
        self._owed, self._next = kept, spare

    def residuals(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """Copies of what is owed, by parameter name, in its shape."""
        views = self._buckets.views
        numbers = [index for index in range(len(views)) if views[index].dtype is torch.float32]
        return {names[index]: self._buckets.view_in(self._owed, index).clone() for index in numbers}

    def problem_of(self, names: Sequence[str], residuals: Any) -> str:
        """Why :meth:`restore` cannot take them; "": it can."""
        expected = self.residuals(names)
        theirs = residuals.keys() if isinstance(residuals, dict) else set()
        if theirs != expected.keys():
            differing = ", ".join(sorted(map(repr, theirs ^ expected.keys()))[:3])
            return (
                f"residuals: expected those of the {len(expected)} float32 parameters of this model, one side lacks "
                f"{differing}; load the state of the same model"
            )
        for name, found in residuals.items():
            shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            if shape != tuple(expected[name].shape):
                return f"residual of {name!r} is {shape}: expected {tuple(expected[name].shape)}; load the same model's"
        return ""

    def restore(self, names: Sequence[str], residuals: dict[str, torch.Tensor] | None) -> None:
        """Owe what :meth:`residuals` returned; None: nothing."""
        self._owed.zero_()
        for index, name in enumerate(names):
            if residuals is not None and name in residuals:
                self._buckets.view_in(self._owed, index).copy_(residuals[name])
        self._next.copy_(self._owed)


def _zeros(buckets: GradientBuckets) -> torch.Tensor:
    return torch.zeros(buckets.nbytes // 4, dtype=torch.float32, device=buckets.device)


def _all_finite(buffers: Sequence[torch.Tensor]) -> torch.Tensor:
    """(), bool. By least and largest element, a single pass; NaN would be both."""
    found = torch.ones((), dtype=torch.bool, device=buffers[0].device)
    for buffer in buffers:
        if buffer.numel():
            least, largest = torch.aminmax(torch.view_as_real(buffer) if buffer.is_complex() else buffer)
            found &= least.isfinite() & largest.isfinite()
    return found
