"""Raw simulation files to training sets.

    python -m rheidae.preprocess --config config/pre_process.yaml

evaluates Box3D for every row and writes one file per simulation and a combined, shuffled one.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from tqdm import tqdm

import rheidae
from rheidae import commands, fourflux
from rheidae.config import PreprocessConfig, RawFile, read_config
from rheidae.exceptions import DataError
from rheidae.files import Outputs, dataset, open_h5, read
from rheidae.mixing import box3d_flux

log = logging.getLogger(__name__)

CHUNK_ROWS = 1 << 16
"""Rows read, evaluated and written at a time: 36 MB of raw input."""

Arrays = dict[str, Any]


class Written(NamedTuple):
    """What `preprocess` wrote for one simulation."""

    name: str
    rows: int
    path: Path


def preprocess(config: PreprocessConfig) -> list[Written]:
    """Evaluate Box3D for every enabled file and write the training sets.

    Parameters
    ----------
    config : PreprocessConfig
        What to read and where to write; see ``config/pre_process.yaml``.

    Returns
    -------
    list of Written
        One entry per simulation, then the combined file.

    Raises
    ------
    DataError
        If a file is missing or malformed, or a row is not physical. The message names file, dataset, row
        and remedy; nothing is written then, and older outputs stay.
    """
    enabled = [file for file in config.files if file.enabled]
    if not enabled:
        raise DataError("no file is enabled; set enabled: true for at least one entry of `files`")
    root = Path(config.output_root)
    written = []
    with Outputs() as outputs:
        parts = []
        for raw in enabled:
            target = root / f"{raw.output_name}_preprocessed.h5"
            part = outputs.create_h5(target)
            rows = _preprocess_file(raw, config, part)
            parts.append(part)
            written.append(Written(raw.name, rows, target))
        target = root / config.output_filename
        rows = _combine(parts, outputs.create_h5(target), config)
        written.append(Written("all", rows, target))
    return written


def _preprocess_file(raw: RawFile, config: PreprocessConfig, out: h5py.File) -> int:
    source = Path(config.data_root) / raw.path
    remedy = "check data_root and path (the sample is written by: python -m rheidae.datasets FOLDER)"
    started = time.perf_counter()
    with open_h5(source, remedy) as file:
        names = config.h5_paths
        F_init = _raw_dataset(file, names.F_init, "F_init")
        F_true = _raw_dataset(file, names.F_true, "F_true")
        if len(F_init) != len(F_true):
            raise DataError(
                f"{source}: {names.F_init!r} has {len(F_init)} rows, {names.F_true!r} has {len(F_true)}; "
                "both need one row per simulation: fetch the file again"
            )
        rows = len(F_init) if raw.max_rows is None else min(raw.max_rows, len(F_init))
        dirnames = _dirnames(file, names.dirnames, len(F_init))
        _write_attributes(out, config, [raw])
        bar = tqdm(total=rows, desc=raw.name, unit="row", disable=not commands.on_terminal())
        with bar:
            for start, stop in _chunks(rows):
                init = _physical(F_init, start, stop)
                true = _physical(F_true, start, stop)
                arrays = _evaluate(init, true, config)
                arrays["sim_id"] = np.full(stop - start, raw.sim_id.encode())
                arrays["dirname"] = dirnames[start:stop]
                _write(out, arrays, start, rows)
                bar.update(stop - start)
    if not commands.on_terminal():
        log.info("%s: %d rows from %s, %.1f s", raw.name, rows, source, time.perf_counter() - started)
    return rows


def _raw_dataset(file: h5py.File, name: str, key: str) -> h5py.Dataset:
    found = dataset(file, name, f"set h5_paths.{key}")
    if found.shape[1:] not in ((4, 2, 3), (4, 6)) or found.dtype.kind not in "fiu":
        raise DataError(
            f"{file.filename}: dataset {name!r} has shape {found.shape}, type {found.dtype}; expected real numbers "
            "(n, 4, 2, 3) or (n, 4, 6): (x, y, z, t), (neutrino, antineutrino), (e, mu, tau). "
            f"Name another dataset in h5_paths.{key} or reorder its axes"
        )
    if len(found) == 0:
        raise DataError(f"{file.filename}: dataset {name!r} has no rows; disable the file in the configuration")
    return found


def _dirnames(file: h5py.File, name: str, rows: int) -> np.ndarray:
    """Directory names as fixed-length byte strings; empty ones where the file has none."""
    if name not in file:
        log.warning("%s: no dataset %r; `dirname` stays empty", file.filename, name)
        return np.zeros(rows, dtype="S1")
    found = dataset(file, name)
    if found.shape != (rows,):
        raise DataError(
            f"{file.filename}: dataset {name!r} has shape {found.shape}; expected ({rows},), one name per row: "
            "name another dataset in h5_paths.dirnames"
        )
    values = found[()]
    return np.array([v if isinstance(v, bytes) else str(v).encode() for v in values], dtype=np.bytes_)


def _chunks(rows: int) -> Iterator[tuple[int, int]]:
    for start in range(0, rows, CHUNK_ROWS):
        yield start, min(start + CHUNK_ROWS, rows)


def _physical(source: h5py.Dataset, start: int, stop: int) -> fourflux.Float:
    """Rows ``start:stop`` as ``(n, 6, 4)`` float64, or the error that names the first bad row."""
    F = fourflux.from_emu(read(source, start, stop).astype(np.float64))
    where = f"{source.file.filename}: dataset {source.name.lstrip('/')!r}"
    found = fourflux.first_unphysical(F)
    if found is not None:
        found = found._replace(row=found.row + start)
        raise DataError(
            f"{where}, {found}; finite numbers with N >= 0 and |F| <= N are needed: "
            "remove or mend the row in the raw file"
        )
    total = fourflux.total_density(F)
    # Files hold float32, whose largest number is 3.4e38 and whose full precision ends at 1.2e-38.
    outside = np.flatnonzero(~((total > 1e-30) & (total < 1e38)))
    if len(outside):
        row = outside[0]
        raise DataError(
            f"{where}, row {row + start}: the total density {total[row]:g} is outside 1e-30 to 1e38, the range of "
            "the single-precision output: remove the row, or give the densities in 1/cm^3"
        )
    return F


def _evaluate(F_init: fourflux.Float, F_true: fourflux.Float, config: PreprocessConfig) -> Arrays:
    """Return all arrays of the preprocessed file for some rows, in the order in which they are written."""
    F_box = box3d_flux(F_init, order=config.lebedev_order, mu_fraction=config.box3d_mu_fraction)
    init, true, box = (F.astype(np.float32) for F in (F_init, F_true, F_box))
    invariants = np.stack([F_init[:, :, fourflux.T], np.linalg.norm(F_init[:, :, :3], axis=2)], axis=2)
    flat = fourflux.flatten
    return {
        "F_init": init,
        "F_true": true,
        "F_box": box,
        "F_init_flat": flat(init),
        "F_true_flat": flat(true),
        "F_box_flat": flat(box),
        "residual": flat((F_true - F_box).astype(np.float32)),
        "input": np.concatenate([flat(init), flat(box)], axis=1),
        "target": flat(true),
        "invariants": invariants.reshape(len(init), 12).astype(np.float32),
    }


def _write(out: h5py.File, arrays: Arrays, start: int, rows: int) -> None:
    for name, values in arrays.items():
        if name not in out:
            out.create_dataset(name, shape=(rows, *values.shape[1:]), dtype=values.dtype)
        out[name][start : start + len(values)] = values


def _write_attributes(out: h5py.File, config: PreprocessConfig, sources: list[RawFile]) -> None:
    out.attrs.update(
        {
            "units": "1/cm^3",
            "species": list(fourflux.SPECIES),
            "components": list(fourflux.COMPONENTS),
            "axes": json.dumps(
                {
                    "F_init, F_true, F_box": "(row, species, component)",
                    "*_flat, residual, target": "(row, 4 * species + component)",
                    "input": "(row, [F_init_flat, F_box_flat])",
                    "invariants": "(row, per species (N, |F|) of F_init)",
                }
            ),
            "layout": "row-major",
            "rheidae_version": rheidae.__version__,
            "config": config.model_dump_json(),
            "sources": json.dumps([str(Path(config.data_root) / raw.path) for raw in sources]),
        }
    )


def _combine(parts: list[h5py.File], out: h5py.File, config: PreprocessConfig) -> int:
    """Write all rows of `parts`, shuffled if the configuration says so; one dataset in memory at a time."""
    rows = sum(len(part["sim_id"]) for part in parts)
    order = np.random.default_rng(config.seed).permutation(rows) if config.shuffle else np.arange(rows)
    for name in parts[0]:
        out.create_dataset(name, data=np.concatenate([part[name][()] for part in parts])[order])
    _write_attributes(out, config, [raw for raw in config.files if raw.enabled])
    return rows


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m rheidae.preprocess``."""
    parser = argparse.ArgumentParser(prog="python -m rheidae.preprocess", description=__doc__)
    parser.add_argument("--config", default="config/pre_process.yaml", help="YAML file (default: %(default)s)")
    arguments = parser.parse_args(argv)

    def command() -> None:
        for entry in preprocess(read_config(arguments.config, PreprocessConfig)):
            print(f"{entry.name:16s} {entry.rows:9d} rows  {entry.path}")

    return commands.run(command)


if __name__ == "__main__":
    raise SystemExit(main())
