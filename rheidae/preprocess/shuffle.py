"""The order of shuffled rows, computed from the seed row by row: nothing has to be stored.

Row ``i`` gets the 64-bit key ``mix(mix(i + a) ^ b)``, with ``a`` and ``b`` drawn from the seed and ``mix`` the
finalizer of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014, doi:10.1145/2660193.2660195), which maps 64-bit numbers one
to one. The rows in ascending order of their keys are the permutation. It depends on the seed and the number of rows
alone; and since the leading bits of a key say about where its row goes, a file of any length is shuffled in two
sequential passes: scatter the rows into buckets of neighbouring keys, then sort each bucket in memory.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]


def _mix(z: Keys) -> Keys:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def keys(rows: NDArray[np.uint64], seed: int) -> Keys:
    """Sorting keys of rows, all different as their numbers are; `seed` is not negative, of any size."""
    a, b = np.random.SeedSequence(seed).generate_state(2, np.uint64)
    return _mix(_mix(rows + a) ^ b)


def buckets(key: Keys, count: int) -> NDArray[np.int64]:
    """Return the bucket, 0 to ``count - 1``, of each key: equal parts of the range of keys, in ascending order."""
    return (((key >> np.uint64(32)) * np.uint64(count)) >> np.uint64(32)).astype(np.int64)


def bucket_sizes(rows: int, seed: int, count: int, block: int = 1 << 20) -> NDArray[np.int64]:
    """How many of the rows ``0 .. rows - 1`` fall into each bucket; `block` rows in memory at a time."""
    sizes = np.zeros(count, dtype=np.int64)
    for start in range(0, rows, block):
        part = np.arange(start, min(start + block, rows), dtype=np.uint64)
        sizes += np.bincount(buckets(keys(part, seed), count), minlength=count)
    return sizes
