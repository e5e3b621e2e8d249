"""Sums whose bits do not depend on how many ranks share the work: a binary counter over microbatches.

      microbatch       0      1      2      3      4       add equal levels, older + newer, as a counter carries
      level 0         [0]      .    [2]      .    [4]
      level 1                [01]   [01]     .     .
      level 2                              [0123] [0123]

At the end the levels left are added from the lowest up, older + newer. That is the canonical tree over microbatches:
[lo, hi) splits at lo + the largest power of two below its length, as the ranks' sums do in one_shot and two_shot
(csrc/schedule/canonical.h). With k = 2^m microbatches on each of n ranks, the tree over ranks on top of their own trees
IS the canonical tree over all n * k microbatches, for every n; so is one rank alone with any k. A parameter without
gradient in a microbatch is an absent term: the other side of its addition passes unchanged, on one rank or many.

Memory: while microbatch k is computed, one tensor for each one-bit of k: at most ceil(log2 k) + 1 with the fresh
gradient. The oldest of them lies where the result will.
Source of the idea: pairwise summation (Higham 1993); TBIK (arXiv 2511.17826) and EasyScale for training.
"""

from __future__ import annotations

import torch

Sum = tuple[torch.Tensor, bool]  # a partial sum, and whether its memory is the counter's own


class BinaryCounter:
    """The gradient of one parameter, summed over the microbatches of a step in the canonical order."""

    def __init__(self, home: torch.Tensor) -> None:
        """home: where the result is wanted; its dtype is that of the sums."""
        self._home = home
        self._levels: list[Sum | None] = []  # sums of 2^level microbatches; None: no such sum, or absent
        self.num_terms = 0  # microbatches so far
        self.num_held = 0  # partial sums

    def add(self, term: torch.Tensor | None) -> None:
        """Microbatch number `num_terms` is `term`; None: it has no gradient. `term` may be kept: do not change it."""
        carry = None if term is None else self._keep(term)
        level = 0
        while self.num_terms >> level & 1:
            carry = self._merge(self._levels[level], carry)
            self._levels[level] = None
            level += 1
        if level == len(self._levels):
            self._levels.append(None)
        self._levels[level] = carry
        self.num_terms += 1

    def result(self) -> bool:
        """Add up what is left into `home` and start over; False, and -0.0 everywhere, when there was no gradient.

        -0.0 and not 0.0: it is the number that, added to any other, leaves its bits alone.
        """
        total: Sum | None = None
        for older in self._levels:
            total = self._merge(older, total)
        if total is None:
            self._home.fill_(complex(-0.0, -0.0) if self._home.is_complex() else -0.0)
        elif total[0] is not self._home:
            self._home.copy_(total[0])
        self._levels.clear()
        self.num_terms = self.num_held = 0
        return total is not None

    def _keep(self, term: torch.Tensor) -> Sum:
        """The term in the sums' dtype; the first one at home, so that the sums it becomes part of stay there."""
        self.num_held += 1
        if self.num_terms == 0 and term is not self._home:
            return self._home.copy_(term), True
        kept = term.to(self._home.dtype)
        # Backward may give two parameters gradients that share memory, so a term itself is never written.
        return kept, kept is self._home or kept is not term

    def _merge(self, older: Sum | None, newer: Sum | None) -> Sum | None:
        if older is None or newer is None:
            return newer if older is None else older
        self.num_held -= 1
        if older[1]:
            return older[0].add_(newer[0]), True
        return torch.add(older[0], newer[0]), True
