"""Rows of HDF5 datasets, read and written in pieces by many threads or processes at once.

h5py lets one thread of a process into HDF5 at a time. Datasets that lie in one piece in the file, which large arrays
without compression do, need no HDF5 once their place is known: they are read and written directly, at the speed of
the disk. Everything else goes through h5py.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from rheidae.exceptions import DataError
from rheidae.system.h5 import FETCH_AGAIN, H5_ERRORS, open_h5, read
from rheidae.system.outputs import start_writing_back, write_all
from rheidae.system.signals import uninterrupted

# HDF5's own cache of 1 MB holds less than one chunk of many files, which would then be unpacked again for every
# piece that is read of it.
_CHUNK_CACHE = 64 << 20


class RowSource(NamedTuple):
    """A dataset, as far as reading its rows needs it; small, and fit to be sent to another process."""

    path: str
    name: str
    shape: tuple[int, ...]
    dtype: str
    axis: int
    """Which axis counts rows."""
    offset: int | None
    """Where in the file the dataset lies in one piece, in C order and an ordinary number format; else None."""
    chunk: int
    """Rows of a chunk; 1 without chunks."""

    @property
    def length(self) -> int:
        """Number of rows."""
        return self.shape[self.axis]

    @property
    def where(self) -> str:
        """File and dataset, for messages."""
        return f"{self.path}: dataset {self.name!r}"


def locate(file: h5py.File, name: str, axis: int = 0) -> RowSource:
    """Describe the dataset `name` of an open file, whose axis `axis` counts rows.

    Raises
    ------
    DataError
        If the file is damaged where it says how the dataset is stored.
    """
    try:
        source = file[name]
        chunk = source.chunks[axis] if source.chunks else 1
        # A link may lead into another file.
        offset = _offset(source) if source.file.filename == file.filename else None
        # Absolute, for workers that were started in another folder.
        return RowSource(os.path.abspath(file.filename), name, source.shape, source.dtype.str, axis, offset, chunk)
    except H5_ERRORS as error:
        raise DataError(
            f"{file.filename}: dataset {name!r} cannot be opened ({error}); fetch the file again"
        ) from error


def _offset(source: h5py.Dataset) -> int | None:
    """Where a dataset lies, if it can be read without HDF5."""
    creation = source.id.get_create_plist()
    if creation.get_layout() != h5py.h5d.CONTIGUOUS or creation.get_external_count():
        return None
    plain = source.dtype.kind in "fS" and not source.dtype.hasobject
    plain = plain and (source.dtype.kind == "S" or source.dtype.itemsize in (4, 8))
    # The type as stored, bit by bit: NumPy also calls rarer layouts float32.
    if not plain or not source.id.get_type().equal(h5py.h5t.py_create(source.dtype, logical=True)):
        return None
    if source.file.userblock_size or source.id.get_storage_size() != source.dtype.itemsize * math.prod(source.shape):
        return None
    offset: int | None = source.id.get_offset()
    return offset


def read_rows(rows: RowSource, start: int, stop: int, remedy: str = FETCH_AGAIN) -> Any:
    """Rows ``start:stop`` as an array whose axes are those of the file.

    Raises
    ------
    DataError
        If they cannot be read; the message names file, dataset and rows, and ends in `remedy`.
    """
    if rows.offset is None:
        with open_h5(rows.path) as file:
            source = _with_cache(file, rows, remedy)
            return read(source, start, stop, rows.axis, remedy)
    before, after = rows.shape[: rows.axis], rows.shape[rows.axis + 1 :]
    out = np.empty((*before, stop - start, *after), dtype=rows.dtype)
    step = out.itemsize * math.prod(after)
    pieces = out.reshape(math.prod(before), -1).view(np.uint8)
    with ExitStack() as stack:
        descriptor = _open(rows, stack)
        for index, piece in enumerate(pieces):
            try:
                _fill(descriptor, piece, rows.offset + (index * rows.length + start) * step)
            except OSError as error:
                raise DataError(
                    f"{rows.where}, rows {start} to {stop - 1}: cannot be read ({error}); {remedy}"
                ) from error
    return out


def _with_cache(file: h5py.File, rows: RowSource, remedy: str) -> h5py.Dataset:
    try:
        access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
        access.set_chunk_cache(521, _CHUNK_CACHE, 1.0)
        return h5py.Dataset(h5py.h5d.open(file.id, rows.name.encode(), access))
    except H5_ERRORS as error:
        raise DataError(f"{rows.where} cannot be opened ({error}); {remedy}") from error


def _open(rows: RowSource, stack: ExitStack) -> int:
    try:
        descriptor = os.open(rows.path, os.O_RDONLY)
    except OSError as error:
        raise DataError(f"{rows.where} cannot be opened ({error}); check the path") from error
    stack.callback(os.close, descriptor)
    return descriptor


def _fill(descriptor: int, piece: Any, offset: int) -> None:
    """Fill a buffer with what stands at `offset`, in as many calls as the system wants."""
    view = memoryview(piece)
    while view:
        count = os.preadv(descriptor, [view], offset)
        if count == 0:
            raise OSError("the file ends there")
        view, offset = view[count:], offset + count


# --- writing ---------------------------------------------------------------------------------------------


class Column(NamedTuple):
    """One dataset of a table: its name, and type and shape of a row."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return np.dtype(self.dtype).itemsize * math.prod(self.shape)


class Storage(NamedTuple):
    """How datasets are laid out in the file."""

    chunk_rows: int | None = None
    """Rows of an HDF5 chunk; None: in one piece."""
    gzip: int | None = None
    """Level of compression; None: not compressed."""


class Table(NamedTuple):
    """Datasets of equal length in a file that is being written."""

    path: str
    rows: int
    columns: tuple[Column, ...]
    offsets: tuple[int, ...]
    """Where each dataset lies; empty if they do not lie in one piece."""

    @property
    def bytes(self) -> int:
        """Bytes of all rows, before compression."""
        return self.rows * sum(column.row_bytes for column in self.columns)


def columns_of(arrays: dict[str, Any]) -> tuple[Column, ...]:
    """Return the columns of a table that takes `arrays`."""
    return tuple(Column(name, values.dtype.str, values.shape[1:]) for name, values in arrays.items())


def create_table(file: h5py.File, path: str | Path, rows: int, columns: Sequence[Column], storage: Storage) -> Table:
    """Create the datasets of a table in the newly made `file`, which lies at `path`.

    Without chunks their place is reserved at once, and `write_rows` fills them when `file` is closed.
    """
    offsets = []
    for column in columns:
        shape = (rows, *column.shape)
        if storage.chunk_rows is not None:
            options: dict[str, Any] = {"chunks": (min(storage.chunk_rows, rows), *column.shape)}
            if storage.gzip is not None:
                options |= {"compression": "gzip", "compression_opts": storage.gzip, "shuffle": True}
            file.create_dataset(column.name, shape=shape, dtype=column.dtype, fillvalue=None, **options)
            continue
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_layout(h5py.h5d.CONTIGUOUS)
        creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        creation.set_obj_track_times(False)  # the same input gives the same bytes
        kind = h5py.h5t.py_create(np.dtype(column.dtype), logical=True)
        made = h5py.h5d.create(file.id, column.name.encode(), kind, h5py.h5s.create_simple(shape), dcpl=creation)
        offsets.append(made.get_offset())
    return Table(str(path), rows, tuple(columns), tuple(offsets))


def write_rows(table: Table, arrays: dict[str, Any], start: int, durable: bool = False) -> int:
    """Write arrays from row `start` on, directly into the closed file; return the number of bytes.

    `durable` waits until they are on the disk, which other machines cannot be asked for later.
    """
    descriptor = os.open(table.path, os.O_WRONLY)
    total = 0
    try:
        for column, offset in zip(table.columns, table.offsets, strict=True):
            data = np.ascontiguousarray(arrays[column.name], dtype=column.dtype).reshape(-1).view(np.uint8)
            write_all(descriptor, data, offset + start * column.row_bytes)
            start_writing_back(descriptor, offset + start * column.row_bytes, len(data))
            total += len(data)
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return total


def write_chunked(file: h5py.File, arrays: dict[str, Any], start: int, names: Iterable[str]) -> int:
    """Write arrays from row `start` on through HDF5, into the open file; return the number of bytes."""
    total = 0
    for name in names:
        values = arrays[name]
        with uninterrupted():
            file[name][start : start + len(values)] = values
        total += values.nbytes
    return total
