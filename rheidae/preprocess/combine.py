"""One file from many: all simulations' rows, shuffled in two sequential passes.

Each row goes to the bucket of its key (see `rheidae.preprocess.shuffle`), and each bucket, which fits into memory, is
sorted by key. Reading the rows in their new order instead would touch every page of the parts once per row.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rheidae.config import PreprocessConfig
from rheidae.exceptions import DataError
from rheidae.preprocess import shuffle
from rheidae.preprocess.rows import RowSource, columns_of, locate, read_rows
from rheidae.preprocess.trainingset import CARRIED, MINIMAL, Arrays, Done, complete, example, writing
from rheidae.system.cluster import Workers
from rheidae.system.h5 import open_h5
from rheidae.system.outputs import Outputs, write_all
from rheidae.system.progress import Progress, Stages

BUCKET_BYTES = 8 << 20
"""Rows are sorted so many bytes at a time."""


class _Part(NamedTuple):
    """The output of one simulation, as a part of the combined file."""

    columns: tuple[RowSource, ...]
    first: int
    """Number of its first row among all rows."""

    @property
    def rows(self) -> int:
        return self.columns[0].length


def _parts(paths: Sequence[Path], config: PreprocessConfig) -> list[_Part]:
    parts: list[_Part] = []
    first = 0
    # Not what another program has put there since.
    wanted = MINIMAL if config.diagnostics == "minimal" else (*example(config), *CARRIED)
    for path in paths:
        with open_h5(path) as file:
            parts.append(_Part(tuple(locate(file, name) for name in wanted if name in file), first))
        first += parts[-1].rows
    return parts


def _record(parts: Sequence[_Part], example: Arrays) -> Any:
    """One row with everything that cannot be made from the rest of it, and its number among all rows."""
    columns: dict[str, RowSource] = {}
    for part in parts:
        for column in part.columns:
            known = columns.get(column.name)
            # Strings differ in length from file to file.
            if known is None or np.dtype(column.dtype).itemsize > np.dtype(known.dtype).itemsize:
                columns[column.name] = column
    order = [name for name in example if name in columns] + [name for name in columns if name not in example]
    fields: list[Any] = [(name, columns[name].dtype, columns[name].shape[1:]) for name in order]
    return np.dtype([("row", "<u8"), *fields])


def _read_records(part: _Part, start: int, stop: int, record: Any) -> Any:
    rows = np.empty(stop - start, dtype=record)
    rows["row"] = np.arange(part.first + start, part.first + stop)
    by_name = {column.name: column for column in part.columns}
    for name in record.names[1:]:
        if name in by_name:
            rows[name] = read_rows(by_name[name], start, stop, "run again with --force, which makes this file anew")
        else:  # one of `CARRIED` that only other simulations have
            rows[name] = np.nan
    return rows


def _arrays(records: Any, config: PreprocessConfig) -> Arrays:
    """All arrays of the preprocessed file."""
    return complete({name: np.ascontiguousarray(records[name]) for name in records.dtype.names[1:]}, config)


def combine(
    paths: Sequence[Path],
    target: Path,
    attributes: Arrays,
    dropped: dict[str, Any],
    config: PreprocessConfig,
    workers: Workers,
    stages: Stages,
    step: int,
    read: Callable[[], None] = lambda: None,
) -> int:
    """Write the rows of all preprocessed simulations into one file, in the order of the configuration; return how many.

    `attributes` and `dropped` are those of `writing`; `step` is rows of a block; `read` is called when the simulations
    have been read for the last time.
    """
    parts = _parts(paths, config)
    rows = sum(part.rows for part in parts)
    record = _record(parts, example(config))
    columns = columns_of(_arrays(np.zeros(0, dtype=record), config))
    scratch_bytes = rows * record.itemsize if config.shuffle else 0
    with (
        writing(target, rows, columns, attributes, dropped, config, stages, scratch_bytes) as output,
        Outputs(scratch_bytes) as scratch,
    ):
        blocks: Iterator[tuple[Any, ...]]
        if config.shuffle:
            spill = scratch.scratch(target.with_name(target.name + ".rows")).absolute()
            # At its full length from the start: a network file system may fill up a page that it takes for the last
            # one, and so overwrite what another machine wrote behind.
            os.truncate(spill, scratch_bytes)
            begins = _scatter(parts, rows, spill, record, config, workers, stages, step)
            read()
            work: Any = _sorted_bucket
            blocks = ((spill, begin, end, record, config) for begin, end in itertools.pairwise(begins))
        else:
            work = _copied_block
            blocks = ((part, start, stop, record, config) for part in parts for start, stop in _pieces(part.rows, step))
        with Progress("all", rows) as progress:
            for done in workers.run(work, blocks):
                output.take(done)
                progress.advance(done.rows)
            progress.finish(f"all: {rows} rows into {target}")
        if not config.shuffle:
            read()
    return rows


def _pieces(rows: int, step: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + step, rows)) for start in range(0, rows, step))


def _scatter(
    parts: Sequence[_Part],
    rows: int,
    spill: Path,
    record: Any,
    config: PreprocessConfig,
    workers: Workers,
    stages: Stages,
    step: int,
) -> Any:
    """First pass: write the rows into the file `spill`, and return where each bucket begins there, and the end."""
    count = max(1, math.ceil(rows * record.itemsize / BUCKET_BYTES))
    begins = np.concatenate([[0], np.cumsum(shuffle.bucket_sizes(rows, config.seed, count))])
    free = begins[:-1].copy()

    def blocks() -> Iterator[tuple[Any, ...]]:
        for part in parts:
            for start, stop in _pieces(part.rows, step):
                yield part, start, stop, record, config.seed, free.copy(), spill, workers.remote
                numbers = np.arange(part.first + start, part.first + stop, dtype=np.uint64)
                free[:] += np.bincount(shuffle.buckets(shuffle.keys(numbers, config.seed), count), minlength=count)

    with Progress("shuffle", rows) as progress:
        for seconds, written in workers.run(_scatter_block, blocks()):
            stages.add("scatter", seconds, written)
            progress.advance(written // record.itemsize)
    return begins.tolist()


def _scatter_block(
    part: _Part, start: int, stop: int, record: Any, seed: int, free: Any, spill: Path, durable: bool
) -> tuple[float, int]:
    started = time.perf_counter()
    records = _read_records(part, start, stop, record)
    bucket = shuffle.buckets(shuffle.keys(records["row"], seed), len(free))
    order = np.argsort(bucket, kind="stable")
    records = _taken(records, order)
    ends = np.cumsum(np.bincount(bucket, minlength=len(free)))
    descriptor = os.open(spill, os.O_WRONLY)
    try:
        begin = 0
        for number, end in enumerate(ends.tolist()):
            if end > begin:
                write_all(descriptor, records[begin:end].view(np.uint8), int(free[number]) * record.itemsize)
            begin = end
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return time.perf_counter() - started, records.nbytes


def _sorted_bucket(spill: Path, begin: int, end: int, record: Any, config: PreprocessConfig) -> Done:
    """Second pass: rows ``begin:end`` of the combined file."""
    stages = Stages()
    with stages.timed("gather"):
        records = np.fromfile(spill, record, end - begin, offset=begin * record.itemsize)
        if len(records) < end - begin:
            raise DataError(f"{spill}: ends early; another program has cut it short: run again")
        records = _taken(records, np.argsort(shuffle.keys(records["row"], config.seed)))
        arrays = _arrays(records, config)
    return Done(begin, end - begin, stages, arrays)


def _taken(records: Any, order: Any) -> Any:
    """``records[order]``, whole records at a time: NumPy would go field by field."""
    return records.view(f"V{records.itemsize}")[order].view(records.dtype)


def _copied_block(part: _Part, start: int, stop: int, record: Any, config: PreprocessConfig) -> Done:
    stages = Stages()
    with stages.timed("gather"):
        arrays = _arrays(_read_records(part, start, stop, record), config)
    return Done(part.first + start, stop - start, stages, arrays)
