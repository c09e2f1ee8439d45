"""Grids of cells: any shape, empty cells, and cells that are not physical; one policy for every scheme and model.

A grid of a simulation holds centres, beams, vacuum outside, and now and then a cell that went wrong. Vacuum is never an
error: nothing is there, and nothing comes out. What becomes of a cell that is not physical (not finite, ``N < 0`` or
``|F| > N``), the caller says by ``invalid``: "raise", or "pass", by which it comes back as NaN, alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from os.path import commonprefix
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rheidae import fourflux
from rheidae.exceptions import FourFluxError

INVALID = ("raise", "pass")
"""What may become of cells that are not physical."""

_FLAT = fourflux.column_names("F")


class Cells:
    """Four-fluxes of a grid as rows, and the way back to its shape.

    Parameters
    ----------
    F : array_like, shape (..., 6, 4) or (..., 24)
        Four-fluxes, also as a data frame of pandas or a DataArray of xarray, whose labels `require_order` looks at.
        What a masked array hides is NaN, so that `invalid` decides.
    name : str
        What messages call it.
    invalid : {"raise", "pass"}
        What becomes of cells that are not physical.

    Attributes
    ----------
    rows : ndarray, shape (n, 6, 4)
        Physical ones, float32 or float64; cells that are passed over are vacuum here.
    shape : tuple of int
        Of the grid, ``()`` for one state.
    invalid : ndarray of bool, shape (n,)
        Cells that are not physical.
    vacuum : ndarray of bool, shape (n,)
        Cells without neutrinos.

    Raises
    ------
    FourFluxError
        If the shape is another, labels are in another order, numbers are not real, or, by ``invalid="raise"``, a cell
        is not physical.
    ValueError
        If `invalid` is neither.
    """

    def __init__(self, F: ArrayLike, name: str = "F", invalid: str = "raise") -> None:
        if invalid not in INVALID:
            raise ValueError(f"invalid={invalid!r} is neither 'raise' nor 'pass'")
        self._like: Any = F
        given = fourflux.unmasked(F)
        flat = given.ndim > 0 and given.shape[-1] == fourflux.FLAT
        if not flat and given.shape[-2:] != (6, 4):
            raise FourFluxError(
                f"{name} has shape {given.shape}; expected (..., 6, 4), species {fourflux.SPECIES}, then (x, y, z, t), "
                "or (..., 24)"
            )
        require_order(F, name, *((_FLAT,) if flat else (fourflux.SPECIES, fourflux.COMPONENTS)))
        self._shape, self.shape = given.shape, given.shape[: -1 if flat else -2]
        self.rows = fourflux.as_four_flux(given.reshape(-1, 6, 4), name)
        from rheidae._fourflux_kernels import unphysical_rows

        self.invalid = np.empty(len(self.rows), dtype=np.bool_)
        count = unphysical_rows(self.rows, fourflux.FLUX_TOLERANCE, self.invalid)
        if count and invalid == "raise":
            unphysical = fourflux.first_unphysical(self.rows)
            assert unphysical is not None
            where = ""
            if len(self.shape) > 1:
                cell = ", ".join(str(i) for i in np.unravel_index(unphysical.row, self.shape))
                where = f" (cell {cell})"
            others = f"; {count - 1} more rows are not physical" if count > 1 else ""
            raise FourFluxError(
                f"{name} {unphysical}{where}{others}. A four-flux needs finite numbers with N >= 0 and |F| <= N: mend "
                "or remove the rows, or let them through as NaN with invalid='pass'"
            )
        if count:
            self.rows = np.where(self.invalid[:, None, None], self.rows.dtype.type(0), self.rows)

    @property
    def vacuum(self) -> NDArray[np.bool_]:
        """Cells without neutrinos, those that are not physical left out."""
        empty: NDArray[np.bool_] = (self.rows[:, :, fourflux.T] == 0).all(axis=1) & ~self.invalid
        return empty

    def per_row(self, value: Any) -> Any:
        """A parameter of shape `shape` as one of shape ``(n,)``; anything else as it is."""
        array = np.asarray(value)
        return array.reshape(-1) if array.ndim > 1 and array.shape == self.shape else value

    def back(self, answer: NDArray[Any]) -> Any:
        """Rows ``(n, 6, 4)``, which may be overwritten, as what came in: shape, names, units; NaN where invalid."""
        if self.invalid.any():
            answer[self.invalid] = np.nan
        return labelled(answer.reshape(self._shape), self._like)


def labelled(values: NDArray[Any], like: Any) -> Any:
    """`values` with the labels and attributes of `like`, of one shape, where it is pandas' or xarray's."""
    package = package_of(like)
    if package == "pandas" and values.ndim == 2:
        return frame_like(values, like, like.columns)
    if package == "xarray":
        return like.copy(data=values)
    return values


def frame_like(values: NDArray[Any], like: Any, columns: Any) -> Any:
    """A data frame of `values` with the index and the attributes of `like`."""
    frame = type(like)(values, index=like.index, columns=columns)
    frame.attrs.update(like.attrs)
    return frame


def require_order(array: Any, name: str, *expected: Sequence[str]) -> None:
    """Raise where labels of the last axes are the names `expected` of each, behind any prefix, in another order.

    Numbers are taken by their place. Labels of pandas or xarray that are none of the package's, as of a code's own
    species, are not looked at.

    Parameters
    ----------
    array : array_like
        Looked at if it is a DataArray of xarray, or a data frame or Series of pandas.
    name : str
        What messages call it.
    *expected : sequence of str
        Names along each of the last axes, in their order.

    Raises
    ------
    FourFluxError
        If so; it says both orders, from where they part.
    """
    package = package_of(array)
    if package not in ("pandas", "xarray"):
        return
    for axis, names in zip(range(-len(expected), 0), expected, strict=True):
        if package == "pandas":
            several = [array.axes[axis]]
        else:
            several = [labels.values for labels in array.coords.values() if labels.dims == (array.dims[axis],)]
        for labels in several:
            found = [str(label) for label in labels]
            prefix, own = commonprefix(found), commonprefix(names)  # noqa: RUF071 - of letters
            wanted = [prefix + label.removeprefix(own) for label in names]
            if found != wanted and sorted(found) == sorted(wanted):
                first = [one != other for one, other in zip(found, wanted, strict=True)].index(True)
                shown = slice(first, first + 6)
                raise FourFluxError(
                    f"{name} has, from place {first} of axis {axis} on, {', '.join(found[shown])}; expected "
                    f"{', '.join(wanted[shown])}: put it in that order, by .sel or .reindex of a DataArray, or by a "
                    "selection of columns"
                )


def package_of(thing: Any) -> str:
    """Name of the package that a thing's class comes from, such as "pandas", without an import of it."""
    return type(thing).__module__.partition(".")[0]
