"""What the package's commands share: errors as one message and status 2, logging that fits a batch log."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable

from rheidae.exceptions import RheidaeError
from rheidae.system.signals import Terminated, termination_raises


def on_terminal() -> bool:
    """Whether a person watches: progress bars there, plain lines in a log."""
    return sys.stderr.isatty()


def run(command: Callable[[], None]) -> int:
    """Run a command's body and return its exit status.

    0 for success; 2 with the message alone for an error that the user can mend (a full disk included); 128 plus
    the signal's number for Ctrl-C (130) and SIGTERM (143). Anything else is a defect and keeps its traceback.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    try:
        with termination_raises():
            command()
    except (RheidaeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"error: out of memory ({error}); ask for more, or for smaller chunk_rows or batch_size", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Terminated as error:
        print(f"stopped by {signal.Signals(error.number).name}", file=sys.stderr)
        return 128 + error.number
    return 0
