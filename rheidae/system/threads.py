"""How many threads a process uses, so that several processes do not crowd each other out.

Searches run a model per process. Threads that each of them starts on top of that make all of them slower: the networks
here are too small to be divided.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def limited(count: int | None) -> Iterator[None]:
    """Give torch and Numba this many threads for a while; None leaves them as they are.

    Torch's number is the whole process's, Numba's the calling thread's.

    Raises
    ------
    ValueError
        If `count` is not at least 1.
    """
    if count is None:
        yield
        return
    if count < 1:
        raise ValueError(f"threads={count!r} must be at least 1, or None for the numbers that torch and Numba have")
    import numba
    import torch

    before = torch.get_num_threads(), numba.get_num_threads()
    torch.set_num_threads(count)
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        numba.set_num_threads(before[1])


def default_threads() -> int:
    """Threads that the analytic schemes share rows among if nobody says how many.

    Numba's number; but one in a process that another one has started for work, as joblib, Dask and torch do: there is
    one for every processor already. ``NUMBA_NUM_THREADS`` in the environment, which joblib sets for its own, decides
    first.
    """
    import numba

    if multiprocessing.parent_process() is not None and "NUMBA_NUM_THREADS" not in os.environ:
        return 1
    return numba.get_num_threads()
