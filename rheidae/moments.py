"""Moments as simulation codes carry them: three, four or six species, axes in any place, to six four-fluxes and back.

Most codes evolve three species: electron neutrinos, electron antineutrinos, and one heavy entry that stands for mu, tau
and their antineutrinos together. `to_six` divides that entry evenly among the species that it sums; `from_six` adds
their answers up again, so that what a code carries is conserved. Where the heavy species start alike they stay
alike in every scheme and model here: nothing is lost on the way.

The schemes take moments of the *number* of neutrinos, fluxes over c, in an orthonormal frame, best that of the fluid,
in which the closure is meant to hold. For moments of the energy, and for energy groups, use the transition matrix: fast
conversion gives all energies the same probabilities.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rheidae.exceptions import FourFluxError

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
    density : ndarray
        Number densities, the species along `species_axis`.
    flux : ndarray
        Number fluxes over c, an axis of (x, y, z) more.
    """

    density: Float
    flux: Float


def to_six(
    density: ArrayLike,
    flux: ArrayLike | None = None,
    *,
    species: int = 3,
    heavy_sum: int | None = None,
    species_axis: int | None = None,
    component_axis: int | None = None,
) -> Float:
    """Four-fluxes of six species from a code's moments.

    Parameters
    ----------
    density : array_like, shape (species, ...) or (..., species, 4)
        Number densities, any one unit; or, without `flux`, four-fluxes (x, y, z, t).
    flux : array_like, shape (species, 3, ...), optional
        Number fluxes over c in the unit of `density`, components in an orthonormal frame.
    species : {3, 4, 6}
        How many species there are, in the order of `SPECIES`.
    heavy_sum : int, optional
        How many species a heavy entry is the sum of. Default: 4 of three, 2 of four. 1 if the code carries one
        representative heavy species.
    species_axis : int, optional
        Axis of the species in `density`. Default: the first, or the last but one without `flux`.
    component_axis : int, optional
        Axis of the components in `flux` (or in `density`, without `flux`). Default: the second, or the last.

    Returns
    -------
    ndarray, shape (..., 6, 4)
        float64, the remaining axes in their order.

    Raises
    ------
    FourFluxError
        If the shapes do not fit together, or numbers are not real.
    ValueError
        If `species` or `heavy_sum` is not one of the allowed values.
    """
    entries, summed = _division(species, heavy_sum)
    states = _joined(density, flux, species, species_axis, component_axis)
    six = states[..., entries, :]
    heavy = [i for i, entry in enumerate(entries) if entries.count(entry) > 1]
    six[..., heavy, :] /= summed
    return six


def from_six(
    F: ArrayLike,
    *,
    species: int = 3,
    heavy_sum: int | None = None,
    species_axis: int = 0,
    component_axis: int = 1,
) -> Moments:
    """Return a code's moments from four-fluxes of six species: `to_six` undone, heavy species added up.

    Parameters
    ----------
    F : array_like, shape (..., 6, 4)
        Four-fluxes.
    species, heavy_sum : int
        As of `to_six`. With ``heavy_sum=1`` the heavy entry is the mean of its species.
    species_axis, component_axis : int
        Where the species go in both arrays, and the components in the fluxes.

    Returns
    -------
    Moments
        ``density (species, ...)`` and ``flux (species, 3, ...)`` with the default axes.

    Raises
    ------
    FourFluxError
        If `F` has another shape.
    ValueError
        As of `to_six`.
    """
    entries, summed = _division(species, heavy_sum)
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


def _division(species: int, heavy_sum: int | None) -> tuple[list[int], int]:
    """Entry of each of the six species, and how many of them a heavy entry sums."""
    if species not in SPECIES:
        raise ValueError(f"species={species!r} is not 3, 4 or 6")
    summed = _SUMMED[species] if heavy_sum is None else heavy_sum
    if summed not in (1, _SUMMED[species]):
        raise ValueError(f"heavy_sum={heavy_sum!r} of {species} species is neither 1 nor {_SUMMED[species]}")
    return list(_ENTRY[species]), summed


def _real(array: ArrayLike, name: str) -> NDArray[Any]:
    numbers = np.asarray(array)
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
