"""The least time of an all-reduce on one GPU."""

from __future__ import annotations


def floor_us(world_size: int, nbytes: int, copy_bytes_per_second: float) -> float:
    """Of an all-reduce on one GPU: each rank's input is read once, each output written once.

    Args:
        world_size: Ranks on the GPU.
        nbytes: Of one rank's array.
        copy_bytes_per_second: Read and written, of a large device copy. A message that fits in L2 can be faster.
    """
    return 2 * world_size * nbytes / copy_bytes_per_second * 1e6
