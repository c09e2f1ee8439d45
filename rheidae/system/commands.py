"""What the package's commands share.

Errors are one message and status 2, logging fits a batch log, outputs destroy nothing, and files come before words.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from rheidae.exceptions import ConfigError, OutputError, RheidaeError
from rheidae.system.memory import require_address_space
from rheidae.system.outputs import is_stream
from rheidae.system.signals import Terminated, termination_raises


def on_terminal() -> bool:
    """Whether a person watches: progress bars there, plain lines in a log."""
    return sys.stderr.isatty()


def show(text: str = "") -> None:
    """Print a line for the user, after the files are written.

    Never fails: what the encoding lacks is escaped, a reader that has gone gets nothing more, and what else goes wrong
    is said by `run` at the end.
    """
    global _lost
    if sys.stdout is None:
        return
    try:
        encoding = sys.stdout.encoding or "utf-8"
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            _lost = error
        # What is still in the buffer goes nowhere, instead of failing once more when the interpreter ends.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


_lost: OSError | None = None
"""Why the standard output could not be written."""


def thread_count(text: str) -> int:
    """Type of the option ``--threads``."""
    from rheidae.system.threads import MOST

    count = int(text) if text.isascii() and text.isdigit() and len(text) < 8 else 0
    if not 1 <= count <= MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {MOST}")
    return count


def require_harmless(outputs: Mapping[str, Path | None], inputs: Iterable[Path | None] = ()) -> None:
    """Refuse outputs that would destroy something, before any work is done.

    Raises `OutputError` if one of `outputs`, by the options that name them, is a folder, one of `inputs`, or another
    output. Devices and pipes may stand for any number of outputs.
    """
    taken = {_identity(path): f"is an input ({path})" for path in inputs if path is not None}
    for option, path in outputs.items():
        if path is None or is_stream(path):
            continue
        if path.is_dir():
            raise OutputError(f"{path}: is a folder; name a file ({option})")
        identity = _identity(path)
        if identity in taken:
            raise OutputError(f"{path}: {taken[identity]} and would be overwritten; name another file ({option})")
        taken[identity] = f"is {option} already"


def _identity(path: Path) -> object:
    """The same for two names of one file, hard links included."""
    try:
        status = path.stat()
    except OSError:
        return os.path.realpath(path)
    return status.st_dev, status.st_ino


def _require_environment() -> None:
    """Refuse what makes imports fail, and set what they read; figures go into files, whatever they are shown with."""
    threads = os.environ.get("NUMBA_NUM_THREADS", "")
    if re.fullmatch(r"0+|-\d+", threads):
        raise ConfigError(f"NUMBA_NUM_THREADS={threads} in the environment: must be 1 or more; mend or unset it")
    require_address_space()
    # NumPy is not loaded yet. Its products are small here, and OpenBLAS's threads wait for the next one at full speed.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if "matplotlib" not in sys.modules:
        os.environ["MPLBACKEND"] = "agg"


def run(command: Callable[[], None]) -> int:
    """Run a command's body and return its exit status.

    0 for success; 2 with the message alone for an error that the user can mend (a full disk included); 128 plus
    the signal's number for Ctrl-C (130) and SIGTERM (143). Anything else is a defect and keeps its traceback.
    """
    global _lost
    _lost = None
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    try:
        _require_environment()
        with termination_raises():
            command()
        if _lost is not None:
            raise OutputError(f"standard output: cannot be written ({_lost.strerror}); files are complete")
    except (RheidaeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except UnicodeEncodeError as error:
        if error.encoding != sys.getfilesystemencoding():
            raise
        print(
            f"error: {error.object!r}: this locale has no such file names ({error.encoding}); set PYTHONUTF8=1",
            file=sys.stderr,
        )
        return 2
    except MemoryError as error:
        print(f"error: out of memory ({error}); ask for more, or for smaller chunk_rows or batch_size", file=sys.stderr)
        return 2
    except (RuntimeError, ImportError) as error:
        # What a system without memory says about threads and about libraries.
        if not any(reason in str(error) for reason in ("can't start new thread", "failed to map segment")):
            raise
        print(f"error: out of memory or threads ({error}); ask for more, or use fewer threads", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Terminated as error:
        print(f"stopped by {signal.Signals(error.number).name}", file=sys.stderr)
        return 128 + error.number
    return 0
