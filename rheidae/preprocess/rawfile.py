"""Raw simulation files: which dataset axis is which, and rows as four-fluxes.

Emu writes ``(row, component, nu_nubar, flavor)`` = ``(n, 4, 2, 3)``, or with the last two axes joined
``(row, component, species)`` = ``(n, 4, 6)``. Julia and Fortran write the axes in reverse, and other codes permute
them. The sizes tell the axes apart unless the number of rows is one of them.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from rheidae import fourflux
from rheidae.config import H5Paths
from rheidae.exceptions import DataError
from rheidae.preprocess.rows import RowSource, locate, read_rows
from rheidae.system.h5 import H5_ERRORS, dataset, open_h5, present

AXIS_NAMES = (("row", "component", "nu_nubar", "flavor"), ("row", "component", "species"))
"""Names of the axes, in the order in which Emu writes them."""

DIRECT = ("row", "species", "component")
"""Those of four-fluxes as this package has them."""

SIZES = {"component": 4, "nu_nubar": 2, "flavor": 3, "species": 6}


class FourFluxRows(NamedTuple):
    """A dataset of four-fluxes: its rows, and the names of its axes."""

    rows: RowSource
    axes: tuple[str, ...]

    def read(self, start: int, stop: int) -> fourflux.Float:
        """Rows ``start:stop`` as ``(n, 6, 4)`` float64."""
        raw = read_rows(self.rows, start, stop)
        if self.rows.axis != self.axes.index("row"):  # behind an axis of length one
            raw = raw[0]
        with np.errstate(over="ignore"):  # wider numbers than float64 become infinite, and are classified as such
            return np.ascontiguousarray(in_order(raw, self.axes), dtype=np.float64)


class RawDatasets(NamedTuple):
    """What one raw file holds; small, and fit to be sent to another process."""

    F_init: FourFluxRows
    F_true: FourFluxRows
    F_true_stddev: FourFluxRows | None
    growth_rate: RowSource | None
    dirnames: RowSource | None
    length: int
    """Number of rows."""
    stable: RowSource | None = None
    """Which rows stay as they are; of files without final states, whose `F_true` is `F_init`."""

    def read(self, start: int, stop: int) -> tuple[fourflux.Float, fourflux.Float]:
        """Initial and final states of rows ``start:stop``; those that are not stable have no final one, but NaN."""
        F_init = self.F_init.read(start, stop)
        if self.stable is None:
            return F_init, self.F_true.read(start, stop)
        stable = read_rows(self.stable, start, stop).reshape(-1) == 1
        return F_init, np.where(stable[:, None, None], F_init, np.nan)


def inspect(path: str | Path, names: H5Paths, axes: Sequence[str] | None) -> RawDatasets:
    """Open a raw file and find its datasets, by their `names` and those of their `axes`, else told by their sizes.

    Raises `DataError` if the file is missing or malformed, or the sizes leave more than one reading. The message names
    file, dataset and remedy.
    """
    with open_h5(path) as file:
        init_name, true_name = (_older(file, name) for name in (names.F_init, names.F_true))
        F_init = _four_flux(file, path, init_name, "F_init", axes)
        count = F_init.rows.length
        stable = None
        if not present(file, true_name) and present(file, names.stable):
            stable = _per_row(file, path, names.stable, "stable", count)
            if np.dtype(stable.dtype).kind not in "biuf":
                raise DataError(f"{stable.where} has type {stable.dtype}; expected 1 for stable rows, else 0")
        F_true = F_init if stable else _four_flux(file, path, true_name, "F_true", axes)
        if count != F_true.rows.length:
            raise DataError(
                f"{path}: {names.F_init!r} has {count} rows, {names.F_true!r} has {F_true.rows.length}; "
                "both need one row per simulation: fetch the file again"
            )
        stddev = None
        if present(file, names.F_true_stddev):
            stddev = _four_flux(file, path, names.F_true_stddev, "F_true_stddev", axes)
            if stddev.rows.length != count:
                raise DataError(f"{stddev.rows.where} has {stddev.rows.length} rows; expected {count}, {_one_per_row}")
        growth_rate = dirnames = None
        if present(file, names.growth_rate):
            growth_rate = _per_row(file, path, names.growth_rate, "growth_rate", count)
            if np.dtype(growth_rate.dtype).kind not in "fiu":
                raise DataError(f"{growth_rate.where} has type {growth_rate.dtype}; expected real numbers, in 1/s")
        if present(file, names.dirnames):
            dirnames = _per_row(file, path, names.dirnames, "dirnames", count)
            stored = dataset(file, names.dirnames, "name another one in h5_paths.dirnames")
            if h5py.check_string_dtype(stored.dtype) is None and stored.dtype.kind not in "Siu":
                raise DataError(
                    f"{dirnames.where} has type {stored.dtype}; expected strings: "
                    "name another dataset in h5_paths.dirnames"
                )
    return RawDatasets(F_init, F_true, stddev, growth_rate, dirnames, count, stable)


_one_per_row = "one per row"


def _older(file: h5py.File, name: str) -> str:
    """The name, or what earlier files, in units of the total density, called the same dataset."""
    older = name.replace("(1|ccm)", "_Nsum1")
    return older if not present(file, name) and present(file, older) else name


def linked_files(path: str | Path, datasets: RawDatasets, root: Path | None = None) -> list[Path]:
    """Other files that hold rows of a raw file, which may keep links, virtual datasets and external storage.

    They have to lie in `root`, links resolved; without it anywhere, even where a stranger's file points to. Raises
    `DataError` if one is not there (HDF5 would read the rows of a missing part as zeros), or lies elsewhere.
    """
    stddev = datasets.F_true_stddev.rows if datasets.F_true_stddev else None
    carried = (stddev, datasets.growth_rate, datasets.dirnames, datasets.stable)
    behind: dict[Path, str] = {}
    with open_h5(path) as file:
        for rows in (datasets.F_init.rows, datasets.F_true.rows, *carried):
            if rows is None:
                continue
            try:
                for other in _behind(dataset(file, rows.name), rows.where, frozenset()):
                    behind.setdefault(other, rows.where)
            except H5_ERRORS as error:
                raise DataError(f"{rows.where} cannot be opened ({error}); fetch the file again") from error
    others = {other: where for other, where in behind.items() if not other.samefile(path)}
    for other, where in others.items():
        if root is not None and not other.resolve().is_relative_to(root.resolve()):
            raise DataError(
                f"{where} takes rows from {other}, which is outside of data_root; if they belong to the file, set "
                "allow_external: true"
            )
    return list(others)


def _behind(source: h5py.Dataset, where: str, seen: frozenset[tuple[Path, str]]) -> Iterator[Path]:
    """The files that hold the numbers of a dataset."""
    own = Path(os.path.abspath(source.file.filename))
    yield own
    seen |= {(own, source.name.strip("/"))}
    creation = source.id.get_create_plist()
    for index in range(creation.get_external_count()):
        yield _existing([Path(os.fsdecode(creation.get_external(index)[0]))], where)
    for part in source.virtual_sources() if source.is_virtual else []:
        places = [own] if part.file_name == "." else [own.parent / part.file_name, Path(part.file_name)]
        path = _existing(places, where)
        if (path, part.dset_name.strip("/")) in seen:
            raise DataError(f"{where} takes its rows from itself; fetch the file again")
        with open_h5(path) as file:
            yield from _behind(dataset(file, part.dset_name), where, seen)


def _existing(places: Sequence[Path], where: str) -> Path:
    """The first of the places, in HDF5's order, where there is a file."""
    for path in places:
        if path.is_file():
            return Path(os.path.abspath(path))
    raise DataError(f"{where} takes rows from {places[-1]}, which is not there; fetch that file too")


def _four_flux(file: h5py.File, path: str | Path, name: str, key: str, axes: Sequence[str] | None) -> FourFluxRows:
    stored = dataset(file, name, f"set h5_paths.{key}")
    where = f"{path}: dataset {name!r}"
    try:
        shape, dtype = stored.shape, stored.dtype
        said = stated_axes(stored)
    except H5_ERRORS as error:
        raise DataError(f"{where} is of a type that cannot be read ({error}); fetch the file again") from error
    expected = (
        "expected real numbers (n, 4, 2, 3) or (n, 4, 6): (x, y, z, t), (neutrino, antineutrino), (e, mu, tau), "
        f"in any order. Name another dataset in h5_paths.{key}"
    )
    if shape is None or dtype.kind not in "fiu":
        raise DataError(f"{where} has shape {shape}, type {dtype}; {expected}")
    readings = possible_axes(shape)
    first = 0
    if not readings and shape[:1] == (1,):
        readings, first = possible_axes(shape[1:]), 1
    if not readings and sorted(shape[1:]) in ([2, 2, 4], [4, 4]):
        raise DataError(
            f"{where} has shape {shape}, four-fluxes of two flavors (nf = 2); three are needed: write e, mu and tau, "
            "each of the latter with half of the numbers of x"
        )
    if not readings:
        raise DataError(f"{where} has shape {shape}, type {dtype}; {expected} or reorder its axes")
    if axes is not None:
        if tuple(axes) not in readings:
            raise DataError(
                f"{where} has shape {shape}, which axes: [{', '.join(axes)}] does not fit; it could be "
                f"{_listed(readings)}: set axes: to one of them, or remove the key"
            )
        readings = [tuple(axes)]
    elif said in readings:
        readings = [said]
    if len(readings) > 1:
        raise DataError(
            f"{where} has shape {shape}, which can be read as {_listed(readings)}; say which in the configuration, "
            f"for all files or for this one, such as\n  axes: [{', '.join(readings[0])}]"
        )
    row_axis = readings[0].index("row") + first
    if shape[row_axis] == 0:
        raise DataError(f"{where} has no rows; disable the file in the configuration")
    return FourFluxRows(locate(file, name, row_axis), readings[0])


def stated_axes(stored: h5py.Dataset) -> tuple[str, ...]:
    """Names of the axes by an attribute `axes`: one text with commas between, or a text for each; else none known."""
    names = np.ravel(stored.attrs.get("axes", "")).tolist()
    texts = [name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in names]
    return tuple(name.strip() for name in ",".join(texts).split(","))


def in_order(raw: fourflux.Float, axes: Sequence[str]) -> fourflux.Float:
    """Rows ``(n, 6, 4)`` of an array with these axes, in any order."""
    layout = next(layout for layout in AXIS_NAMES if len(layout) == len(axes))
    order = (layout[0], *layout[2:], layout[1])
    return raw.transpose([axes.index(axis) for axis in order]).reshape(-1, 6, 4)


def possible_axes(shape: Sequence[int]) -> list[tuple[str, ...]]:
    """All orders of the axes that fit a shape; Emu's own first."""
    for layout in AXIS_NAMES:
        if len(shape) == len(layout):
            return [
                axes
                for axes in itertools.permutations(layout)
                if all(SIZES.get(axis, size) == size for axis, size in zip(axes, shape, strict=True))
            ]
    return []


def _listed(readings: Sequence[Sequence[str]]) -> str:
    return " or ".join(f"[{', '.join(axes)}]" for axes in readings)


def _per_row(file: h5py.File, path: str | Path, name: str, key: str, count: int) -> RowSource:
    stored = dataset(file, name, f"name another one in h5_paths.{key}")
    where = f"{path}: dataset {name!r}"
    try:
        shape = stored.shape
        _ = stored.dtype
    except H5_ERRORS as error:
        raise DataError(f"{where} is of a type that cannot be read ({error}); fetch the file again") from error
    # Fortran keeps a single column as a matrix, and MATLAB knows nothing else.
    if shape is None or math.prod(shape) != count or max(shape, default=0) != count:
        raise DataError(
            f"{where} has shape {shape}; expected ({count},), {_one_per_row}: name another dataset in h5_paths.{key}"
        )
    return locate(file, name, shape.index(count))


def read_names(names: RowSource, start: int, stop: int) -> Any:
    """Directory names of rows ``start:stop`` as fixed-length byte strings, as long as the longest of them."""
    values = read_rows(names, start, stop).reshape(-1)
    if values.dtype.kind == "S":
        return values
    try:
        encoded = [
            value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogateescape")
            for value in values.tolist()
        ]
        return np.array(encoded, dtype=np.bytes_)
    except ValueError as error:
        raise DataError(f"{names.where}, rows {start} to {stop - 1}: is not a string ({error})") from error


def read_growth_rate(rates: RowSource, start: int, stop: int) -> Any:
    """Growth rates of rows ``start:stop`` as float32, 1/s."""
    with np.errstate(over="ignore"):
        return read_rows(rates, start, stop).reshape(-1).astype(np.float32)
