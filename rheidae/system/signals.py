"""Signals that ask the process to end: they unwind the program, but not in the middle of a step that must be whole."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
_ALL = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]


class Terminated(BaseException):
    """A batch system, or someone, asked the process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def termination_raises() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the program as Ctrl-C does, so that temporary files are removed."""
    # One that is ignored stays ignored: nohup relies on it.
    wanted = [number for number in _handled() if number != signal.SIGINT]

    def stop(number: int, frame: Any) -> None:
        # Once: a second one must not interrupt the cleaning up.
        for each in wanted:
            signal.signal(each, signal.SIG_IGN)
        raise Terminated(number)

    with handlers(dict.fromkeys(wanted, stop)):
        yield


def dask_setup(worker: object) -> None:
    """Leave Ctrl-C, and messages, to the command; Dask calls this in the processes of ``--scheduler local:N``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A heartbeat that finds the scheduler gone prints a traceback. What goes wrong in the work reaches the command.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold signals back until the block ends; for short blocks.

    HDF5 calls Python to write, and an exception that a signal raises there breaks the file in HDF5's memory.
    """
    caught: list[int] = []
    try:
        with handlers({number: lambda number, frame: caught.append(number) for number in _handled()}):
            yield
    finally:
        if caught:
            signal.raise_signal(caught[0])


def _handled() -> list[int]:
    """Signals that this thread may handle, and that are not ignored or in the hands of other code."""
    if threading.current_thread() is not threading.main_thread():
        return []
    return [number for number in _ALL if signal.getsignal(number) not in (signal.SIG_IGN, None)]


@contextmanager
def handlers(handlers: dict[int, Any]) -> Iterator[None]:
    """Handle signals so until the block ends."""
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
