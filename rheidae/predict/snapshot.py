"""Files of moments: which datasets hold what, read and written in blocks of cells."""

from __future__ import annotations

import math
from collections.abc import Iterator
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Annotated, Literal

import h5py
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from rheidae import moments
from rheidae.config import Axes, Positive, Section, read_config
from rheidae.exceptions import DataError
from rheidae.mixing.transition import of_species
from rheidae.preprocess.rawfile import DIRECT, in_order, possible_axes, stated_axes
from rheidae.system.h5 import H5_ERRORS, dataset, present

Array = NDArray[np.float64]
Block = tuple[slice, ...]

PRESETS = ("snapshot", "raw", "preprocessed")
"""Layouts that ship with the package, in ``rheidae/predict/presets``."""


class MomentLayout(Section):
    """Names and axes of the datasets of a file, in a YAML file such as those in ``rheidae/predict/presets``.

    Either `density` and `flux`, a dataset per species on a grid of any shape, or `four_flux`, all in one dataset.
    """

    species: Literal[3, 4, 6] = 3
    heavy_sum: Annotated[int, Field(gt=0)] | None = None
    density: list[str] | None = None
    flux: list[str] | None = None
    component_axis: int = 0
    four_flux: str | None = None
    axes: Axes | list[Literal["row", "species", "component"]] | None = None
    unit: Positive = 1.0

    @model_validator(mode="after")
    def _one_way(self) -> MomentLayout:
        if (self.four_flux is None) == (self.density is None) or (self.density is None) != (self.flux is None):
            raise ValueError("give density and flux, or four_flux alone")
        if self.density is not None and self.flux is not None:
            if not len(self.density) == len(self.flux) == self.species:
                raise ValueError(f"density and flux must name {self.species} datasets each, one per species")
            seen = set()
            for key, names in (("density", self.density), ("flux", self.flux)):
                for name in names:
                    if name.strip("/") in seen:
                        raise ValueError(f"{key} names {name!r} a second time; each species has datasets of its own")
                    seen.add(name.strip("/"))
            moments.division(self.species, self.heavy_sum)
        return self

    @property
    def names(self) -> list[str]:
        """All datasets that are read."""
        return [self.four_flux] if self.four_flux is not None else [*(self.density or []), *(self.flux or [])]


def read_layout(layout: str | Path | None, file: h5py.File) -> MomentLayout:
    """Return the layout of an open file: a preset by name, a YAML file, or None for the preset whose datasets it has.

    Raises `ConfigError` if the YAML file is not as it should be, `DataError` if no preset fits.
    """
    if layout is not None and str(layout) not in PRESETS:
        return read_config(layout, MomentLayout)
    for name in PRESETS if layout is None else (str(layout),):
        with resources.as_file(resources.files("rheidae.predict") / f"presets/{name}.yaml") as path:
            known = read_config(path, MomentLayout)
        if layout is not None or all(present(file, wanted) for wanted in known.names):
            return known
    raise DataError(
        f"{file.filename}: holds {', '.join(sorted(file)) or 'nothing'}, which none of the layouts "
        f"{', '.join(PRESETS)} has; name the datasets in a YAML file (--layout), such as rheidae/predict/presets has"
    )


class Snapshot:
    """Cells of an open file, block by block, as four-fluxes of six species; `shape` is the grid's, ``(n,)`` of rows.

    Raises `DataError` if a dataset is missing, or has another shape than the others, or the layout's component axis is
    none of it; the message names it.
    """

    def __init__(self, file: h5py.File, layout: MomentLayout) -> None:
        self.layout = layout
        self._sources = [dataset(file, name, "name another one in the layout (--layout)") for name in layout.names]
        for name, source in zip(layout.names, self._sources, strict=True):
            if source.shape is None or source.dtype.kind not in "fiu":
                raise DataError(f"{file.filename}: dataset {name!r} has type {source.dtype}; expected real numbers")
        first = self._sources[0]
        self.dtype = np.dtype(np.float32 if first.dtype == np.float32 else np.float64)
        if layout.four_flux is not None:
            self._axes = self._read_axes(file, first)
            self.shape: tuple[int, ...] = (first.shape[self._axes.index("row")],)
            return
        self.shape = first.shape
        axes = len(self.shape) + 1
        if not -axes <= layout.component_axis < axes:
            raise DataError(
                f"{file.filename}: component_axis: {layout.component_axis} is none of the {axes} axes of a flux, where "
                f"{layout.names[0]!r} has shape {self.shape}; name one from {-axes} to {axes - 1} (--layout)"
            )
        axis = layout.component_axis % axes
        with_components = (*self.shape[:axis], 3, *self.shape[axis:])
        self._axis = axis
        for source, name in zip(self._sources, layout.names, strict=True):
            expected = self.shape if name in (layout.density or []) else with_components
            if source.shape != expected:
                raise DataError(
                    f"{file.filename}: dataset {name!r} has shape {source.shape}; {layout.names[0]!r} has "
                    f"{self.shape}, so that {expected} is expected (component_axis: {layout.component_axis})"
                )

    def _read_axes(self, file: h5py.File, source: h5py.Dataset) -> tuple[str, ...]:
        where = f"{file.filename}: dataset {self.layout.four_flux!r} has shape {source.shape}"
        readings = list(possible_axes(source.shape))
        if len(source.shape) == 3 and source.shape[1:] == (6, 4):
            readings.insert(0, DIRECT)
        readings = list(dict.fromkeys(readings))
        if self.layout.axes is not None:
            readings = [axes for axes in readings if axes == tuple(self.layout.axes)]
        elif (said := stated_axes(source)) in readings:
            readings = [said]
        if len(readings) != 1:
            many = " or ".join(f"[{', '.join(axes)}]" for axes in readings) or "no four-fluxes of six species"
            raise DataError(f"{where}, which is {many}; say which by `axes` in the layout (--layout)")
        return readings[0]

    def blocks(self, cells: int) -> Iterator[Block]:
        """Slices that cover the grid in order, each of at most `cells` cells."""
        axis = 0
        while axis < len(self.shape) - 1 and math.prod(self.shape[axis + 1 :]) > cells:
            axis += 1
        if not self.shape:
            yield ()
            return
        step = max(1, cells // max(1, math.prod(self.shape[axis + 1 :])))
        for before in product(*(range(size) for size in self.shape[:axis])):
            for start in range(0, self.shape[axis], step):
                fixed = tuple(slice(index, index + 1) for index in before)
                yield (*fixed, slice(start, min(start + step, self.shape[axis])))

    def read(self, block: Block) -> Array:
        """Four-fluxes ``(n, 6, 4)`` of a block, in the unit of the file; raises `DataError` if it cannot be read."""
        try:
            if self.layout.four_flux is not None:
                place = tuple(block[0] if axis == "row" else slice(None) for axis in self._axes)
                values = np.asarray(self._sources[0][place], dtype=np.float64)
                return in_order(values, self._axes)
            half = self.layout.species
            density = np.stack([np.asarray(source[block], dtype=np.float64) for source in self._sources[:half]])
            place = self._with_components(block)
            flux = np.stack([np.asarray(source[place], dtype=np.float64) for source in self._sources[half:]])
        except H5_ERRORS as error:
            raise DataError(f"{self._sources[0].file.filename}: cannot be read ({error}); fetch it again") from error
        six = moments.to_six(
            density, flux, species=half, heavy_sum=self.layout.heavy_sum, component_axis=self._axis + 1
        )
        return six.reshape(-1, 6, 4)

    def _with_components(self, block: Block) -> Block:
        full = (*block, *(slice(None) for _ in range(len(self.shape) - len(block))))
        return (*full[: self._axis], slice(None), *full[self._axis :])

    def matrices(self, six: Array) -> Array:
        """Transition matrices of the species of the file from those of six."""
        return of_species(six, self.layout.species if self.layout.four_flux is None else 6, self.layout.heavy_sum)

    def create(self, file: h5py.File, group: str) -> None:
        """Make empty datasets for four-fluxes, named as those that were read, in `group` of an open file."""
        if self.layout.four_flux is not None:
            file.create_dataset(f"{group}/F", (*self.shape, 6, 4), self.dtype)
            return
        for source, name in zip(self._sources, self.layout.names, strict=True):
            file.create_dataset(f"{group}/{name}", source.shape, self.dtype)

    def write(self, file: h5py.File, group: str, block: Block, F: Array) -> None:
        """Write four-fluxes ``(n, 6, 4)`` of a block, heavy species summed as they were read."""
        if self.layout.four_flux is not None:
            file[f"{group}/F"][block[0]] = F
            return
        shape = tuple(len(range(*part.indices(size))) for part, size in zip(block, self.shape, strict=False))
        grid = F.reshape(*shape, *self.shape[len(block) :], 6, 4)
        summed = moments.from_six(
            grid, species=self.layout.species, heavy_sum=self.layout.heavy_sum, component_axis=self._axis + 1
        )
        place = self._with_components(block)
        for index, (n, f) in enumerate(zip(self.layout.density or [], self.layout.flux or [], strict=True)):
            file[f"{group}/{n}"][block] = summed.density[index]
            file[f"{group}/{f}"][place] = summed.flux[index]
