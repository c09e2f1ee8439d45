"""Where blocks of rows are worked on: threads of this process, or the workers of a Dask cluster.

Both run the same function on the same blocks and hand the results back in order, so the outputs are the same.
"""

from __future__ import annotations

import asyncio
import logging
import math
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import rheidae
from rheidae.exceptions import ClusterError

log = logging.getLogger(__name__)

Result = TypeVar("Result")

CONNECT_SECONDS = 30
"""How long to wait for a scheduler to answer."""

SILENT_SECONDS = 60.0
"""After so long without a result it is worth a line that there are no workers."""

MOST_THREADS = 8
"""More threads than this wait for the disk, and each holds blocks in memory."""


def no_processes() -> str | None:
    """Why this machine cannot divide work among processes, if it cannot: in containers, most often."""
    try:
        multiprocessing.Semaphore()
    except (OSError, ImportError) as error:
        return f"no shared memory ({error}): see to /dev/shm"
    return None


class Threads(ExitStack):
    """Threads of this process: reading, Box3D and writing release the interpreter lock, and so overlap.

    Without a `count`, the processors that the process may use, at most `MOST_THREADS`.
    """

    remote = False
    """Whether other processes work, perhaps on other machines: files are then synced by who wrote them."""

    def __init__(self, count: int | None = None) -> None:
        super().__init__()
        available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.count = count or min(available, MOST_THREADS)
        self._pool = ThreadPoolExecutor(self.count)
        # Blocks that are under way end first: they hold files open. One that is gone they do not make again.
        self.callback(self._pool.shutdown, wait=True, cancel_futures=True)

    def run(self, work: Callable[..., Result], blocks: Iterable[tuple[Any, ...]]) -> Iterator[Result]:
        """Yield ``work(*block)`` for each block, in order; only a few blocks are ahead of what was yielded."""
        return _in_order(lambda block: self._pool.submit(work, *block), Future.result, blocks, lambda: self.count + 1)

    def require(self, paths: Sequence[Path]) -> None:
        """Raise `ClusterError` if a worker does not see these files as this process does: threads do."""


class Cluster(ExitStack):
    """Workers of a Dask ``distributed`` cluster. They have to see the same files under the same absolute paths.

    `scheduler` is ``tcp://host:port`` of a running one, or ``local:N``: N processes on this machine. Raises
    `ClusterError` if it is something else, cannot be reached, or ``distributed`` is not installed.
    """

    remote = True
    deaths = 5
    """So many workers may die over one block before it is given up; a scheduler run by someone else has its own."""

    def __init__(self, scheduler: str) -> None:
        super().__init__()
        kind, _, number = scheduler.partition(":")
        if kind == "local" and not (number.isdigit() and int(number) > 0):
            raise ClusterError(f"--scheduler {scheduler}: local needs a number of processes, such as local:4")
        if kind == "local" and (fault := no_processes()):
            raise ClusterError(f"--scheduler {scheduler}: {fault}, or leave it out")
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
        # Its traceback when the scheduler is lost; `_gone` says it.
        logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
        self._died = distributed.scheduler.KilledWorker
        # Not the built-in one before Python 3.11.
        self._timed_out = distributed.TimeoutError
        self._lost: tuple[type[BaseException], ...] = (
            distributed.comm.CommClosedError,
            distributed.client.FutureCancelledError,
        )
        self._scheduler = scheduler
        self._threads, self._asked = 0, -math.inf
        self.enter_context(dask.config.set({"distributed.scheduler.allowed-failures": self.deaths}))
        try:
            address: Any = scheduler
            if kind == "local":
                address = self.enter_context(
                    distributed.LocalCluster(
                        n_workers=int(number),
                        threads_per_worker=1,
                        processes=True,
                        dashboard_address="127.0.0.1:0",
                        preload="rheidae.system.signals",
                    )
                )
            else:
                _require_answer(scheduler)
            self._client = self.enter_context(distributed.Client(address, timeout=CONNECT_SECONDS))
        except (OSError, ValueError, self._timed_out) as error:
            self.close()
            why = str(error) or f"no answer within {CONNECT_SECONDS} s"
            raise ClusterError(f"--scheduler {scheduler}: cannot be reached ({why}); is it running?") from error

    def run(self, work: Callable[..., Result], blocks: Iterable[tuple[Any, ...]]) -> Iterator[Result]:
        """As of `Threads`."""
        try:
            # pure=False: the same block of the same file is another task after the file has changed.
            yield from _in_order(
                lambda block: self._client.submit(work, *block, pure=False), self._result, blocks, self._ahead
            )
        except self._died as error:
            raise ClusterError(
                f"the cluster lost a block for good ({error}): its workers died again and again, most likely for "
                "want of memory; give them more, or set a smaller chunk_rows"
            ) from error
        except self._lost as error:
            raise self._gone() from error
        except FileNotFoundError as error:
            raise ClusterError(f"a worker {_unseen(str(error.filename))}") from error

    def require(self, paths: Sequence[Path]) -> None:
        """As of `Threads`. Waits for the first worker; those that join later are not asked."""
        if not self._count_threads():
            log.info("%s: no workers yet; waiting for them", self._scheduler)
        sizes = {os.path.abspath(path): path.stat().st_size for path in paths}
        try:
            self._client.wait_for_workers(1)
            answers = self._client.run(_greet, rheidae.__version__, sizes)
        except ImportError as error:
            raise ClusterError(f"a worker cannot import what it needs ({error}); install rheidae there") from error
        except self._lost as error:
            raise self._gone() from error
        for worker, trouble in answers.items():
            if trouble:
                raise ClusterError(f"worker {worker} {trouble}")

    def _gone(self) -> ClusterError:
        return ClusterError(
            f"{self._scheduler}: the connection to the scheduler is lost; start it again, then run again: what is "
            "complete stays"
        )

    def _count_threads(self) -> int:
        """Threads of all workers, asked for at most once a second."""
        if time.monotonic() - self._asked > 1.0:
            try:
                self._threads = sum(self._client.nthreads().values())
            except (OSError, ValueError, self._timed_out) as error:
                raise self._gone() from error
            self._asked = time.monotonic()
        return self._threads

    def _ahead(self) -> int:
        """So many blocks that no worker waits for the next one, also if some have just joined."""
        return max(2 * self._count_threads(), 4)

    def _result(self, future: Any) -> Any:
        while True:
            try:
                return future.result(timeout=SILENT_SECONDS)
            except self._timed_out:
                if future.done():  # just now, or by an error of that kind
                    return future.result()
                if not self._count_threads():
                    log.warning("%s: no worker is left; waiting for one", self._scheduler)


def _require_answer(address: str) -> None:
    """Raise if no scheduler answers: `distributed.Client` would wait for ever where another program holds the port."""
    import distributed

    async def greet() -> None:
        options = distributed.Security().get_connection_args("client")
        try:
            comm = await distributed.comm.connect(address, timeout=CONNECT_SECONDS, **options)
        except MemoryError as error:  # it takes the greeting of another program for the length of a message
            raise OSError("what answers there is no Dask scheduler") from error
        comm.abort()

    # A thread of its own, since a notebook runs an event loop in this one.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, asyncio.wait_for(greet(), CONNECT_SECONDS)).result()


def _greet(version: str, sizes: dict[str, int]) -> str | None:
    """What keeps this worker from the work; runs there."""
    if rheidae.__version__ != version:
        return f"has rheidae {rheidae.__version__} and not {version}; install the same version there"
    for path, size in sizes.items():
        try:
            if os.path.getsize(path) == size:
                continue
        except OSError:
            pass
        return _unseen(path)
    return None


def _unseen(path: str) -> str:
    return f"does not see {path}; workers need the same files under the same paths, on a file system that all share"


Workers = Threads | Cluster


def open_workers(scheduler: str | None, threads: int | None) -> Workers:
    """Return the workers that ``--scheduler`` asks for; threads of this process without it."""
    return Threads(threads) if scheduler is None else Cluster(scheduler)


def _in_order(
    submit: Callable[[tuple[Any, ...]], Any],
    result: Callable[[Any], Result],
    blocks: Iterable[tuple[Any, ...]],
    ahead: Callable[[], int],
) -> Iterator[Result]:
    pending: deque[Any] = deque()
    try:
        for block in blocks:
            pending.append(submit(block))
            if len(pending) >= ahead():
                yield result(pending.popleft())
        while pending:
            yield result(pending.popleft())
    finally:
        for future in pending:
            future.cancel()
