"""Output files: complete under their names or not there, one writer a folder, leftovers removed, space asked for."""

from __future__ import annotations

import errno
import glob
import itertools
import math
import os
import re
import shutil
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rheidae.exceptions import OutputError
from rheidae.system.signals import uninterrupted

try:
    import fcntl
except ImportError:  # pragma: no cover - no such locks outside Unix: names alone keep two runs apart
    fcntl = None  # type: ignore[assignment]

_HOST = re.sub(r"[^\w.]", "_", socket.gethostname()) or "localhost"
_TEMPORARY = re.compile(r"^\..+\.(?P<host>[\w.]+)-(?P<pid>\d+)-\d+\.tmp$")
_LOCK_NAME = ".rheidae.lock"
_serial = itertools.count()
_OWN = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
"""For files that nobody but this module makes: a link or a pipe of that name leads elsewhere."""


class Outputs:
    """Output files that appear under their names together, when all of them are complete.

    Each is written under a temporary name in its own folder. Leaving the ``with`` block without an error
    syncs and renames all of them; an error removes them and leaves what was there before. What a killed process
    left behind is removed by the next one that writes the same file.

    Links are followed. What is no file, such as a pipe or ``/dev/null``, and what the process prints to, gets the
    finished bytes and stays what it is.

    Raises `OutputError` if the disk is full, of which `needed` bytes were to be written, or a file cannot be written
    for another reason that its name is part of.
    """

    def __init__(self, needed: int = 0) -> None:
        self._needed = needed
        self._pending: list[tuple[Path, Path]] = []
        self._streams: list[tuple[Path, Path]] = []
        self._locks: list[int] = []

    def __enter__(self) -> Outputs:
        return self

    def path(self, target: str | Path) -> Path:
        """Return the temporary path under which the file `target` is to be written; it exists and is empty."""
        target = Path(target)
        if target.is_dir():
            raise OutputError(f"{target}: is a folder; name a file")
        try:
            if is_stream(target):
                beside = Path(tempfile.gettempdir(), target.name)
            else:
                target = beside = Path(os.path.realpath(target))
                make_folder(target.parent)
            remove_stale(beside.parent, beside.name)
            temporary = _temporary(beside)
            (self._pending if target == beside else self._streams).append((temporary, target))
            self._locks.append(_open_locked(temporary))
        except OSError as error:
            raise not_written(target, error, self._needed) from error
        return temporary

    def write(self, target: str | Path, content: bytes) -> None:
        """Write a whole file."""
        temporary = self.path(target)
        with naming(target, len(content)):
            temporary.write_bytes(content)

    def scratch(self, target: str | Path) -> Path:
        """Return a temporary path beside `target` for a file that goes away when the block ends."""
        temporary = self.path(target)
        self._pending[-1] = (temporary, temporary)
        return temporary

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.sync()
                with uninterrupted():
                    self.unlock()
                    for target, temporary in self.targets.items():
                        os.replace(temporary, target)
                for folder in {target.parent for target in self.targets}:
                    sync(folder)
                for temporary, target in self._streams:
                    _pour(temporary, target)
        finally:
            with uninterrupted():
                for temporary, _target in (*self._pending, *self._streams):
                    temporary.unlink(missing_ok=True)
                self.unlock()

    @property
    def targets(self) -> dict[Path, Path]:
        """Temporary path by final path."""
        return {target: temporary for temporary, target in self._pending if temporary != target}

    def sync(self) -> None:
        """Wait until what was written so far is on the disk."""
        for target, temporary in self.targets.items():
            try:
                sync(temporary)
            except OSError as error:
                there = temporary.stat().st_size if temporary.exists() else 0
                raise not_written(target, error, self._needed or there) from error

    def unlock(self) -> None:
        """Let go of the locks that tell others that the temporary files are in use; HDF5 reads no locked file."""
        while self._locks:
            os.close(self._locks.pop())


class Finished:
    """Complete files on their way to the disk: a thread syncs them, and they get their names once they are there.

    For the only writer of a folder, who has other things to do meanwhile; they get their names also if that fails.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._waiting: list[tuple[Outputs, Future[None]]] = []

    def __enter__(self) -> Finished:
        return self

    def add(self, outputs: Outputs) -> None:
        """Take over `outputs`, whose files are written."""
        outputs.unlock()
        self._waiting.append((outputs, self._pool.submit(outputs.sync)))

    def where(self, target: Path) -> Path:
        """Under which name the file `target` can be read now."""
        real = Path(os.path.realpath(target))
        for outputs, _ in self._waiting:
            if real in outputs.targets:
                return outputs.targets[real]
        return target

    def name(self) -> None:
        """Wait until all are on the disk, and give them their names."""
        while self._waiting:
            outputs, synced = self._waiting.pop(0)
            with outputs:
                synced.result()

    def __exit__(self, *_: object) -> None:
        try:
            self.name()
        finally:
            self._pool.shutdown()


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        if path.is_dir():  # one may write into a folder without seeing its names
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems, such as SMB's, do not sync folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, whose names are on the disk then too."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync(path.parent)


def write_text(target: str | Path, text: str) -> None:
    """Write a text file under its name only once it is complete."""
    with Outputs() as outputs:
        outputs.write(target, text.encode())


def is_stream(target: Path) -> bool:
    """Whether a path is a pipe, a device, or a file that the process prints to."""
    try:
        status = target.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    if stat.S_ISREG(status.st_mode):
        return _printed_to(status) is not None
    return not stat.S_ISDIR(status.st_mode)


def _printed_to(status: os.stat_result) -> int | None:
    for descriptor in (1, 2):
        with suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), status):
                return descriptor
    return None


def _pour(temporary: Path, target: Path) -> None:
    """Copy a complete file to where it cannot be renamed to."""
    descriptor = _printed_to(target.stat())
    with naming(target):
        if descriptor is None:
            descriptor = os.open(target, os.O_WRONLY)
        else:
            if sys.stdout is not None:
                sys.stdout.flush()
            descriptor = os.dup(descriptor)
        with temporary.open("rb") as source, open(descriptor, "wb") as sink:
            shutil.copyfileobj(source, sink)


def write_all(descriptor: int, data: Any, offset: int) -> None:
    """Write a buffer at `offset`, in as many calls as the system wants."""
    view = memoryview(data).cast("B")
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


# --- locks and leftovers ---------------------------------------------------------------------------------
#
# A lock (flock) belongs to the process that took it and ends with it, however it ends: whoever can lock another's
# temporary file knows that its writer is gone. File systems without locks (some Lustre mounts) leave the host and
# the process number in the name to judge by.


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name}.{_HOST}-{os.getpid()}-{next(_serial)}.tmp")


def _lock(descriptor: int) -> bool | None:
    """Whether this process now holds the lock on an open file; None where the file system has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        return None
    return True


def _same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _open_locked(path: Path) -> int:
    """Create a temporary file and lock it, unless it is removed in between by someone who took it for a leftover."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _OWN, 0o666)
        if _lock(descriptor) is not False and _same(descriptor, path):
            return descriptor
        os.close(descriptor)


def remove_stale(folder: Path, name: str | None = None) -> list[Path]:
    """Remove temporary files of processes that are gone, of the output `name` or all of a folder, and return them."""
    removed = []
    for path in folder.glob(".*.tmp" if name is None else f".{glob.escape(name)}.*.tmp"):
        match = _TEMPORARY.match(path.name)
        if match is None:
            continue
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDWR | _OWN)
            try:
                locked = _lock(descriptor)
                gone = locked if locked is not None else match["host"] == _HOST and not _alive(int(match["pid"]))
                if gone:
                    path.unlink(missing_ok=True)
                    removed.append(path)
            finally:
                os.close(descriptor)
    return removed


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@contextmanager
def only_writer(folder: Path) -> Iterator[Path]:
    """Be the only run that writes into `folder`; what killed runs left there is removed first.

    Yields the file by which others know. Raises `OutputError` if another run is at work there (the message says which),
    or the folder cannot be written to.
    """
    path = folder / _LOCK_NAME
    while True:
        with naming(folder):
            make_folder(folder)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _OWN, 0o666)
        locked = _lock(descriptor)
        if locked is False:
            who = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "of unknown number"
            os.close(descriptor)
            raise OutputError(
                f"{folder}: another run is writing there (process {who}); wait until it has finished, stop it, "
                f"or {_ELSEWHERE}"
            )
        if _same(descriptor, path):
            break
        os.close(descriptor)
    try:
        with suppress(OSError):  # a full disk: the lock holds, it just does not say whose it is
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()} on {_HOST}, since {time.strftime('%F %T')}\n".encode(), 0)
        remove_stale(folder)
        yield path
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


# --- space -----------------------------------------------------------------------------------------------


def require_space(folder: Path, needed: int) -> None:
    """Raise `OutputError` if less than `needed` bytes are free in `folder`."""
    if shutil.disk_usage(folder).free < needed:
        raise disk_full(folder, needed)


_ELSEWHERE = "choose another output_root, run id or file"


def disk_full(target: Path, needed: int) -> OutputError:
    """Return the error for an output of `needed` bytes, 0 if unknown, or a folder of outputs, that does not fit."""
    free = shutil.disk_usage(next(path for path in (target, *target.absolute().parents) if path.is_dir())).free
    needs = f"needs {size(needed)}, " if needed else ""
    return OutputError(f"{target}: disk full: {needs}{size(free)} free; make room, or {_ELSEWHERE}")


def not_written(target: Path, error: OSError, needed: int = 0) -> OutputError:
    """Return the error for an output of `needed` bytes, 0 if unknown, or a folder, that cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_full(target, needed)
    return OutputError(
        f"{target}: cannot be written ({error.strerror or error}); see to the disk and the permissions, or {_ELSEWHERE}"
    )


@contextmanager
def naming(target: str | Path, needed: int = 0) -> Iterator[None]:
    """Raise `not_written` for what the block cannot write."""
    try:
        yield
    except OSError as error:
        raise not_written(Path(target), error, needed) from error


def size(count: float) -> str:
    """Bytes in words: ``"1.2 GB"``."""
    power = min(int(math.log10(max(count, 1)) / 3), 4)
    return f"{count:.0f} bytes" if power == 0 else f"{count / 1000**power:.3g} {('kB', 'MB', 'GB', 'TB')[power - 1]}"
