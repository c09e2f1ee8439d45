"""The preprocessed file: its arrays, its attributes, and how it comes to lie complete under its name."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

import rheidae
from rheidae import fourflux
from rheidae.config import PreprocessConfig
from rheidae.linear import growth_rate
from rheidae.mixing.asymptotic import crossings
from rheidae.mixing.box3d import box3d
from rheidae.mixing.schemes import STORED, mix
from rheidae.preprocess import fingerprint
from rheidae.preprocess.rawfile import RawDatasets
from rheidae.preprocess.rows import Column, columns_of, create_datasets, write_rows
from rheidae.system.h5 import create_h5
from rheidae.system.outputs import Finished, Outputs, naming
from rheidae.system.progress import Stages
from rheidae.system.signals import uninterrupted

COMPRESSED_CHUNK_ROWS = 1024
"""Rows of an HDF5 chunk in compressed files, if the configuration does not say."""

MINIMAL = ("input", "target", "sim_id", "dirname")
"""What ``diagnostics: minimal`` writes."""

CARRIED = ("F_true_stddev", "growth_rate_simulated")
"""What a full file holds where the raw file has it."""

Arrays = dict[str, Any]


def evaluate(F_init: fourflux.Float, F_true: fourflux.Float, config: PreprocessConfig) -> Arrays:
    """Return what is computed from the states of some rows: all arrays that are not copies of one another."""
    # One thread, since blocks are worked on side by side.
    result = box3d(
        F_init,
        order=config.box3d_order,
        crossing=config.box3d_crossing,
        mu_fraction=config.box3d_mu_fraction,
        threads=1,
    )
    F_box = result.F_box
    x, y, z, N = np.moveaxis(F_init, 2, 0)
    invariants = np.stack([N, np.sqrt(x * x + y * y + z * z)], axis=2, dtype=np.float32)
    return {
        "F_init": F_init.astype(np.float32),
        "F_true": F_true.astype(np.float32),
        "F_box": F_box.astype(np.float32),
        **{
            STORED[name]: mix(F_init, name, order=config.lebedev_order, threads=1).astype(np.float32)
            for name in _others(config)
        },
        "residual": fourflux.flatten((F_true - F_box).astype(np.float32)),
        "invariants": invariants.reshape(len(F_init), 12),
        "growth_rate": growth_rate(F_init, method="fast").astype(np.float32),
        "has_crossing": _has_crossing(F_init, result.has_crossing),
    }


def _has_crossing(F_init: fourflux.Float, of_the_mean: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether any pair of flavors has a crossing; where mu and tau are alike, the one with their mean says it."""
    any_pair = of_the_mean.copy()
    unlike = np.flatnonzero((F_init[:, [1, 4]] != F_init[:, [2, 5]]).any(axis=(1, 2)))
    if len(unlike):
        any_pair[unlike] = crossings(F_init[unlike], threads=1).any(axis=1)
    return any_pair


def _others(config: PreprocessConfig) -> list[str]:
    """Schemes beside Box3D; a minimal file holds none of them."""
    return [scheme for scheme in config.schemes if scheme != "box3d" and config.diagnostics == "full"]


def complete(arrays: Arrays, config: PreprocessConfig) -> Arrays:
    """Return all arrays of the preprocessed file, in the order in which they are written."""
    arrays = dict(arrays)
    if "F_init" in arrays:
        states = {name: arrays.pop(name) for name in ("F_init", "F_true", "F_box")}
        flat = {f"{name}_flat": fourflux.flatten(F) for name, F in states.items()}
        input_ = np.concatenate([flat[f"{name}_flat"] for name in fourflux.INPUT], axis=1)
        residual = arrays.pop("residual")
        arrays = {**states, **flat, "residual": residual, "input": input_, "target": flat["F_true_flat"], **arrays}
    if config.diagnostics == "minimal":
        return {name: arrays[name] for name in MINIMAL}
    return arrays


def example(
    config: PreprocessConfig, datasets: RawDatasets | None = None, sim_id_bytes: int = 1, name_bytes: int = 1
) -> Arrays:
    """Arrays of no rows, those of `evaluate` first, which say what the output looks like; needs no kernels."""

    def empty(*shape: int) -> Any:
        return np.zeros((0, *shape), dtype=np.float32)

    arrays = {name: empty(6, 4) for name in ("F_init", "F_true", "F_box", *(STORED[name] for name in _others(config)))}
    arrays |= {"residual": empty(24), "invariants": empty(12), "growth_rate": empty()}
    arrays["has_crossing"] = np.zeros(0, dtype=np.bool_)
    if datasets is not None and datasets.F_true_stddev is not None:
        arrays["F_true_stddev"] = empty(6, 4)
    if datasets is not None and datasets.growth_rate is not None:
        arrays["growth_rate_simulated"] = empty()
    arrays["sim_id"] = np.zeros(0, dtype=f"S{max(sim_id_bytes, 1)}")
    arrays["dirname"] = np.zeros(0, dtype=f"S{max(name_bytes, 1)}")
    return arrays


def output_columns(example: Arrays, config: PreprocessConfig) -> tuple[Column, ...]:
    """Return the datasets of the file that `complete` makes of such arrays."""
    return columns_of(complete(example, config))


# --- writing ---------------------------------------------------------------------------------------------


class Done(NamedTuple):
    """What a block did."""

    start: int
    rows: int
    stages: Stages
    arrays: Arrays
    """What goes into the file from row `start` on."""


class Output:
    """A file that is being written, by the process that gave out the blocks, in their order.

    Chunks are written whole, one of each dataset at a time, so that the bytes of a compressed file do not depend on
    the size of the blocks.
    """

    def __init__(
        self,
        file: h5py.File,
        require_written: Callable[[], None],
        columns: Sequence[Column],
        stages: Stages,
        rows: int,
        chunk: int | None,
    ) -> None:
        self._file, self._require_written = file, require_written
        self._names = [column.name for column in columns]
        self._stages = stages
        self._rows, self._chunk = rows, chunk
        self._rest: Arrays = {}

    def take(self, done: Done) -> None:
        """Write a block, and account for it."""
        self._stages.update(done.stages)
        with self._stages.timed("write"):
            count = self._write({name: done.arrays[name] for name in self._names}, done.start, done.start + done.rows)
        self._stages.add("write", 0.0, count)
        self._require_written()

    def _write(self, arrays: Arrays, start: int, stop: int) -> int:
        if self._chunk is None:
            return write_rows(self._file, arrays, start)
        if self._rest:
            arrays = {name: np.concatenate([self._rest[name], values]) for name, values in arrays.items()}
            start = stop - len(arrays[self._names[0]])
        whole = stop if stop == self._rows else stop - stop % self._chunk
        count = 0
        for begin in range(start, whole, self._chunk):
            rows = slice(begin - start, begin - start + self._chunk)
            count += write_rows(self._file, {name: values[rows] for name, values in arrays.items()}, begin)
        self._rest = {name: values[whole - start :].copy() for name, values in arrays.items()} if whole < stop else {}
        return count


@contextmanager
def writing(
    target: Path,
    rows: int,
    columns: tuple[Column, ...],
    attributes: Arrays,
    dropped: dict[str, Any],
    config: PreprocessConfig,
    stages: Stages,
    scratch: int = 0,
    finished: Finished | None = None,
) -> Iterator[Output]:
    """Write the file `target`, which appears when the block ends without an error; each dataset has so many `rows`.

    `dropped`: by `output_name` the numbers of the rows that were left out. `scratch`: bytes that are needed beside it
    meanwhile, for the message if the disk is full. `finished` syncs and names the file; without it, this does.

    Raises
    ------
    OutputError
        If the disk is full, or the file cannot be written for another reason.
    """
    needed = scratch + rows * sum(column.row_bytes for column in columns)
    compressed = config.compression == "gzip"
    chunk = config.h5_chunk_rows or (COMPRESSED_CHUNK_ROWS if compressed else None)
    level = config.compression_level if compressed else None
    with naming(target, needed):
        with ExitStack() as stack:
            outputs = stack.enter_context(Outputs(needed))
            path = outputs.path(target)
            with create_h5(path) as (file, require_written):
                with uninterrupted():
                    create_datasets(file, rows, columns, chunk, level)
                    file.attrs.update(attributes)
                    for name, numbers in dropped.items():
                        file.create_dataset(f"dropped_rows/{name}", data=numbers)
                yield Output(file, require_written, columns, stages, rows, chunk)
            if finished is not None:
                with uninterrupted():
                    finished.add(outputs)
                    stack.pop_all()
                return
            started = time.perf_counter()
        stages.add("sync", time.perf_counter() - started)


def attributes(config: PreprocessConfig, sources: Sequence[Path], mark: str, bad_rows: dict[str, Any]) -> Arrays:
    """Return the attributes of a file made from `sources`, whose fingerprint is `mark`."""
    described = {
        f"F_init, F_true, {', '.join(STORED.values())}, F_true_stddev": "(row, species, component)",
        "*_flat, residual, target": "(row, 4 * species + component)",
        "input": "(row, [F_init_flat, F_box_flat])",
        "invariants": "(row, per species (N, |F|) of F_init)",
        "growth_rate, growth_rate_simulated": "(row), 1/s: regression of linear stability, the simulation's own",
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
        "config": config.model_dump_json(exclude={"chunk_rows", "threads", "allow_external"}),
        "sources": json.dumps([str(source) for source in sources]),
        "on_bad_rows": config.on_bad_rows,
        "bad_rows": json.dumps(bad_rows),
        fingerprint.ATTRIBUTE: mark,
    }
