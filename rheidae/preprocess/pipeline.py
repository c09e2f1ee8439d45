"""From raw simulation files to a file per simulation and a combined, shuffled one."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rheidae import fourflux
from rheidae.config import PreprocessConfig, RawFile, Tolerances
from rheidae.exceptions import DataError, OutputError
from rheidae.preprocess import badrows, fingerprint
from rheidae.preprocess.combine import combine
from rheidae.preprocess.rawfile import RawDatasets, inspect, linked_files, read_growth_rate, read_names
from rheidae.preprocess.rows import Column, columns_of
from rheidae.preprocess.trainingset import (
    Arrays,
    Done,
    attributes,
    complete,
    evaluate,
    example,
    output_columns,
    writing,
)
from rheidae.system.cluster import Workers, open_workers
from rheidae.system.h5 import dataset, open_h5, require_file
from rheidae.system.outputs import Finished, only_writer, require_space
from rheidae.system.progress import Progress, Stages

log = logging.getLogger(__name__)

CHUNK_ROWS = 1 << 14
"""Rows that a thread reads, evaluates and writes at a time, if the configuration does not say: about 30 MB."""

COMPILING_AFTER = 1.0
"""Seconds after which a kernel that does not answer one row is said to be compiled."""

NAMES_BYTES = 32 << 20
"""Directory names of variable length, which are slow to read, are kept between two passes up to this size."""


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
        If the disk is full, outputs cannot be written for another reason, or another run writes into the same folder.
    ClusterError
        If the cluster cannot be reached, or loses its workers.
    """
    started = time.perf_counter()
    enabled = [file for file in config.files if file.enabled]
    if not enabled:
        raise DataError("no file is enabled; set enabled: true for at least one entry of `files`")
    root = Path(config.output_root)
    stages = Stages()
    with only_writer(root) as lock, Finished() as finished, ExitStack() as stack:
        with stages.timed("inspect"):
            simulations = [_inspect(raw, config) for raw in enabled]
        _require_targets(simulations, config)
        pending = [
            s for s in simulations if not (resume and fingerprint.up_to_date(s.target, s.fingerprint, s.columns))
        ]
        combined = root / config.output_filename
        columns = list({column.name: column for s in simulations for column in s.columns}.values())
        mark = fingerprint.of_combined([s.fingerprint for s in simulations], config)
        workers: Workers | None = None
        if pending or not (resume and fingerprint.up_to_date(combined, mark, columns)):
            _require_space(pending, simulations, config)
            workers = open_workers(scheduler, config.threads)
            stack.enter_context(workers)
            with stages.timed("compile"):
                _compile_kernels(config)
            workers.require([lock, *(path for s in simulations for path in s.marks)])
        written = []
        for simulation in simulations:
            if simulation in pending:
                assert workers is not None
                written.append(_preprocess_file(simulation, config, workers, stages, finished))
            else:
                log.info("%s: %s is up to date", simulation.raw.name, simulation.target)
                written.append(_as_written(simulation.raw.name, simulation.target))
        if workers is None:
            log.info("all: %s is up to date", combined)
            written.append(replace(_as_written("all", combined), bad_rows={}))
        else:
            paths = [finished.where(s.target) for s in simulations]
            bad = {s.raw.output_name: entry.bad_rows for s, entry in zip(simulations, written, strict=True)}
            rows = combine(
                paths,
                combined,
                attributes(config, [s.source for s in simulations], mark, bad),
                _dropped_rows(paths),
                config,
                workers,
                stages,
                config.chunk_rows or CHUNK_ROWS,
                finished.name,
            )
            written.append(Written("all", rows, combined))
    for line in stages.lines():
        log.info(line)
    log.info("%-10s %10s %9.2f s", "in all", "", time.perf_counter() - started)
    return written


def _compile_kernels(config: PreprocessConfig) -> None:
    """Call the kernels once, so that compilation is no work in the rates; say so where it is waited for."""
    F = np.zeros((1, 6, 4))
    F[0, :, fourflux.T] = [1.0, 0.3, 0.3, 0.9, 0.3, 0.3]
    F[0, fourflux.NUBAR_E, 2] = 0.4
    message = "compiling kernels, which later runs find in Numba's cache"
    notice = threading.Timer(COMPILING_AFTER, log.info, [message])
    notice.daemon = True
    notice.start()
    try:
        if config.on_bad_rows == "clip":
            badrows.clip(F.copy(), F.copy(), config.tolerances)
        else:
            badrows.classify(F, F, config.tolerances)
        evaluate(F, F, config)
    finally:
        notice.cancel()


# --- before anything is computed ---------------------------------------------------------------------------


class _Simulation(NamedTuple):
    """One raw file, looked at but not read yet."""

    raw: RawFile
    source: Path
    target: Path
    datasets: RawDatasets
    rows: int
    columns: tuple[Column, ...]
    """The datasets of the output, strings as short as can be."""
    marks: dict[Path, dict[str, Any]]
    """Size, time and content of the file, and of those that it links to."""
    fingerprint: str


def _inspect(raw: RawFile, config: PreprocessConfig) -> _Simulation:
    source = Path(config.data_root) / raw.path
    remedy = "check data_root and path (the sample is written by: python -m rheidae.datasets FOLDER)"
    require_file(source, remedy)
    # What changes after this moment is seen once all rows are read.
    marks = {source: fingerprint.of_source(source)}
    datasets = inspect(source, config.h5_paths, raw.axes or config.axes)
    if config.diagnostics == "minimal":
        datasets = datasets._replace(F_true_stddev=None, growth_rate=None)
    root = None if config.allow_external else Path(config.data_root)
    marks |= {path: fingerprint.of_source(path) for path in linked_files(source, datasets, root)}
    return _Simulation(
        raw=raw,
        source=source,
        target=Path(config.output_root) / f"{raw.output_name}_preprocessed.h5",
        datasets=datasets,
        rows=datasets.length if raw.max_rows is None else min(raw.max_rows, datasets.length),
        columns=output_columns(example(config, datasets), config),
        marks=marks,
        fingerprint=fingerprint.of_simulation(list(marks.values()), raw, config),
    )


def _require_targets(simulations: list[_Simulation], config: PreprocessConfig) -> None:
    """Refuse outputs that would overwrite a source, or whose place something else has."""
    targets = [s.target for s in simulations] + [Path(config.output_root) / config.output_filename]
    sources = {path.resolve() for s in simulations for path in s.marks}
    for target in targets:
        if target.resolve() in sources:
            raise DataError(f"{target} is an input and would be an output; choose another output_root or output_name")
        if target.is_dir():
            raise OutputError(f"{target} is a folder and would be an output; choose another output_root or output_name")


def _require_space(pending: list[_Simulation], simulations: list[_Simulation], config: PreprocessConfig) -> None:
    """Refuse at once what cannot fit, all rows counted; what others write meanwhile is seen when it happens."""
    if config.compression != "none":
        return
    row = sum(column.row_bytes for column in output_columns(example(config), config))
    spill = sum(column.row_bytes for column in columns_of(example(config))) if config.shuffle else 0
    rows = sum(s.rows for s in simulations)
    require_space(Path(config.output_root), row * sum(s.rows for s in pending) + (row + spill) * rows)


def _dropped_rows(paths: Sequence[Path]) -> dict[str, Any]:
    """By `output_name`, the rows that the simulations' outputs say were dropped."""
    dropped = {}
    for path in paths:
        with open_h5(path) as file:
            for name, rows in file.get("dropped_rows", {}).items():
                dropped[name] = rows[()]
    return dropped


def _as_written(name: str, path: Path) -> Written:
    with open_h5(path) as file:
        bad = json.loads(file.attrs.get("bad_rows", "{}"))
        return Written(name, len(dataset(file, "sim_id")), path, bad, up_to_date=True)


# --- one simulation --------------------------------------------------------------------------------------


class _Block(NamedTuple):
    """Rows of a raw file that become rows of its output; small, and fit to be sent to another process."""

    datasets: RawDatasets
    start: int
    stop: int
    drop: Any
    """Numbers of the rows in between that are left out."""
    first: int
    """Where the rows go in the output."""
    config: PreprocessConfig
    sim_id: bytes
    names: Any
    """Directory names of the rows; None: to be read."""


def _preprocess_file(
    simulation: _Simulation, config: PreprocessConfig, workers: Workers, stages: Stages, finished: Finished
) -> Written:
    raw, datasets, rows = simulation.raw, simulation.datasets, simulation.rows
    if datasets.dirnames is None:
        log.warning("%s: no dataset %r; `dirname` stays empty", simulation.source, config.h5_paths.dirnames)
    with Progress(raw.name, rows) as progress:
        survey = _Survey({}, np.zeros(0, dtype=np.int64), 1, [])
        if config.on_bad_rows != "error" or datasets.dirnames is not None:
            with stages.timed("survey"):
                survey = _survey(simulation, config, workers, states=config.on_bad_rows != "error")
        kept = rows - len(survey.dropped)
        if kept == 0:
            raise DataError(f"{simulation.source}: all {rows} rows are bad, none is left; disable the file")
        columns = output_columns(example(config, datasets, len(raw.sim_id.encode()), survey.name_bytes), config)
        described = attributes(config, [simulation.source], simulation.fingerprint, survey.counts)
        dropped = {raw.output_name: survey.dropped} if config.on_bad_rows == "drop" else {}
        with writing(simulation.target, kept, columns, described, dropped, config, stages, finished=finished) as output:
            blocks = _blocks(simulation, config, survey)
            try:
                for done in workers.run(_process_block, ((block,) for block in blocks)):
                    output.take(done)
                    progress.advance(done.rows)
                # The one before is on the disk by now.
                finished.name()
            except _BadRowError as error:
                survey = _survey(simulation, config, workers, states=True, count_only=True)
                raise DataError(f"{error}{_summary(survey.counts, rows)}") from None
            _require_unchanged(simulation)
        progress.finish(f"{raw.name}: {kept} rows from {simulation.source}")
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
    for path, mark in simulation.marks.items():
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(f"{path}: gone while it was read ({error.strerror}); fetch the file again") from error
        if (status.st_size, status.st_mtime_ns) != (mark["size"], mark["mtime_ns"]):
            raise DataError(f"{path}: changed while it was read; wait until it is complete, then run again")


def _block_rows(datasets: RawDatasets, config: PreprocessConfig) -> int:
    """Rows of a block: whole chunks of the source, so that none is unpacked twice, unless they are huge."""
    rows = config.chunk_rows or CHUNK_ROWS
    chunk = max(datasets.F_init.rows.chunk, datasets.F_true.rows.chunk)
    return math.ceil(rows / chunk) * chunk if chunk <= 2 * rows else rows


def _blocks(simulation: _Simulation, config: PreprocessConfig, survey: _Survey) -> Iterator[_Block]:
    step = _block_rows(simulation.datasets, config)
    sim_id = simulation.raw.sim_id.encode()
    for start in range(0, simulation.rows, step):
        stop = min(start + step, simulation.rows)
        low, high = np.searchsorted(survey.dropped, [start, stop])
        drop, first = survey.dropped[low:high], start - int(low)
        names = survey.names[start // step] if survey.names else None
        yield _Block(simulation.datasets, start, stop, drop, first, config, sim_id, names)


def _process_block(block: _Block) -> Done:
    """Read and evaluate the rows of a block; runs in a thread or on a cluster."""
    config, datasets, start, stop = block.config, block.datasets, block.start, block.stop
    stages = Stages()
    with stages.timed("read"):
        F_init, F_true = datasets.read(start, stop)
        extra = _extra(datasets, block.sim_id, block.names, start, stop)
    stages.add("read", 0.0, F_init.nbytes + F_true.nbytes + sum(values.nbytes for values in extra.values()))
    with stages.timed("mixing"):
        if config.on_bad_rows == "clip":
            kinds = badrows.clip(F_init, F_true, config.tolerances).left
        else:
            if len(block.drop):
                keep = np.delete(np.arange(stop - start), block.drop - start)
                F_init, F_true = F_init[keep], F_true[keep]
                extra = {name: values[keep] for name, values in extra.items()}
            kinds = badrows.classify(F_init, F_true, config.tolerances)
        if kinds.any():
            raise _BadRowError(_first_bad(datasets, F_init, F_true, kinds, start, config.tolerances))
        arrays = complete({**evaluate(F_init, F_true, config), **extra}, config)
    return Done(block.first, len(F_init), stages, arrays)


def _extra(datasets: RawDatasets, sim_id: bytes, names: Any, start: int, stop: int) -> Arrays:
    """Arrays that are carried along as they are."""
    extra: Arrays = {}
    if datasets.F_true_stddev is not None:
        with np.errstate(over="ignore"):
            extra["F_true_stddev"] = datasets.F_true_stddev.read(start, stop).astype(np.float32)
    if datasets.growth_rate is not None:
        extra["growth_rate_simulated"] = read_growth_rate(datasets.growth_rate, start, stop)
    extra["sim_id"] = np.full(stop - start, sim_id)
    if names is None and datasets.dirnames is not None:
        names = read_names(datasets.dirnames, start, stop)
    extra["dirname"] = np.zeros(stop - start, dtype="S1") if names is None else names
    return extra


def _first_bad(
    datasets: RawDatasets,
    F_init: fourflux.Float,
    F_true: fourflux.Float,
    kinds: badrows.Kinds,
    start: int,
    tolerances: Tolerances,
) -> str:
    row = int(np.flatnonzero(kinds)[0])
    where = (datasets.F_true if kinds[row] >= badrows.IN_FINAL else datasets.F_init).rows.where
    fault = badrows.describe(F_init[row], F_true[row], int(kinds[row]), row + start, tolerances)
    return (
        f"{where}, {fault}; finite numbers with N >= 0, |F| <= N, a total within 1e-30 to 1e38 and equal totals before "
        "and after are needed: remove or mend the row in the raw file, or set on_bad_rows: drop (or clip, for numbers "
        "that are slightly off)"
    )


class _Survey(NamedTuple):
    """What has to be known of all rows before the first one is written."""

    counts: dict[str, int]
    dropped: Any
    name_bytes: int
    names: list[Any]
    """Directory names block by block, where reading them is slow and they are not too many to keep; else empty."""


def _survey(
    simulation: _Simulation, config: PreprocessConfig, workers: Workers, states: bool, count_only: bool = False
) -> _Survey:
    step = _block_rows(simulation.datasets, config)
    counts: Counter[str] = Counter()
    dropped = [np.zeros(0, dtype=np.int64)]
    longest, kept_bytes, names = 1, 0, []
    starts = range(0, simulation.rows, step)
    pieces = ((simulation.datasets, start, min(start + step, simulation.rows), config, states) for start in starts)
    first = None
    for block in workers.run(_survey_block, pieces):
        counts.update(block.counts)
        dropped.append(block.bad)
        first = first or block.first
        longest = max(longest, block.name_bytes)
        if block.names is not None and kept_bytes <= NAMES_BYTES:
            names.append(block.names)
            kept_bytes += block.names.nbytes
    if first and config.on_bad_rows == "clip" and not count_only:
        raise DataError(f"{first}{_summary(dict(counts), simulation.rows)}; clip cannot mend this one")
    rows = np.concatenate(dropped) if config.on_bad_rows == "drop" else dropped[0]
    ordered = {name: counts[name] for name in badrows.KINDS.values() if counts[name]}
    return _Survey(ordered, rows, longest, names if kept_bytes <= NAMES_BYTES else [])


class _BlockSurvey(NamedTuple):
    """What one block adds to the survey."""

    counts: dict[str, int]
    bad: Any
    first: str | None
    name_bytes: int
    names: Any


def _survey_block(datasets: RawDatasets, start: int, stop: int, config: PreprocessConfig, states: bool) -> _BlockSurvey:
    name_bytes, names = 1, None
    if datasets.dirnames is not None:
        kind = np.dtype(datasets.dirnames.dtype)
        if kind.kind != "S":
            names = read_names(datasets.dirnames, start, stop)
        name_bytes = (kind if names is None else names.dtype).itemsize
    if not states:
        return _BlockSurvey({}, np.zeros(0, dtype=np.int64), None, name_bytes, names)
    F_init, F_true = datasets.read(start, stop)
    if config.on_bad_rows == "clip":
        kinds, left = badrows.clip(F_init, F_true, config.tolerances)
    else:
        kinds = left = badrows.classify(F_init, F_true, config.tolerances)
    first = _first_bad(datasets, F_init, F_true, left, start, config.tolerances) if left.any() else None
    return _BlockSurvey(badrows.counted(kinds), np.flatnonzero(kinds) + start, first, name_bytes, names)
