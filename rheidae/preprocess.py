"""Raw simulation files to training sets.

    python -m rheidae.preprocess --config config/pre_process.yaml

evaluates Box3D for every row and writes one file per simulation and a combined, shuffled one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

import rheidae
from rheidae import badrows, commands, fingerprint, fourflux, shuffle
from rheidae.cluster import Workers, open_workers
from rheidae.config import PreprocessConfig, RawFile, Tolerances, read_config
from rheidae.exceptions import DataError
from rheidae.files import (
    Outputs,
    create_h5,
    dataset,
    disk_full,
    is_disk_full,
    only_writer,
    open_h5,
    require_space,
)
from rheidae.mixing import box3d
from rheidae.progress import Progress, Stages
from rheidae.rawfile import RawSimulation, inspect, read_growth_rate, read_names
from rheidae.rows import (
    Column,
    Rows,
    Storage,
    Table,
    columns_of,
    create_table,
    locate,
    read_rows,
    write_all,
    write_chunked,
    write_rows,
)
from rheidae.signals import uninterrupted

log = logging.getLogger(__name__)

CHUNK_ROWS = 1 << 14
"""Rows that a thread reads, evaluates and writes at a time, if the configuration does not say: about 30 MB."""

COMPRESSED_CHUNK_ROWS = 1024
"""Rows of an HDF5 chunk in compressed files, if the configuration does not say."""

BUCKET_BYTES = 8 << 20
"""Rows of the combined file are sorted so many bytes at a time."""

MINIMAL = ("input", "target", "sim_id")
"""What ``diagnostics: minimal`` writes."""

Arrays = dict[str, Any]


@dataclass(frozen=True)
class Written:
    """What `preprocess` wrote for one simulation."""

    name: str
    rows: int
    path: Path
    bad_rows: dict[str, int] = field(default_factory=dict)
    """Rows dropped or clipped, by what was wrong with them."""
    up_to_date: bool = False
    """Whether an earlier run had written it already."""


def preprocess(config: PreprocessConfig, *, resume: bool = True, scheduler: str | None = None) -> list[Written]:
    """Evaluate Box3D for every enabled file and write the training sets.

    Parameters
    ----------
    config : PreprocessConfig
        What to read and where to write; see ``config/pre_process.yaml``.
    resume : bool
        Leave alone the outputs that were made from the same source, configuration and version.
    scheduler : str, optional
        ``tcp://host:port`` of a Dask scheduler or ``local:N``: work there. Default: threads of this process. The
        outputs are the same.

    Returns
    -------
    list of Written
        One entry per simulation, then the combined file.

    Raises
    ------
    DataError
        If a file is missing or malformed, or a row is not physical. The message names file, dataset, row
        and remedy; no output is written from a bad file, and older outputs stay.
    OutputError
        If the disk is full, or another run writes into the same folder.
    ClusterError
        If the cluster cannot be reached, or loses its workers.
    """
    started = time.perf_counter()
    enabled = [file for file in config.files if file.enabled]
    if not enabled:
        raise DataError("no file is enabled; set enabled: true for at least one entry of `files`")
    root = Path(config.output_root)
    stages = Stages()
    with only_writer(root), ExitStack() as stack:
        with stages.timed("inspect"):
            simulations = [_inspect(raw, config) for raw in enabled]
        _refuse_to_overwrite_sources(simulations, config)
        pending = [s for s in simulations if not (resume and fingerprint.up_to_date(s.target, s.fingerprint))]
        combined = root / config.output_filename
        mark = fingerprint.of_combined([s.fingerprint for s in simulations], config)
        combine = bool(pending) or not (resume and fingerprint.up_to_date(combined, mark))
        workers: Workers | None = None
        if combine:
            _require_space(pending, simulations, config)
            workers = stack.enter_context(open_workers(scheduler, config.threads))
        written = []
        for simulation in simulations:
            if simulation in pending:
                assert workers is not None
                written.append(_preprocess_file(simulation, config, workers, stages))
            else:
                log.info("%s: %s is up to date", simulation.raw.name, simulation.target)
                written.append(_as_written(simulation.raw.name, simulation.target))
        if workers is None:
            log.info("all: %s is up to date", combined)
            written.append(_as_written("all", combined))
        else:
            rows = _combine(simulations, combined, mark, config, workers, stages)
            written.append(Written("all", rows, combined))
    for line in stages.lines():
        log.info(line)
    log.info("%-10s %10s %9.2f s", "in all", "", time.perf_counter() - started)
    return written


# --- before anything is computed ---------------------------------------------------------------------------


class _Simulation(NamedTuple):
    """One raw file, looked at but not read yet."""

    raw: RawFile
    source: Path
    target: Path
    held: RawSimulation
    rows: int
    source_mark: dict[str, Any]
    fingerprint: str


def _inspect(raw: RawFile, config: PreprocessConfig) -> _Simulation:
    # Absolute, for workers that were started in another folder; spelled as given otherwise.
    source = Path(config.data_root) / raw.path
    remedy = "check data_root and path (the sample is written by: python -m rheidae.datasets FOLDER)"
    held = inspect(source, config.h5_paths, raw.axes or config.axes, remedy)
    if config.diagnostics == "minimal":
        held = held._replace(F_true_stddev=None, growth_rate=None, dirnames=None)
    source_mark = fingerprint.of_source(source)
    return _Simulation(
        raw=raw,
        source=source,
        target=Path(config.output_root) / f"{raw.output_name}_preprocessed.h5",
        held=held,
        rows=held.length if raw.max_rows is None else min(raw.max_rows, held.length),
        source_mark=source_mark,
        fingerprint=fingerprint.of_simulation(source_mark, raw, config),
    )


def _refuse_to_overwrite_sources(simulations: list[_Simulation], config: PreprocessConfig) -> None:
    targets = [s.target for s in simulations] + [Path(config.output_root) / config.output_filename]
    sources = {s.source.resolve(): s.source for s in simulations}
    for target in targets:
        if target.resolve() in sources:
            raise DataError(f"{target} is an input and would be an output; choose another output_root or output_name")


def _require_space(pending: list[_Simulation], simulations: list[_Simulation], config: PreprocessConfig) -> None:
    """Refuse at once what cannot fit; what others write meanwhile is found when it happens."""
    if config.compression != "none":
        return
    row = sum(column.row_bytes for column in _columns(_example(config), config))
    spill = sum(column.row_bytes for column in columns_of(_example(config))) if config.shuffle else 0
    rows = sum(s.rows for s in simulations)
    if config.on_bad_rows != "drop":
        require_space(Path(config.output_root), row * sum(s.rows for s in pending) + (row + spill) * rows)


def _as_written(name: str, path: Path) -> Written:
    with open_h5(path) as file:
        bad = json.loads(file.attrs.get("bad_rows", "{}"))
        return Written(name, len(dataset(file, "sim_id")), path, bad, up_to_date=True)


# --- one simulation --------------------------------------------------------------------------------------


class _Block(NamedTuple):
    """Rows of a raw file that become rows of its output; small, and fit to be sent to another process."""

    held: RawSimulation
    start: int
    stop: int
    drop: Any
    """Numbers of the rows in between that are left out."""
    first: int
    """Where the rows go in the output."""
    config: PreprocessConfig
    sim_id: bytes
    table: Table
    durable: bool


class _Done(NamedTuple):
    """What a block did."""

    start: int
    rows: int
    stages: Stages
    arrays: Arrays | None
    """The arrays, if they could not be written into the file directly."""


def _preprocess_file(simulation: _Simulation, config: PreprocessConfig, workers: Workers, stages: Stages) -> Written:
    raw, held, rows = simulation.raw, simulation.held, simulation.rows
    if held.dirnames is None and config.diagnostics == "full":
        log.warning("%s: no dataset %r; `dirname` stays empty", simulation.source, config.h5_paths.dirnames)
    with Progress(raw.name, rows) as progress:
        survey = _Survey({}, np.zeros(0, dtype=np.int64), 1)
        if config.on_bad_rows != "error" or held.dirnames is not None:
            with stages.timed("survey"):
                survey = _survey(simulation, config, workers, states=config.on_bad_rows != "error")
        kept = rows - len(survey.dropped)
        if kept == 0:
            raise DataError(f"{simulation.source}: all {rows} rows are bad, none is left; disable the file")
        example = _example(config, held, len(raw.sim_id.encode()), survey.name_bytes)
        columns = _columns(example, config)
        needed = kept * sum(column.row_bytes for column in columns)
        attributes = _attributes(config, [simulation], simulation.fingerprint, survey.counts)
        dropped = {raw.output_name: survey.dropped} if config.on_bad_rows == "drop" else {}
        with _writing(simulation.target, kept, columns, attributes, dropped, config, stages, needed) as output:
            blocks = _blocks(simulation, config, survey.dropped, output.table, workers.remote)
            try:
                for done in workers.run(_process_block, ((block,) for block in blocks)):
                    output.take(done)
                    progress.advance(done.rows)
            except _BadRowError as error:
                found = _survey(simulation, config, workers, states=True, count_only=True)
                raise DataError(f"{error}{_summary(found.counts, rows)}") from None
            _require_unchanged(simulation)
        if not commands.on_terminal():
            speed = kept / max(progress.seconds, 1e-9)
            log.info(
                "%s: %d rows from %s, %.1f s, %.0f rows/s", raw.name, kept, simulation.source, progress.seconds, speed
            )
    if survey.counts:
        what = "dropped" if config.on_bad_rows == "drop" else "clipped"
        log.warning("%s: %s%s", simulation.source, what, _summary(survey.counts, rows))
    return Written(raw.name, kept, simulation.target, survey.counts)


class _BadRowError(DataError):
    """The first bad row of a file."""


def _summary(counts: dict[str, int], rows: int) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    return f" ({sum(counts.values())} of {rows} rows are bad: {kinds})"


def _require_unchanged(simulation: _Simulation) -> None:
    status = simulation.source.stat()
    if (status.st_size, status.st_mtime_ns) != (simulation.source_mark["size"], simulation.source_mark["mtime_ns"]):
        raise DataError(f"{simulation.source}: changed while it was read; wait until it is complete, then run again")


def _block_rows(held: RawSimulation, config: PreprocessConfig) -> int:
    """Rows of a block: whole chunks of the source, so that none is unpacked twice, unless they are huge."""
    rows = config.chunk_rows or CHUNK_ROWS
    chunk = max(held.F_init.rows.chunk, held.F_true.rows.chunk)
    return math.ceil(rows / chunk) * chunk if chunk <= 2 * rows else rows


def _blocks(
    simulation: _Simulation, config: PreprocessConfig, dropped: Any, table: Table, durable: bool
) -> Iterator[_Block]:
    step = _block_rows(simulation.held, config)
    sim_id = simulation.raw.sim_id.encode()
    for start in range(0, simulation.rows, step):
        stop = min(start + step, simulation.rows)
        low, high = np.searchsorted(dropped, [start, stop])
        yield _Block(simulation.held, start, stop, dropped[low:high], start - int(low), config, sim_id, table, durable)


def _process_block(block: _Block) -> _Done:
    """Read, evaluate and write the rows of a block; runs in a thread or on a cluster."""
    config, held, start, stop = block.config, block.held, block.start, block.stop
    stages = Stages()
    with stages.timed("read"):
        F_init, F_true = held.F_init.read(start, stop), held.F_true.read(start, stop)
        extra = _extra(held, block.sim_id, start, stop)
    stages.add("read", 0.0, F_init.nbytes + F_true.nbytes + sum(values.nbytes for values in extra.values()))
    with stages.timed("Box3D"):
        if config.on_bad_rows == "clip":
            kinds = badrows.clip(F_init, F_true, config.tolerances).left
        else:
            if len(block.drop):
                keep = np.delete(np.arange(stop - start), block.drop - start)
                F_init, F_true = F_init[keep], F_true[keep]
                extra = {name: values[keep] for name, values in extra.items()}
            kinds = badrows.classify(F_init, F_true, config.tolerances)
        if kinds.any():
            raise _BadRowError(_first_bad(held, F_init, F_true, kinds, start, config.tolerances))
        arrays = _complete({**_evaluate(F_init, F_true, config), **extra}, config)
    return _finish(arrays, block.first, len(F_init), block.table, block.durable, stages)


def _extra(held: RawSimulation, sim_id: bytes, start: int, stop: int) -> Arrays:
    """Arrays that are carried along as they are."""
    extra: Arrays = {}
    if held.F_true_stddev is not None:
        with np.errstate(over="ignore"):
            extra["F_true_stddev"] = held.F_true_stddev.read(start, stop).astype(np.float32)
    if held.growth_rate is not None:
        extra["growth_rate_simulated"] = read_growth_rate(held.growth_rate, start, stop)
    extra["sim_id"] = np.full(stop - start, sim_id)
    extra["dirname"] = (
        np.zeros(stop - start, dtype="S1") if held.dirnames is None else read_names(held.dirnames, start, stop)
    )
    return extra


def _first_bad(
    held: RawSimulation,
    F_init: fourflux.Float,
    F_true: fourflux.Float,
    kinds: badrows.Kinds,
    start: int,
    tolerances: Tolerances,
) -> str:
    row = int(np.flatnonzero(kinds)[0])
    where = (held.F_true if kinds[row] >= badrows.IN_FINAL else held.F_init).rows.where
    found = badrows.describe(F_init[row], F_true[row], int(kinds[row]), row + start, tolerances)
    return (
        f"{where}, {found}; finite numbers with N >= 0, |F| <= N, a total within 1e-30 to 1e38 and equal totals before "
        "and after are needed: remove or mend the row in the raw file, or set on_bad_rows: drop (or clip, for numbers "
        "that are slightly off)"
    )


class _Survey(NamedTuple):
    """What has to be known of all rows before the first one is written."""

    counts: dict[str, int]
    dropped: Any
    name_bytes: int


def _survey(
    simulation: _Simulation, config: PreprocessConfig, workers: Workers, states: bool, count_only: bool = False
) -> _Survey:
    step = _block_rows(simulation.held, config)
    counts: Counter[str] = Counter()
    dropped = [np.zeros(0, dtype=np.int64)]
    longest = 1
    starts = range(0, simulation.rows, step)
    blocks = ((simulation.held, start, min(start + step, simulation.rows), config, states) for start in starts)
    first = None
    for found, bad, first_bad, name_bytes in workers.run(_survey_block, blocks):
        counts.update(found)
        dropped.append(bad)
        first = first or first_bad
        longest = max(longest, name_bytes)
    if first and config.on_bad_rows == "clip" and not count_only:
        raise DataError(f"{first}{_summary(dict(counts), simulation.rows)}; clip cannot mend this one")
    rows = np.concatenate(dropped) if config.on_bad_rows == "drop" else dropped[0]
    return _Survey({name: counts[name] for name in badrows.KINDS.values() if counts[name]}, rows, longest)


def _survey_block(
    held: RawSimulation, start: int, stop: int, config: PreprocessConfig, states: bool
) -> tuple[dict[str, int], Any, str | None, int]:
    name_bytes = 1
    if held.dirnames is not None:
        kind = np.dtype(held.dirnames.dtype)
        name_bytes = kind.itemsize if kind.kind == "S" else read_names(held.dirnames, start, stop).dtype.itemsize
    if not states:
        return {}, None, None, name_bytes
    F_init, F_true = held.F_init.read(start, stop), held.F_true.read(start, stop)
    if config.on_bad_rows == "clip":
        kinds, left = badrows.clip(F_init, F_true, config.tolerances)
    else:
        kinds = left = badrows.classify(F_init, F_true, config.tolerances)
    first = _first_bad(held, F_init, F_true, left, start, config.tolerances) if left.any() else None
    return badrows.counted(kinds), np.flatnonzero(kinds) + start, first, name_bytes


def _evaluate(F_init: fourflux.Float, F_true: fourflux.Float, config: PreprocessConfig) -> Arrays:
    """Return what is computed from the states of some rows: all arrays that are not copies of one another."""
    # One thread, since blocks are worked on side by side.
    result = box3d(F_init, order=config.lebedev_order, mu_fraction=config.box3d_mu_fraction, threads=1)
    F_box = result.F_box
    x, y, z, N = np.moveaxis(F_init, 2, 0)
    invariants = np.stack([N, np.sqrt(x * x + y * y + z * z)], axis=2, dtype=np.float32)
    return {
        "F_init": F_init.astype(np.float32),
        "F_true": F_true.astype(np.float32),
        "F_box": F_box.astype(np.float32),
        "residual": fourflux.flatten((F_true - F_box).astype(np.float32)),
        "invariants": invariants.reshape(len(F_init), 12),
        "growth_rate": result.growth_rate.astype(np.float32),
        "has_crossing": result.has_crossing,
    }


_COPIES = ("F_init_flat", "F_true_flat", "F_box_flat", "input", "target")
"""Arrays of a full file that `_complete` makes from the others."""


def _complete(arrays: Arrays, config: PreprocessConfig) -> Arrays:
    """Return all arrays of the preprocessed file, in the order in which they are written."""
    arrays = dict(arrays)
    if "F_init" in arrays:
        flat = {f"{name}_flat": fourflux.flatten(arrays[name]) for name in ("F_init", "F_true", "F_box")}
        input_ = np.concatenate([flat["F_init_flat"], flat["F_box_flat"]], axis=1)
        states = {name: arrays.pop(name) for name in ("F_init", "F_true", "F_box")}
        residual = arrays.pop("residual")
        arrays = {**states, **flat, "residual": residual, "input": input_, "target": flat["F_true_flat"], **arrays}
    if config.diagnostics == "minimal":
        return {name: arrays[name] for name in MINIMAL}
    return arrays


def _example(
    config: PreprocessConfig, held: RawSimulation | None = None, sim_id_bytes: int = 1, name_bytes: int = 1
) -> Arrays:
    """Arrays of no rows, which say what the output looks like."""
    F = np.zeros((0, 6, 4))
    arrays = _evaluate(F, F, config)
    if held is not None and held.F_true_stddev is not None:
        arrays["F_true_stddev"] = np.zeros((0, 6, 4), dtype=np.float32)
    if held is not None and held.growth_rate is not None:
        arrays["growth_rate_simulated"] = np.zeros(0, dtype=np.float32)
    arrays["sim_id"] = np.zeros(0, dtype=f"S{max(sim_id_bytes, 1)}")
    arrays["dirname"] = np.zeros(0, dtype=f"S{max(name_bytes, 1)}")
    return arrays


def _columns(example: Arrays, config: PreprocessConfig) -> tuple[Column, ...]:
    return columns_of(_complete(example, config))


# --- writing a file ----------------------------------------------------------------------------------------


class _Output:
    """A file that is being written."""

    def __init__(self, table: Table, file: h5py.File | None, stages: Stages) -> None:
        self.table = table
        self._file = file
        self._stages = stages

    def take(self, done: _Done) -> None:
        """Account for a block, and write what it could not write itself."""
        self._stages.update(done.stages)
        if done.arrays is not None:
            assert self._file is not None
            names = [column.name for column in self.table.columns]
            with self._stages.timed("write"):
                count = write_chunked(self._file, done.arrays, done.start, names)
            self._stages.add("write", 0.0, count)


@contextmanager
def _writing(
    target: Path,
    rows: int,
    columns: tuple[Column, ...],
    attributes: Arrays,
    dropped: dict[str, Any],
    config: PreprocessConfig,
    stages: Stages,
    needed: int,
) -> Iterator[_Output]:
    """Write the file `target`, which appears when the block ends without an error."""
    compressed = config.compression == "gzip"
    chunk = config.h5_chunk_rows or (COMPRESSED_CHUNK_ROWS if compressed else None)
    storage = Storage(chunk, config.compression_level if compressed else None)
    try:
        with ExitStack() as stack:
            outputs = stack.enter_context(Outputs())
            path = outputs.path(target)
            with create_h5(path) as file:
                with uninterrupted():
                    table = create_table(file, path.absolute(), rows, columns, storage)
                    file.attrs.update(attributes)
                    for name, numbers in dropped.items():
                        file.create_dataset(f"dropped_rows/{name}", data=numbers)
                if storage.chunk_rows is not None:
                    yield _Output(table, file, stages)
            if storage.chunk_rows is None:
                yield _Output(table, None, stages)
            started = time.perf_counter()
        stages.add("sync", time.perf_counter() - started)
    except OSError as error:
        if is_disk_full(error):
            raise disk_full(target.parent, needed) from error
        raise


def _attributes(config: PreprocessConfig, sources: list[_Simulation], mark: str, bad_rows: dict[str, Any]) -> Arrays:
    described = {
        "F_init, F_true, F_box, F_true_stddev": "(row, species, component)",
        "*_flat, residual, target": "(row, 4 * species + component)",
        "input": "(row, [F_init_flat, F_box_flat])",
        "invariants": "(row, per species (N, |F|) of F_init)",
        "growth_rate_simulated": "(row), 1/s",
        "dropped_rows": "per output_name, the rows of the raw file that were left out",
    }
    return {
        "units": "1/cm^3",
        "species": list(fourflux.SPECIES),
        "components": list(fourflux.COMPONENTS),
        "axes": json.dumps(described),
        "layout": "row-major",
        "rheidae_version": rheidae.__version__,
        # How the work was done leaves no trace in the file.
        "config": config.model_dump_json(exclude={"chunk_rows", "threads"}),
        "sources": json.dumps([str(simulation.source) for simulation in sources]),
        "on_bad_rows": config.on_bad_rows,
        "bad_rows": json.dumps(bad_rows),
        fingerprint.ATTRIBUTE: mark,
    }


# --- the combined file -------------------------------------------------------------------------------------


class _Part(NamedTuple):
    """The output of one simulation, as a part of the combined file."""

    columns: tuple[Rows, ...]
    first: int
    """Number of its first row among all rows."""

    @property
    def rows(self) -> int:
        return self.columns[0].length


def _parts(simulations: Sequence[_Simulation], config: PreprocessConfig) -> list[_Part]:
    parts: list[_Part] = []
    first = 0
    for simulation in simulations:
        path = simulation.target.absolute()
        with open_h5(path) as file:
            names = [name for name, held in file.items() if isinstance(held, h5py.Dataset)]
            if config.diagnostics == "full":
                names = [name for name in names if name not in _COPIES]
            parts.append(_Part(tuple(locate(dataset(file, name), path, name) for name in names), first))
        first += parts[-1].rows
    return parts


def _record(parts: Sequence[_Part], example: Arrays) -> Any:
    """One row with everything that cannot be made from the rest of it, and its number among all rows."""
    columns: dict[str, Rows] = {}
    for part in parts:
        for column in part.columns:
            held = columns.get(column.name)
            # Strings differ in length from file to file.
            if held is None or np.dtype(column.dtype).itemsize > np.dtype(held.dtype).itemsize:
                columns[column.name] = column
    order = [name for name in example if name in columns] + [name for name in columns if name not in example]
    fields: list[Any] = [(name, columns[name].dtype, columns[name].shape[1:]) for name in order]
    return np.dtype([("row", "<u8"), *fields])


def _read_records(part: _Part, start: int, stop: int, record: Any) -> Any:
    rows = np.empty(stop - start, dtype=record)
    rows["row"] = np.arange(part.first + start, part.first + stop)
    held = {column.name: column for column in part.columns}
    for name in record.names[1:]:
        if name in held:
            rows[name] = read_rows(held[name], start, stop)
        else:  # a quantity that only other simulations have
            kind = record[name].base.kind
            rows[name] = np.nan if kind == "f" else np.zeros((), dtype=record[name].base)
    return rows


def _arrays(records: Any, config: PreprocessConfig) -> Arrays:
    """All arrays of the preprocessed file."""
    return _complete({name: np.ascontiguousarray(records[name]) for name in records.dtype.names[1:]}, config)


def _combine(
    simulations: Sequence[_Simulation],
    target: Path,
    mark: str,
    config: PreprocessConfig,
    workers: Workers,
    stages: Stages,
) -> int:
    """Write the rows of all simulations into one file, shuffled if the configuration says so."""
    parts = _parts(simulations, config)
    rows = sum(part.rows for part in parts)
    record = _record(parts, _example(config))
    columns = columns_of(_arrays(np.zeros(0, dtype=record), config))
    needed = rows * sum(column.row_bytes for column in columns) + (rows * record.itemsize if config.shuffle else 0)
    outputs = [_as_written(s.raw.name, s.target) for s in simulations]
    bad_rows = {s.raw.output_name: written.bad_rows for s, written in zip(simulations, outputs, strict=True)}
    attributes = _attributes(config, list(simulations), mark, bad_rows)
    with (
        Progress("all", rows) as progress,
        _writing(target, rows, columns, attributes, _dropped_rows(simulations), config, stages, needed) as output,
        Outputs() as scratch,
    ):
        blocks: Iterator[tuple[Any, ...]]
        if config.shuffle:
            spill = scratch.scratch(target.with_name(target.name + ".rows")).absolute()
            begins = _scatter(parts, rows, spill, record, config, workers, stages)
            work: Any = _sorted_bucket
            blocks = (
                (spill, begin, end, record, config, output.table, workers.remote)
                for begin, end in itertools.pairwise(begins)
            )
        else:
            work = _copied_block
            blocks = (
                (part, start, stop, record, config, output.table, workers.remote)
                for part in parts
                for start, stop in _pieces(part.rows, config)
            )
        for done in workers.run(work, blocks):
            output.take(done)
            progress.advance(done.rows)
    if not commands.on_terminal():
        speed = rows / max(progress.seconds, 1e-9)
        log.info("all: %d rows into %s, %.1f s, %.0f rows/s", rows, target, progress.seconds, speed)
    return rows


def _pieces(rows: int, config: PreprocessConfig) -> Iterator[tuple[int, int]]:
    step = config.chunk_rows or CHUNK_ROWS
    return ((start, min(start + step, rows)) for start in range(0, rows, step))


def _dropped_rows(simulations: Sequence[_Simulation]) -> dict[str, Any]:
    dropped = {}
    for simulation in simulations:
        with open_h5(simulation.target) as file:
            name = f"dropped_rows/{simulation.raw.output_name}"
            if name in file:
                dropped[simulation.raw.output_name] = dataset(file, name)[()]
    return dropped


# A shuffle in two sequential passes: each row goes to the bucket of its key, and each bucket, which fits into memory,
# is sorted by key. Reading the rows in their new order instead would touch every page of the parts once per row.


def _scatter(
    parts: Sequence[_Part],
    rows: int,
    spill: Path,
    record: Any,
    config: PreprocessConfig,
    workers: Workers,
    stages: Stages,
) -> Any:
    """First pass: write the rows into the file `spill`, and return where each bucket begins there, and the end."""
    count = max(1, math.ceil(rows * record.itemsize / BUCKET_BYTES))
    begins = np.concatenate([[0], np.cumsum(shuffle.bucket_sizes(rows, config.seed, count))])
    free = begins[:-1].copy()

    def blocks() -> Iterator[tuple[Any, ...]]:
        for part in parts:
            for start, stop in _pieces(part.rows, config):
                yield part, start, stop, record, config.seed, free.copy(), spill, workers.remote
                numbers = np.arange(part.first + start, part.first + stop, dtype=np.uint64)
                free[:] += np.bincount(shuffle.buckets(shuffle.keys(numbers, config.seed), count), minlength=count)

    for seconds, written in workers.run(_scatter_block, blocks()):
        stages.add("scatter", seconds, written)
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


def _sorted_bucket(
    spill: Path, begin: int, end: int, record: Any, config: PreprocessConfig, table: Table, durable: bool
) -> _Done:
    """Second pass: rows ``begin:end`` of the combined file."""
    stages = Stages()
    with stages.timed("gather"):
        records = np.empty(end - begin, dtype=record)
        with spill.open("rb", buffering=0) as file:
            file.seek(begin * record.itemsize)
            _fill(file, records)
        records = _taken(records, np.argsort(shuffle.keys(records["row"], config.seed)))
        arrays = _arrays(records, config)
    return _finish(arrays, begin, end - begin, table, durable, stages)


def _taken(records: Any, order: Any) -> Any:
    """``records[order]``, whole records at a time: NumPy would go field by field."""
    return records.view(f"V{records.itemsize}")[order].view(records.dtype)


def _fill(file: Any, records: Any) -> None:
    view = memoryview(records.view(np.uint8))
    while view:
        count = file.readinto(view)
        if not count:
            raise DataError(f"{file.name}: ends early; another program has cut it short: run again")
        view = view[count:]


def _copied_block(
    part: _Part, start: int, stop: int, record: Any, config: PreprocessConfig, table: Table, durable: bool
) -> _Done:
    stages = Stages()
    with stages.timed("gather"):
        arrays = _arrays(_read_records(part, start, stop, record), config)
    return _finish(arrays, part.first + start, stop - start, table, durable, stages)


def _finish(arrays: Arrays, first: int, rows: int, table: Table, durable: bool, stages: Stages) -> _Done:
    if not table.offsets:
        return _Done(first, rows, stages, arrays)
    with stages.timed("write"):
        count = write_rows(table, arrays, first, durable)
    stages.add("write", 0.0, count)
    return _Done(first, rows, stages, None)


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m rheidae.preprocess``."""
    parser = argparse.ArgumentParser(prog="python -m rheidae.preprocess", description=__doc__)
    parser.add_argument("--config", default="config/pre_process.yaml", help="YAML file (default: %(default)s)")
    again = parser.add_mutually_exclusive_group()
    again.add_argument(
        "--resume",
        action="store_true",
        default=True,
        help="leave alone what was made from the same source, configuration and version (default)",
    )
    again.add_argument("--force", action="store_true", help="make every output anew")
    parser.add_argument(
        "--scheduler",
        metavar="WHERE",
        help="tcp://host:port of a Dask scheduler, or local:N for N processes (default: threads of this process)",
    )
    arguments = parser.parse_args(argv)

    def command() -> None:
        config = read_config(arguments.config, PreprocessConfig)
        for entry in preprocess(config, resume=not arguments.force, scheduler=arguments.scheduler):
            state = ", up to date" if entry.up_to_date else ""
            bad = "".join(f", {count} {kind}" for kind, count in entry.bad_rows.items())
            print(f"{entry.name:16s} {entry.rows:9d} rows  {entry.path}{state}{bad}")

    return commands.run(command)


if __name__ == "__main__":
    raise SystemExit(main())
