"""How many threads a process uses, so that several processes do not crowd each other out.

Searches run a model per process. Threads that each of them starts on top of that make all of them slower: the networks
here are too small to be divided.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

MOST = 1024
"""Threads that may be asked for: torch crashes where the system has no more."""

# Below this a thread costs more to hand its rows to than it saves.
_ROWS_PER_THREAD = 1024


_forked = False
_turn = threading.RLock()


def _in_child() -> None:
    global _forked, _turn
    _forked = True
    _turn = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


@contextmanager
def taking_turns() -> Iterator[None]:
    """Let one thread of the process at a time do what draws from torch's global generator, for seeds to hold."""
    with _turn:
        yield


@contextmanager
def limited(count: int | None) -> Iterator[None]:
    """Give torch and Numba this many threads for a while; None leaves them as they are.

    One in a process that another one has forked: the threads of torch's OpenMP do not come along, and the first
    operation that waits for them would wait for ever.

    Raises
    ------
    ValueError
        If `count` is not from 1 to `MOST`.
    """
    if count is not None and not 1 <= count <= MOST:
        raise ValueError(
            f"threads={count!r} must be at least 1 and at most {MOST}, or None for what torch and Numba have"
        )
    if _forked:
        count = 1
    if count is None:
        yield
        return
    import numba
    import torch

    before = torch.get_num_threads(), numba.get_num_threads()
    wanted = count, min(count, numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    if before == wanted:  # setting them takes a tenth of the prediction of a row
        yield
        return
    torch.set_num_threads(wanted[0])
    numba.set_num_threads(wanted[1])
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


def share_rows(work: Callable[[int, int], None], rows: int, threads: int | None) -> None:
    """Call ``work(start, stop)`` so that all `rows` are covered, from as many threads as pay off.

    A pool of Python threads around kernels that release the interpreter lock, and not ``prange``: Numba's own threads
    do not survive a fork, and its parallel kernels take seconds to load.

    Raises
    ------
    ValueError
        If `threads` is not from 1 to `MOST`, or None for `default_threads`.
    """
    if threads is not None and not 1 <= threads <= MOST:
        raise ValueError(f"threads={threads!r} must be at least 1 and at most {MOST}")
    count = max(1, rows // _ROWS_PER_THREAD)
    if count > 1:
        count = min(threads or default_threads(), count)
    if count == 1:
        work(0, rows)
        return
    bounds = [rows * i // count for i in range(count + 1)]
    with ThreadPoolExecutor(count) as pool:
        # list() so that an exception in a thread is raised here.
        list(pool.map(work, bounds[:-1], bounds[1:]))
