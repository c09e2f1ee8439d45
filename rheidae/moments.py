"""Moments as simulation codes carry them: three, four or six species, axes in any place, to six four-fluxes and back.

Most codes evolve three species: electron neutrinos, electron antineutrinos, and one heavy entry that stands for mu, tau
and their antineutrinos together. `to_six` divides that entry evenly among the species that it sums; `from_six` adds
their answers up again, so that what a code carries is conserved. Where the heavy species start alike they stay
alike in every scheme and model here: nothing is lost on the way.

The schemes take moments of the *number* of neutrinos, fluxes over c, in an orthonormal frame, best that of the fluid,
in which the closure is meant to hold. For moments of the energy, and for energy groups, use the transition matrix: fast
conversion gives all energies the same probabilities.

Both also take and give DataArrays of xarray and data frames of pandas. A DataArray's species and components are its
dimensions of these names, wherever they are, or those at the places that the arguments say; dimensions, coordinates,
attributes (units) and the name of the densities stay. A frame has a row per cell: the densities a column per species,
the fluxes three (x, y, z), species by species; its index and attributes stay. ``from_six(F, like=(density, flux))``
gives all labels as they were. Species and components are taken by their place: labels that are the package's names in
another order are an error, others are not looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rheidae.cells import frame_like, labelled, package_of, require_order
from rheidae.exceptions import FourFluxError
from rheidae.fourflux import COMPONENTS, column_names, unmasked

SPECIES: dict[int, tuple[str, ...]] = {
    3: ("nu_e", "nubar_e", "nu_x"),
    4: ("nu_e", "nubar_e", "nu_x", "nubar_x"),
    6: ("nu_e", "nu_mu", "nu_tau", "nubar_e", "nubar_mu", "nubar_tau"),
}
"""Order of the species by their number; ``nu_x`` of four species is mu and tau, of three also their antineutrinos."""

# Which of three or four entries each of the six species is part of.
_ENTRY = {3: (0, 2, 2, 1, 2, 2), 4: (0, 2, 2, 1, 3, 3), 6: (0, 1, 2, 3, 4, 5)}
_SUMMED = {3: 4, 4: 2, 6: 1}

Float = NDArray[np.float64]


class Moments(NamedTuple):
    """Densities and fluxes, as `from_six` returns them.

    Attributes
    ----------
    density : ndarray, DataArray or DataFrame
        Number densities, the species along `species_axis`.
    flux : ndarray, DataArray or DataFrame
        Number fluxes over c, an axis of (x, y, z) more.
    """

    density: Any
    flux: Any


def to_six(
    density: Any,
    flux: Any = None,
    *,
    species: int = 3,
    heavy_sum: int | None = None,
    species_axis: int | None = None,
    component_axis: int | None = None,
) -> Any:
    """Four-fluxes of six species from a code's moments.

    Parameters
    ----------
    density : array_like, shape (species, ...) or (..., species, 4); DataArray or DataFrame
        Number densities, any one unit; or, without `flux`, four-fluxes (x, y, z, t).
    flux : array_like, shape (species, 3, ...), optional
        Number fluxes over c in the unit of `density`, components in an orthonormal frame; labelled as `density` is.
    species : {3, 4, 6}
        How many species there are, in the order of `SPECIES`.
    heavy_sum : int, optional
        How many species a heavy entry is the sum of. Default: 4 of three, 2 of four. 1 if the code carries one
        representative heavy species.
    species_axis : int, optional
        Axis of the species, in `density` and in `flux`. Default: the first, or the last but one without `flux`.
    component_axis : int, optional
        Axis of the components in `flux` (or in `density`, without `flux`). Default: the second, or the last.

    Returns
    -------
    ndarray or DataArray, shape (..., 6, 4), or DataFrame, shape (n, 24)
        float64, the remaining axes in their order; what `rheidae.mix` and models take.

    Raises
    ------
    FourFluxError
        If the shapes do not fit together, labels are the package's in another order, coordinates or indices of
        `density` and `flux` differ, or numbers are not real.
    ValueError
        If `species` or `heavy_sum` is not one of the allowed values.

    Examples
    --------
    >>> to_six([1.0, 0.9, 2.0], np.zeros((3, 3)))[:, 3]  # nu_x is a sum of four
    array([1. , 0.5, 0.5, 0.9, 0.5, 0.5])
    """
    entries, summed = division(species, heavy_sum)
    options: dict[str, Any] = {"species": species, "heavy_sum": heavy_sum}
    if package_of(density) == "xarray":
        return _six_of_dataarrays(density, flux, species_axis, component_axis, options)
    if package_of(density) == "pandas":
        return _six_of_frames(density, flux, options)
    states = _joined(density, flux, species, species_axis, component_axis)
    six = states[..., entries, :]
    heavy = [i for i, entry in enumerate(entries) if entries.count(entry) > 1]
    six[..., heavy, :] /= summed
    return six


def from_six(
    F: Any,
    *,
    species: int = 3,
    heavy_sum: int | None = None,
    species_axis: int = 0,
    component_axis: int = 1,
    like: tuple[Any, Any] | None = None,
) -> Moments:
    """Return a code's moments from four-fluxes of six species: `to_six` undone, heavy species added up.

    Parameters
    ----------
    F : array_like or DataArray, shape (..., 6, 4), or DataFrame, shape (n, 24)
        Four-fluxes.
    species, heavy_sum : int
        As of `to_six`. With ``heavy_sum=1`` the heavy entry is the mean of its species.
    species_axis, component_axis : int
        Where the species go in both arrays, and the components in the fluxes; not of data frames.
    like : (density, flux), optional
        DataArrays or DataFrames, usually those that `to_six` was given: the order of their dimensions, their
        coordinates, columns, names and attributes are those of the answer.

    Returns
    -------
    Moments
        ``density (species, ...)`` and ``flux (species, 3, ...)`` with the default axes; of a DataFrame ``(n, species)``
        and ``(n, 3 species)``.

    Raises
    ------
    FourFluxError
        If `F` has another shape, or its labels are the package's in another order.
    ValueError
        As of `to_six`.
    """
    options: dict[str, Any] = {"species": species, "heavy_sum": heavy_sum}
    if package_of(F) == "xarray":
        return _dataarrays_of_six(F, (species_axis, component_axis), like, options)
    if package_of(F) == "pandas":
        return _frames_of_six(F, like, options)
    entries, summed = division(species, heavy_sum)
    six = _real(F, "F")
    if six.ndim < 2 or six.shape[-2:] != (6, 4):
        raise FourFluxError(f"F has shape {six.shape}; expected (..., 6, 4)")
    states = np.zeros((*six.shape[:-2], species, 4))
    for i, entry in enumerate(entries):
        states[..., entry, :] += six[..., i, :]
    for entry in set(entries):
        states[..., entry, :] *= summed / entries.count(entry) if entries.count(entry) > 1 else 1.0
    return Moments(
        np.moveaxis(states[..., 3], -1, species_axis),
        np.moveaxis(states[..., :3], (-2, -1), (species_axis, component_axis)),
    )


def division(species: int, heavy_sum: int | None) -> tuple[list[int], int]:
    """Entry of each of the six species, and how many of them a heavy entry sums."""
    if species not in SPECIES:
        raise ValueError(f"species={species!r} is not 3, 4 or 6")
    summed = _SUMMED[species] if heavy_sum is None else heavy_sum
    if summed not in (1, _SUMMED[species]):
        raise ValueError(f"heavy_sum={heavy_sum!r} of {species} species is neither 1 nor {_SUMMED[species]}")
    return list(_ENTRY[species]), summed


def _real(array: ArrayLike, name: str) -> NDArray[Any]:
    numbers = unmasked(array)
    if numbers.dtype.kind not in "fiu":
        raise FourFluxError(f"{name} has dtype {numbers.dtype}; expected real numbers")
    return numbers


def _joined(
    density: ArrayLike, flux: ArrayLike | None, species: int, species_axis: int | None, component_axis: int | None
) -> Float:
    """``(..., species, 4)`` float64, a new array."""
    n = _real(density, "density")
    if flux is None:
        axes = (-2 if species_axis is None else species_axis, -1 if component_axis is None else component_axis)
        states = _moved(n, axes, (species, 4), "density")
        return np.array(states, dtype=np.float64)
    s = 0 if species_axis is None else species_axis
    n = _moved(n, (s,), (species,), "density")
    f = _moved(_real(flux, "flux"), (s, 1 if component_axis is None else component_axis), (species, 3), "flux")
    if f.shape[:-1] != n.shape:
        raise FourFluxError(
            f"density has the grid {n.shape[:-1]} and flux {f.shape[:-2]}, beside the axes of species and components; "
            "they have to be the same"
        )
    return np.concatenate([f, n[..., None]], axis=-1, dtype=np.float64)


def _moved(array: NDArray[Any], axes: tuple[int, ...], sizes: tuple[int, ...], name: str) -> NDArray[Any]:
    """`array` with these axes last, which must have these sizes."""
    try:
        moved = np.moveaxis(array, axes, range(-len(axes), 0))
    except ValueError as error:
        raise FourFluxError(f"{name} has shape {array.shape}: {error}") from error
    if moved.shape[-len(axes) :] != sizes:
        what = " and ".join(
            f"{size} {kind} along axis {axis}"
            for size, kind, axis in zip(sizes, ("species", "components"), axes, strict=False)
        )
        raise FourFluxError(f"{name} has shape {array.shape}; expected {what}")
    return moved


# --- labelled ones -----------------------------------------------------------------------------------------


def _dims(array: Any, axes: tuple[int, ...]) -> tuple[Any, ...]:
    """Dimensions of species (and components) by their names, or else by their places."""
    try:
        return tuple(
            name if name in array.dims else array.dims[axis]
            for name, axis in zip(("species", "component"), axes, strict=False)
        )
    except IndexError as error:
        raise FourFluxError(f"the dimensions {array.dims} are too few: species and components are missing") from error


def _six_of_dataarrays(
    density: Any, flux: Any, species_axis: int | None, component_axis: int | None, options: Any
) -> Any:
    first = -2 if flux is None else 0
    species = first if species_axis is None else species_axis
    component = first + 1 if component_axis is None else component_axis
    own = _dims(density if flux is None else flux, (species, component))
    grid = [name for name in density.dims if name not in own]
    names = SPECIES[options["species"]]
    if flux is None:
        density = density.transpose(*grid, *own)
        require_order(density, "density", names, COMPONENTS)
        six = to_six(density.values, **options)
    else:
        if not {*grid, own[0]} == set(density.dims) or {*grid, *own} != set(flux.dims):
            raise FourFluxError(
                f"density has the dimensions {density.dims} and flux {flux.dims}; those of flux have to be the same "
                "and one more, of the components"
            )
        for key, index in density.indexes.items():
            if key in flux.indexes and not index.equals(flux.indexes[key]):
                raise FourFluxError(f"density and flux have different coordinates along {key!r}; align them")
        require_order(density.transpose(*grid, own[0]), "density", names)
        require_order(flux.transpose(*grid, *own), "flux", names, COMPONENTS[:3])
        six = to_six(density.transpose(own[0], *grid).values, flux.transpose(*own, *grid).values, **options)
    labels = {own[0]: list(SPECIES[6]), own[1]: list(COMPONENTS)}
    return _dataarray(six, (*grid, *own), density, labels, density.name)


def _dataarray(values: Any, dims: tuple[Any, ...], like: Any, labels: dict[Any, list[str]], name: Any) -> Any:
    """With the coordinates of `like` that have none but the other dimensions."""
    coords = {key: value for key, value in like.coords.items() if set(value.dims) <= set(dims) - set(labels)}
    return type(like)(values, dims=dims, coords={**coords, **labels}, attrs=like.attrs, name=name)


def _dataarrays_of_six(F: Any, axes: tuple[int, int], like: Any, options: Any) -> Moments:
    own = _dims(F, (-2, -1))
    grid = [name for name in F.dims if name not in own]
    six = F.transpose(*grid, *own)
    require_order(six, "F", SPECIES[6], COMPONENTS)
    values = from_six(six.values, **options)
    species = list(SPECIES[options["species"]])
    n = _dataarray(values.density, (own[0], *grid), F, {own[0]: species}, F.name)
    f = _dataarray(values.flux, (*own, *grid), F, {own[0]: species, own[1]: list(COMPONENTS[:3])}, F.name)
    if like is not None:
        return Moments(
            *(labelled(array.transpose(*one.dims).values, one) for array, one in zip((n, f), like, strict=True))
        )
    n_dims, f_dims = list(n.dims[1:]), list(f.dims[2:])
    n_dims.insert(axes[0] % n.ndim, own[0])
    for place, name in sorted(zip((axis % f.ndim for axis in axes), own, strict=True)):
        f_dims.insert(place, name)
    return Moments(n.transpose(*n_dims), f.transpose(*f_dims))


def _six_of_frames(density: Any, flux: Any, options: Any) -> Any:
    names = SPECIES[options["species"]]
    count = len(names)
    if flux is None:
        six = to_six(_columns(density, _each(names, "xyzt"), "density").reshape(-1, count, 4), **options)
    else:
        n, f = _columns(density, names, "density"), _columns(flux, _each(names, "xyz"), "flux")
        if not density.index.equals(flux.index):
            raise FourFluxError("density and flux have different indices; align them")
        six = to_six(n, f.reshape(-1, count, 3), species_axis=1, component_axis=2, **options)
    return frame_like(six.reshape(-1, 24), density, column_names("F"))


def _each(species: Sequence[str], components: str) -> list[str]:
    return [f"{name}_{component}" for name in species for component in components]


def _columns(frame: Any, names: Sequence[str], name: str) -> NDArray[Any]:
    numbers = _real(frame, name)
    if numbers.ndim != 2 or numbers.shape[1] != len(names):
        raise FourFluxError(f"{name} has shape {numbers.shape}; expected (n, {len(names)}), species by species")
    require_order(frame, name, names)
    return numbers


def _frames_of_six(F: Any, like: Any, options: Any) -> Moments:
    values = from_six(
        _columns(F, column_names("F"), "F").reshape(-1, 6, 4), species_axis=1, component_axis=2, **options
    )
    n, f = values.density, values.flux.reshape(len(F), -1)
    if like is not None:
        return Moments(*(frame_like(table, one, one.columns) for table, one in zip((n, f), like, strict=True)))
    names = SPECIES[options["species"]]
    return Moments(frame_like(n, F, list(names)), frame_like(f, F, _each(names, "xyz")))
