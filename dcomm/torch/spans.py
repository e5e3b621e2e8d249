"""Which parts of a range of addresses are in use: first fit, neighbours that are free become one."""

from __future__ import annotations

from bisect import bisect_left


class Spans:
    """Places in ``range(nbytes)``; what is free, in order.

    First fit keeps what is in use near the beginning, so that the memory behind it stays as small as it can, and the
    same sequence of requests gets the same places in every step of a training.
    """

    def __init__(self, nbytes: int) -> None:
        """All of it is free."""
        self._begins = [0] if nbytes else []
        self._ends = [nbytes] if nbytes else []
        self._lengths: dict[int, int] = {}  # by beginning, of what is in use

    @property
    def used_bytes(self) -> int:
        """How much is in use."""
        return sum(self._lengths.values())

    def take(self, nbytes: int) -> int | None:
        """The beginning of `nbytes` > 0 bytes that are in use now; None: no free part is as large."""
        for index, (begin, end) in enumerate(zip(self._begins, self._ends, strict=True)):
            if end - begin < nbytes:
                continue
            if end - begin == nbytes:
                del self._begins[index], self._ends[index]
            else:
                self._begins[index] = begin + nbytes
            self._lengths[begin] = nbytes
            return begin
        return None

    def give_back(self, begin: int) -> None:
        """What :meth:`take` gave is free again."""
        end = begin + self._lengths.pop(begin)
        index = bisect_left(self._begins, begin)
        if index < len(self._begins) and self._begins[index] == end:
            end = self._ends[index]
            del self._begins[index], self._ends[index]
        if index and self._ends[index - 1] == begin:
            self._ends[index - 1] = end
        else:
            self._begins.insert(index, begin)
            self._ends.insert(index, end)
