"""What the package's commands share: errors as one message and status 2, logging that fits a batch log."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rheidae.exceptions import RheidaeError


def on_terminal() -> bool:
    """Whether a person watches: progress bars there, plain lines in a log."""
    return sys.stderr.isatty()


class Terminated(BaseException):
    """A batch system, or someone, asked the process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def _termination_raises() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the program as Ctrl-C does, so that temporary files are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        # Once: a second one must not interrupt the cleaning up.
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise Terminated(number)

    numbers = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    # One that is ignored stays ignored: nohup relies on it.
    numbers = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(command: Callable[[], None]) -> int:
    """Run a command's body and return its exit status.

    0 for success; 2 with the message alone for an error that the user can mend (a full disk included); 128 plus
    the signal's number for Ctrl-C (130) and SIGTERM (143). Anything else is a defect and keeps its traceback.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    try:
        with _termination_raises():
            command()
    except (RheidaeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Terminated as error:
        print(f"stopped by {signal.Signals(error.number).name}", file=sys.stderr)
        return 128 + error.number
    return 0
