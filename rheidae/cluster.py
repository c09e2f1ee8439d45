"""Where blocks of rows are worked on: threads of this process, or the workers of a Dask cluster.

Both run the same function on the same blocks and hand the results back in order, so the outputs are the same.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Protocol, TypeVar

from rheidae.exceptions import ClusterError

Result = TypeVar("Result")

MOST_THREADS = 8
"""More threads than this wait for the disk, and each holds blocks in memory."""


class Workers(Protocol):
    """What runs blocks."""

    remote: bool
    """Whether they are other processes, perhaps on other machines: files are then synced by who wrote them."""

    def run(self, work: Callable[..., Result], blocks: Iterable[tuple[Any, ...]]) -> Iterator[Result]:
        """Yield ``work(*block)`` for each block, in order; only a few blocks are ahead of what was yielded."""

    def __enter__(self) -> Workers: ...

    def __exit__(self, *_: object) -> None: ...


class Threads:
    """Threads of this process: reading, Box3D and writing release the interpreter lock, and so overlap.

    Parameters
    ----------
    count : int, optional
        Default: the processors that the process may use, at most `MOST_THREADS`.
    """

    remote = False

    def __init__(self, count: int | None = None) -> None:
        available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.count = count or min(available, MOST_THREADS)
        self._pool = ThreadPoolExecutor(self.count)

    def __enter__(self) -> Threads:
        return self

    def __exit__(self, *_: object) -> None:
        # Blocks that are under way end first: nobody writes to a file any more when it is removed.
        self._pool.shutdown(wait=True, cancel_futures=True)

    def run(self, work: Callable[..., Result], blocks: Iterable[tuple[Any, ...]]) -> Iterator[Result]:
        """See `Workers.run`."""
        return _in_order(lambda block: self._pool.submit(work, *block), blocks, self.count + 1)


class Cluster:
    """Workers of a Dask ``distributed`` cluster. They have to see the same files under the same absolute paths.

    Parameters
    ----------
    scheduler : str
        ``tcp://host:port`` of a running scheduler, or ``local:N``: N processes on this machine.

    Raises
    ------
    ClusterError
        If `scheduler` is something else, cannot be reached, or ``distributed`` is not installed.
    """

    remote = True
    deaths = 5
    """So many workers may die over one block before it is given up; a scheduler run by someone else has its own."""

    def __init__(self, scheduler: str) -> None:
        kind, _, number = scheduler.partition(":")
        if kind == "local" and not (number.isdigit() and int(number) > 0):
            raise ClusterError(f"--scheduler {scheduler}: local needs a number of processes, such as local:4")
        if kind not in ("local", "tcp", "tls", "ucx"):
            raise ClusterError(f"--scheduler {scheduler}: expected tcp://host:port of a scheduler, or local:N")
        try:
            import dask
            import distributed
        except ImportError as error:
            raise ClusterError(
                f"--scheduler needs the package distributed ({error}): python -m pip install 'rheidae[cluster]'"
            ) from error
        # A cluster that comes and goes as it should is not worth a line each.
        logging.getLogger("distributed").setLevel(logging.WARNING)
        self._stack = ExitStack()
        self._lost: tuple[type[BaseException], ...] = (
            distributed.scheduler.KilledWorker,
            distributed.comm.CommClosedError,
            distributed.client.FutureCancelledError,
        )
        self._stack.enter_context(dask.config.set({"distributed.scheduler.allowed-failures": self.deaths}))
        try:
            address: Any = scheduler
            if kind == "local":
                address = self._stack.enter_context(
                    distributed.LocalCluster(
                        n_workers=int(number), threads_per_worker=1, processes=True, dashboard_address=None
                    )
                )
            self._client = self._stack.enter_context(distributed.Client(address, timeout="30s"))
        except (OSError, ValueError, TimeoutError) as error:
            self._stack.close()
            raise ClusterError(f"--scheduler {scheduler}: cannot be reached ({error}); is it running?") from error

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, work: Callable[..., Result], blocks: Iterable[tuple[Any, ...]]) -> Iterator[Result]:
        """See `Workers.run`."""
        threads = sum(self._client.nthreads().values())
        try:
            yield from _in_order(
                # pure=False: the same block of the same file is another task after the file has changed.
                lambda block: self._client.submit(work, *block, pure=False),
                blocks,
                2 * max(threads, 1),
            )
        except self._lost as error:
            raise ClusterError(
                f"the cluster lost a block for good ({error}): its workers died again and again, most likely for "
                "want of memory; give them more, or set a smaller chunk_rows"
            ) from error


def open_workers(scheduler: str | None, threads: int | None) -> Workers:
    """Return the workers that ``--scheduler`` asks for; threads of this process without it."""
    return Threads(threads) if scheduler is None else Cluster(scheduler)


def _in_order(submit: Callable[[tuple[Any, ...]], Any], blocks: Iterable[tuple[Any, ...]], ahead: int) -> Iterator[Any]:
    pending: deque[Any] = deque()
    try:
        for block in blocks:
            pending.append(submit(block))
            if len(pending) >= ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
