"""Four-fluxes: names, shapes, units, and the checks that say whether an array holds them.

A four-flux is the number density ``N`` and the number flux over c, ``F``, of one neutrino species, both in
1/cm^3. It is physical when ``N >= 0`` and ``|F| <= N``. Arrays are ``(n, 6, 4)``: species, then
``(x, y, z, t)`` with the number density last.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rheidae.exceptions import FourFluxError

SPECIES = ("nu_e", "nu_mu", "nu_tau", "nubar_e", "nubar_mu", "nubar_tau")
COMPONENTS = ("x", "y", "z", "t")
NU_E, NU_MU, NU_TAU, NUBAR_E, NUBAR_MU, NUBAR_TAU = range(6)
T = 3
"""Index of the number density among the components."""

FLUX_TOLERANCE = 1e-6
"""``|F|`` may exceed ``N`` by this fraction: single-precision files hold beams with rounded components."""

FLAT = len(SPECIES) * len(COMPONENTS)
"""Columns of a flat four-flux array."""

ALIKE = 1e-6
"""mu and tau that differ by less, over the row's total density, are alike."""

Float = NDArray[Any]


class Columns(dict[str, slice]):
    """What the columns of a flat table are: blocks by their names, one after the other.

    Parameters
    ----------
    **shapes : tuple of int
        Shape of a row's part of each block, ``(6, 4)`` for the four-fluxes of six species.

    Attributes
    ----------
    width : int
        Number of columns.

    Examples
    --------
    >>> from rheidae.fourflux import INPUT
    >>> INPUT.width, INPUT["F_box"]
    (48, slice(24, 48, None))
    """

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        self.shapes = shapes
        self.width = 0
        for name, shape in shapes.items():
            self[name] = slice(self.width, self.width + math.prod(shape))
            self.width = self[name].stop

    def part(self, table: Any, name: str) -> Any:
        """Return a block of ``table (n, width)``, an array or a tensor, as ``(n, *shape)``."""
        return table[:, self[name]].reshape(-1, *self.shapes[name])


INPUT = Columns(F_init=(6, 4), F_box=(6, 4))
"""Columns of `input`, the features of a model: the initial four-flux, then Box3D's final one."""

TARGET = Columns(F_true=(6, 4))
"""Columns of `target`, what a model predicts: the simulated final four-flux. A further head is one more entry here."""


def column_names(prefix: str) -> list[str]:
    """Names of the 24 columns of a flat four-flux array.

    Parameters
    ----------
    prefix : str
        Put in front of each name, such as ``"F_init"``.

    Returns
    -------
    list of str
        ``F_init_nu_e_x, F_init_nu_e_y, ...``: species-major, as ``flatten`` orders them.
    """
    return [f"{prefix}_{species}_{component}" for species in SPECIES for component in COMPONENTS]


def unmasked(values: Any) -> NDArray[Any]:
    """`values` as an array, with NaN in the place of what a masked array of NumPy hides."""
    if not isinstance(values, np.ma.MaskedArray):
        return np.asarray(values)
    numbers: NDArray[Any] = np.ma.filled(values.astype(np.promote_types(values.dtype, np.float32)), np.nan)
    return numbers


def as_four_flux(F: ArrayLike, name: str = "F") -> Float:
    """Return `F` as a C-contiguous float array of shape ``(n, 6, 4)``.

    Parameters
    ----------
    F : array_like
        Four-fluxes, 1/cm^3. float32 stays float32; every other real type becomes float64. What is masked becomes NaN.
    name : str
        What the error messages call the array.

    Returns
    -------
    ndarray, shape (n, 6, 4)
        In native byte order; `F` itself where nothing had to be changed.

    Raises
    ------
    FourFluxError
        If the shape is another, or the numbers are not real.
    """
    array = unmasked(F)
    if array.dtype.kind not in "fiu":
        raise FourFluxError(f"{name} has dtype {array.dtype}; expected real numbers in 1/cm^3")
    if array.ndim != 3 or array.shape[1:] != (6, 4):
        raise FourFluxError(f"{name} has shape {array.shape}; expected (n, 6, 4): species {SPECIES}, then (x, y, z, t)")
    dtype = np.float32 if array.dtype.kind == "f" and array.dtype.itemsize == 4 else np.float64
    return np.ascontiguousarray(array, dtype=dtype)


def flatten(F: Float) -> Float:
    """``(n, 6, 4)`` to ``(n, 24)``: column ``4 * species + component``."""
    return F.reshape(len(F), FLAT)


def unflatten(flat: Float) -> Float:
    """``(n, 24)`` to ``(n, 6, 4)``, the inverse of `flatten`."""
    return flat.reshape(len(flat), 6, 4)


def from_emu(raw: Float) -> Float:
    """Four-fluxes from Emu's axes.

    Parameters
    ----------
    raw : ndarray, shape (n, 4, 2, 3) or (n, 4, 6)
        Components ``(x, y, z, t)``, then (neutrino, antineutrino), then flavors (e, mu, tau).

    Returns
    -------
    ndarray, shape (n, 6, 4)
        C-contiguous, in the dtype of `raw`.
    """
    return np.ascontiguousarray(np.moveaxis(raw, 1, -1).reshape(len(raw), 6, 4))


def to_emu(F: Float) -> Float:
    """Emu's axes ``(n, 4, 2, 3)`` from four-fluxes ``(n, 6, 4)``, the inverse of `from_emu`."""
    return np.ascontiguousarray(np.moveaxis(F.reshape(len(F), 2, 3, 4), -1, 1))


def total_density(F: Float) -> Float:
    """Sum of the six number densities, one after the other: the width of a beam hangs on the last bit.

    Parameters
    ----------
    F : ndarray, shape (n, 6, 4) or (n, 24)
        Four-fluxes, 1/cm^3.

    Returns
    -------
    ndarray, shape (n,)
        float64, 1/cm^3.
    """
    # `sum` takes one order or another, by the version of NumPy and the shape.
    return np.add.accumulate(F.reshape(len(F), 6, 4)[:, :, T], axis=1, dtype=np.float64)[:, -1]


def average_heavy(F: Float, F_init: Float) -> Float:
    """Average mu and tau (and their antineutrinos) in the rows whose initial state has them alike.

    A simulation that starts with equal mu and tau splits them at random as it runs: which of the two ends
    up larger is noise, and only their average can be predicted.

    Parameters
    ----------
    F : ndarray, shape (n, 6, 4)
        Four-fluxes to average, usually final ones.
    F_init : ndarray, shape (n, 6, 4)
        Initial four-fluxes of the same rows. Alike means equal to `ALIKE` of the row's total density.

    Returns
    -------
    ndarray, shape (n, 6, 4)
        A copy of `F`.
    """
    out = np.array(F)
    tolerance = ALIKE * total_density(F_init)
    for mu, tau in ((NU_MU, NU_TAU), (NUBAR_MU, NUBAR_TAU)):
        alike = np.abs(F_init[:, mu] - F_init[:, tau]).max(axis=1, initial=0.0) <= tolerance
        mean = 0.5 * (out[alike, mu] + out[alike, tau])
        out[alike, mu] = mean
        out[alike, tau] = mean
    return out


class Unphysical(NamedTuple):
    """Where an array stops being physical, and why."""

    row: int
    species: int
    reason: str

    def __str__(self) -> str:
        return f"row {self.row}, {SPECIES[self.species]}: {self.reason}"


def first_unphysical(F: Float, tolerance: float = FLUX_TOLERANCE) -> Unphysical | None:
    """Find the first row that is not a set of six physical four-fluxes.

    Parameters
    ----------
    F : ndarray, shape (n, 6, 4)
        Four-fluxes, 1/cm^3, C-contiguous.
    tolerance : float
        ``|F|`` may exceed ``N`` by this fraction of ``N``.

    Returns
    -------
    Unphysical or None
        None if every row is finite with ``N >= 0`` and ``|F| <= N``.
    """
    from rheidae._fourflux_kernels import first_unphysical as find

    row, species = find(F, tolerance)
    if row < 0:
        return None
    x, y, z, t = (float(value) for value in F[row, species])
    if not np.isfinite([x, y, z, t]).all():
        reason = f"({x:g}, {y:g}, {z:g}, {t:g}) is not finite"
    elif t < 0:
        reason = f"number density {t:g} is negative"
    else:
        reason = f"|F| = {np.hypot(np.hypot(x, y), z):.9g} exceeds N = {t:.9g}"
    return Unphysical(int(row), int(species), reason)


def require_physical(F: Float, name: str = "F") -> None:
    """Raise `FourFluxError` naming the first row of `F` (shape ``(n, 6, 4)``) that is not physical."""
    unphysical = first_unphysical(F)
    if unphysical is not None:
        raise FourFluxError(
            f"{name} {unphysical}; a four-flux needs finite numbers with N >= 0 and |F| <= N. Remove or mend the row"
        )
