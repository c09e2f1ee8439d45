"""Rows of HDF5 datasets, read in pieces by many threads or processes at once, and written by one.

h5py lets one thread of a process into HDF5 at a time. Datasets that lie in one piece in the file, which large arrays
without compression do, need no HDF5 once their place is known: they are read directly, at the speed of the disk, and a
file that ends early is an error, where HDF5 would give zeros. Everything else goes through h5py.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import h5py
import numpy as np

from rheidae.exceptions import DataError
from rheidae.system.h5 import FETCH_AGAIN, H5_ERRORS, open_h5, read
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

    Raises `DataError` if the file is damaged where it says how the dataset is stored.
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

    Raises `DataError` if they cannot be read; the message names file, dataset and rows, and ends in `remedy`.
    """
    if rows.offset is None:
        with open_h5(rows.path) as file:
            source = _with_cache(file, rows, remedy)
            return read(source, start, stop, rows.axis, remedy)
    before, after = rows.shape[: rows.axis], rows.shape[rows.axis + 1 :]
    each, kind = math.prod(after), np.dtype(rows.dtype)
    pieces = []
    for index in range(math.prod(before)):
        place = rows.offset + (index * rows.length + start) * each * kind.itemsize
        try:
            pieces.append(np.fromfile(rows.path, kind, (stop - start) * each, offset=place))
        except OSError as error:
            raise DataError(f"{rows.where}, rows {start} to {stop - 1}: cannot be read ({error}); {remedy}") from error
        if len(pieces[-1]) < (stop - start) * each:
            raise DataError(f"{rows.where}, rows {start} to {stop - 1}: cannot be read (the file ends there); {remedy}")
    whole = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    return whole.reshape(*before, stop - start, *after)


def _with_cache(file: h5py.File, rows: RowSource, remedy: str) -> h5py.Dataset:
    try:
        access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
        access.set_chunk_cache(521, _CHUNK_CACHE, 1.0)
        return h5py.Dataset(h5py.h5d.open(file.id, rows.name.encode(), access))
    except H5_ERRORS as error:
        raise DataError(f"{rows.where} cannot be opened ({error}); {remedy}") from error


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


def columns_of(arrays: dict[str, Any]) -> tuple[Column, ...]:
    """Return the columns of a table that takes `arrays`."""
    return tuple(Column(name, values.dtype.str, values.shape[1:]) for name, values in arrays.items())


def create_datasets(
    file: h5py.File, rows: int, columns: Sequence[Column], chunk_rows: int | None, gzip: int | None
) -> None:
    """Create datasets of equal length in the newly made `file`; without chunks their place is reserved at once.

    `gzip`: level of compression of chunks; None: not compressed.
    """
    for column in columns:
        shape = (rows, *column.shape)
        if chunk_rows is not None:
            options: dict[str, Any] = {"chunks": (min(chunk_rows, rows), *column.shape)}
            if gzip is not None:
                options |= {"compression": "gzip", "compression_opts": gzip, "shuffle": True}
            file.create_dataset(column.name, shape=shape, dtype=column.dtype, fillvalue=None, **options)
            continue
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_layout(h5py.h5d.CONTIGUOUS)
        creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        creation.set_obj_track_times(False)  # the same input gives the same bytes
        kind = h5py.h5t.py_create(np.dtype(column.dtype), logical=True)
        h5py.h5d.create(file.id, column.name.encode(), kind, h5py.h5s.create_simple(shape), dcpl=creation)


def write_rows(file: h5py.File, arrays: dict[str, Any], start: int) -> int:
    """Write arrays from row `start` on into the datasets of the same names; return the number of bytes."""
    total = 0
    for name, values in arrays.items():
        with uninterrupted():
            file[name][start : start + len(values)] = values
        total += values.nbytes
    return total
