"""HDF5 files: every one that the package reads or writes is opened here."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from rheidae.exceptions import DataError
from rheidae.system.outputs import write_all
from rheidae.system.signals import uninterrupted

# Archives often lie on read-only or network file systems that refuse locks; nothing here depends on one,
# because outputs are written under a name of their own and renamed when complete.
_LOCKING = "best-effort"

# What h5py raises on damaged or unusual files, beside OSError.
H5_ERRORS = (OSError, RuntimeError, ValueError, KeyError, TypeError, NotImplementedError, MemoryError)


# --- reading ---------------------------------------------------------------------------------------------


def require_file(path: str | Path, remedy: str = "check the path") -> None:
    """Raise `DataError` if there is no such file, with `remedy` at its end, or if it is a folder."""
    if Path(path).is_dir():
        raise DataError(f"{path}: is a folder; name a file in it")
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file; {remedy}")


@contextmanager
def open_h5(path: str | Path, remedy: str = "check the path") -> Iterator[h5py.File]:
    """Open an HDF5 file for reading; `remedy` is what the message advises where it does not exist.

    Raises `DataError` if the file does not exist, is not HDF5 or is cut short, or was changed when the block ends.
    """
    require_file(path, remedy)
    try:
        file = h5py.File(path, "r", locking=_LOCKING)
    except PermissionError as error:
        raise DataError(f"{path}: may not be read; ask its owner for the permission") from error
    except H5_ERRORS as error:
        if "file is already open for write" in str(error) or "consistency flags" in str(error):
            raise DataError(
                f"{path}: is marked as open for writing; wait until its writer has finished, or if that one crashed, "
                f"clear the mark with: h5clear -s {path}"
            ) from error
        if "unable to lock" in str(error):
            raise DataError(
                f"{path}: another program has it open for writing ({error}); wait until that has finished"
            ) from error
        raise DataError(
            f"{path}: cannot be opened as HDF5 ({error}); the file is not HDF5 or cut short: fetch it again"
        ) from error
    with file:
        before = _version(file)
        yield file
        # HDF5 reads zeros beyond the end of a file that somebody has cut short.
        if _version(file) != before:
            raise DataError(f"{path}: was changed while it was read; begin again once its writer has finished")


def _version(file: h5py.File) -> tuple[int, int]:
    status = os.fstat(file.id.get_vfd_handle())
    return status.st_size, status.st_mtime_ns


def dataset(file: h5py.File, name: str, remedy: str = "check the name") -> h5py.Dataset:
    """Return a dataset of an open file, or raise `DataError` that lists what the file holds."""
    try:
        _require_no_pipe(file, name)
        # A name that ends or begins oddly (".", an empty one) raises; a dangling link is None.
        member = file.get(name)
        link = file.get(name, getlink=True) if member is None else None
    except H5_ERRORS as error:
        raise DataError(
            f"{file.filename}: dataset {name!r} cannot be opened ({error}); fetch the file again"
        ) from error
    if isinstance(link, h5py.ExternalLink):
        raise DataError(
            f"{file.filename}: {name!r} is a link to {link.path!r} in {link.filename}, which is not there; "
            "fetch that file too"
        )
    if not isinstance(member, h5py.Dataset):
        raise DataError(f"{file.filename}: no dataset {name!r}; {remedy}. The file holds: {_names(file)}")
    _require_stored(member, name)
    return member


def _require_no_pipe(file: h5py.Group, name: str, links: int = 16) -> None:
    """Refuse links that lead, one after another, to a pipe or a device, which HDF5 would wait for."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    group = file
    for index, part in enumerate(parts if links else ()):
        link, rest = group.get(part, getlink=True), parts[index + 1 :]
        if isinstance(link, h5py.SoftLink):
            start = file.file if link.path.startswith("/") else group
            return _require_no_pipe(start, "/".join([link.path, *rest]), links - 1)
        if isinstance(link, h5py.ExternalLink):
            other = _regular(file.file, link.filename, name)
            if other is None:  # the caller says so
                return None
            with h5py.File(other, "r", locking=_LOCKING) as there:
                return _require_no_pipe(there, "/".join([link.path, *rest]), links - 1)
        if link is None or not rest or not isinstance(group := group[part], h5py.Group):
            return None
    return None


def _regular(file: h5py.File, other: str, name: str) -> Path | None:
    """The file that a link means, where HDF5 looks for it; None if there is none."""
    for path in (Path(file.filename).parent / other, Path(other)):
        if path.is_file():
            return path
        if path.exists():
            raise DataError(f"{file.filename}: {name!r} is a link to {path}, which is not a file; {FETCH_AGAIN}")
    return None


def present(file: h5py.Group, name: str) -> bool:
    """Whether a group holds a dataset or group of that name, links followed."""
    try:
        _require_no_pipe(file, name)
        return name in file
    except H5_ERRORS as error:
        raise DataError(
            f"{file.file.filename}: {name!r} cannot be looked up ({error}); fetch the file again"
        ) from error


_MOST_UNPACKED = 1100
"""Bytes that a stored byte may stand for: gzip ends at 1032. Rows beyond were never written: zeros."""

_SMALL = 64 << 20
"""Bytes that are read without asking how they are stored."""


def _require_stored(member: h5py.Dataset, name: str) -> None:
    """Refuse a few bytes of file that declare rows for more than the memory, or the patience, of a machine."""
    try:
        if member.shape is None or _elsewhere(member, name):
            return
        declared, stored = member.dtype.itemsize * math.prod(member.shape), member.id.get_storage_size()
    except H5_ERRORS:  # a type that cannot be read: the caller says so
        return
    if declared > _SMALL and declared > _MOST_UNPACKED * stored:
        raise DataError(
            f"{member.file.filename}: dataset {name!r} declares {declared:.3g} bytes in {len(member)} rows, of which "
            f"{stored} bytes were written; {FETCH_AGAIN}"
        )


def _elsewhere(member: h5py.Dataset, name: str) -> bool:
    """Whether the numbers of a dataset lie in other files, all of which are files."""
    creation = member.id.get_create_plist()
    parts = [os.fsdecode(creation.get_external(index)[0]) for index in range(creation.get_external_count())]
    parts += [
        part.file_name for part in (member.virtual_sources() if member.is_virtual else []) if part.file_name != "."
    ]
    for part in dict.fromkeys(parts):
        _regular(member.file, part, name)
    return bool(parts) or member.is_virtual


def _names(file: h5py.File) -> str:
    try:
        return ", ".join(sorted(file)) or "nothing"
    except H5_ERRORS as error:
        return f"names that cannot be read ({error})"


FETCH_AGAIN = "fetch the file again"
"""What to do about a damaged raw file."""


def read(source: h5py.Dataset, start: int, stop: int, axis: int = 0, remedy: str = FETCH_AGAIN) -> Any:
    """Read ``start:stop`` along the row axis; a damaged chunk raises `DataError` naming file, dataset and rows."""
    try:
        return source[(slice(None),) * axis + (slice(start, stop),)]
    except H5_ERRORS as error:
        where = f"{source.file.filename}: dataset {source.name.lstrip('/')!r}"
        missing = _missing_filters(source)
        if missing:
            raise DataError(
                f"{where} is compressed with {missing}, which this HDF5 lacks; install the package hdf5plugin and "
                "set HDF5_PLUGIN_PATH to its hdf5plugin.PLUGIN_PATH, or repack the file: h5repack -f GZIP=1"
            ) from error
        raise DataError(f"{where}, rows {start} to {stop - 1}: cannot be read ({error}); {remedy}") from error


def _missing_filters(source: h5py.Dataset) -> str:
    """Names of the filters that a dataset was written with and that are not installed."""
    try:
        creation = source.id.get_create_plist()
        filters = [creation.get_filter(index) for index in range(creation.get_nfilters())]
        missing = [(number, name) for number, _, _, name in filters if not h5py.h5z.filter_avail(number)]
    except H5_ERRORS:
        return ""
    return ", ".join(f"{name.decode(errors='replace') or 'filter'} (number {number})" for number, name in missing)


# --- writing ---------------------------------------------------------------------------------------------


class _Sink:
    """The file object that HDF5 writes through.

    A disk that fills up while HDF5 writes leaves the library with a cache that it can neither flush nor drop,
    and it tries again, and prints, when the process ends. So the first failure is kept here, HDF5 is told that
    all went well, and `create_h5` raises the failure once HDF5 is done with the file. The same holds for an
    interrupt that arrives in here.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.position = 0
        self.failure: OSError | None = None

    def require(self) -> None:
        """Raise the first failure, if there was one."""
        if self.failure is not None:
            raise self.failure

    def read(self, size: int = -1) -> bytes:
        data = os.pread(self.descriptor, size, self.position)
        self.position += len(data)
        return data

    def readinto(self, buffer: memoryview) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        # Beyond the end: what was never written because of an earlier failure.
        buffer[len(data) :] = bytes(len(buffer) - len(data))
        return len(buffer)

    def write(self, data: memoryview) -> int:
        if self.failure is None:
            try:
                write_all(self.descriptor, data, self.position)
            except OSError as error:
                self.failure = error
        self.position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        start = (0, self.position, os.fstat(self.descriptor).st_size)[whence]
        self.position = start + offset
        return self.position

    def tell(self) -> int:
        return self.position

    def truncate(self, size: int | None = None) -> int:
        size = self.position if size is None else size
        if self.failure is None:
            try:
                os.ftruncate(self.descriptor, size)
            except OSError as error:
                self.failure = error
        return size

    def flush(self) -> None:
        pass


@contextmanager
def create_h5(path: str | Path) -> Iterator[tuple[h5py.File, Callable[[], None]]]:
    """Create an HDF5 file at `path`, usually one that `Outputs.path` returned; large datasets begin on a page.

    Yields the file, and a function that raises what went wrong in writing so far, before all is computed. Raises
    `OSError` when the block ends, if it cannot be written.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
    sink = _Sink(descriptor)
    file = None
    try:
        # HDF5 is called where signals wait; one that came meanwhile is raised after `file` is known and can be closed.
        # Callers that write through HDF5 do the same.
        try:
            with uninterrupted():
                # The lowest version that keeps attributes above 64 KB, and that HDF5 1.10 reads.
                file = h5py.File(
                    sink, "w", libver="v110", locking=_LOCKING, alignment_threshold=1 << 16, alignment_interval=1 << 12
                )
            yield file, sink.require
        finally:
            if file is not None:
                with uninterrupted():
                    file.close()
    except H5_ERRORS as error:
        # Reading back what a full disk did not take fails in HDF5's own words.
        if sink.failure is not None:
            raise sink.failure from error
        raise
    finally:
        os.close(descriptor)
    sink.require()
