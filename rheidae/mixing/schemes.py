"""The analytic schemes: one list that preprocessing, data sets, evaluation and figures read.

A new scheme is a face such as `rheidae.mixing.power`, its kernel, and an entry of `SCHEMES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rheidae import fourflux
from rheidae.cells import Cells


@dataclass(frozen=True)
class Scheme:
    """An analytic answer to what the instability leaves.

    Attributes
    ----------
    name : str
        Key in `SCHEMES`, in configurations and in reports.
    title : str
        Name in tables and figures.
    color : str
        Color in figures, as matplotlib takes it; colour-blind eyes are to tell it from the others.
    flux : callable
        ``flux(F_init, order=..., threads=..., **parameters)``: final from initial four-fluxes, ``(n, 6, 4)``.
    survival : callable
        ``survival(F, directions)``: ``P(n)`` of electron neutrinos ``(m,)`` of a state ``(6, 4)`` in ``(3, m)``.
    dataset : str or None
        Name of its answer in preprocessed files; None for what is not stored.
    takes_strength : bool
        Whether `flux` has the parameter `c` of `mix`. If not, the change is multiplied by it.
    limited : bool
        Whether `flux` shortens changes that would leave the physical states (`rheidae.mixing.physical`).
    matrices : callable or None
        ``matrices(F, order=..., threads=...)``: transition matrices ``(n, 2, 6, 6)``, where ``P(n)`` does not say all.
    """

    name: str
    title: str
    color: str
    flux: Callable[..., fourflux.Float]
    survival: Callable[..., NDArray[np.float64]]
    dataset: str | None = None
    takes_strength: bool = False
    limited: bool = False
    matrices: Callable[..., NDArray[np.float64]] | None = None


def _late(name: str, function: str) -> Callable[..., Any]:
    """A function of a module of this folder, imported when first called: kernels take their time."""

    def call(*arguments: Any, **options: Any) -> Any:
        return getattr(import_module(f"rheidae.mixing.{name}"), function)(*arguments, **options)

    return call


def _unchanged(F_init: ArrayLike, order: int | None = None, threads: int | None = None) -> fourflux.Float:
    F = fourflux.as_four_flux(F_init, "F_init")
    fourflux.require_physical(F, "F_init")
    return F.copy()


def _certain(F: fourflux.Float, directions: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.ones(directions.shape[1])


SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme("none", "no mixing", "#BBBBBB", _unchanged, _certain),
        Scheme("box3d", "Box3D", "#0072B2", _late("box3d", "box3d_flux"), _late("box3d", "box3d_survival"), "F_box"),
        Scheme(
            "power", "power", "#E69F00", _late("power", "power_flux"), _late("power", "power_survival"), "F_power",
            takes_strength=True, limited=True,
        ),
        Scheme(
            "asymptotic", "asymptotic", "#000000", _late("asymptotic", "asymptotic_flux"),
            _late("asymptotic", "asymptotic_survival"), "F_asymptotic", limited=True,
            matrices=_late("asymptotic", "asymptotic_matrices"),
        ),
    )
}  # fmt: skip
"""Every analytic scheme by its name."""

STORED = {name: scheme.dataset for name, scheme in SCHEMES.items() if scheme.dataset is not None}
"""Dataset of a preprocessed file by scheme, for those that it may hold."""


def mix(
    F_init: ArrayLike,
    scheme: str = "box3d",
    *,
    c: ArrayLike = 1.0,
    order: int | None = None,
    threads: int | None = None,
    invalid: str = "raise",
    **parameters: Any,
) -> Any:
    """Final four-fluxes by an analytic scheme.

    Parameters
    ----------
    F_init : array_like, shape (..., 6, 4) or (..., 24)
        Initial four-fluxes, any one unit, usually 1/cm^3; also a data frame, or a DataArray of xarray.
    scheme : {"box3d", "power", "asymptotic", "none"}
        "box3d": the survival probability jumps at the crossing (`rheidae.box3d_flux`). "power": it falls off
        continuously (`rheidae.mixing.power.power_flux`). "asymptotic": the settled state, the best of them
        (`rheidae.mixing.asymptotic.asymptotic_flux`). "none": nothing happens.
    c : float or array_like, shape (...)
        Strength of the change, in [0, 1.5]; 1 is the scheme itself. What is more than that is shortened where it would
        leave the physical states (`rheidae.mixing.physical.keep_physical`).
    order, threads : int, optional
        Order of the Lebedev rule, by default the scheme's own; threads to share the rows among.
    invalid : {"raise", "pass"}
        What becomes of cells that are not physical: an error that names row and reason, or NaN for these cells alone.
        Vacuum is no error, and stays as it is (see `rheidae.cells`).
    **parameters
        Those of the scheme: ``crossing`` and ``mu_fraction`` of Box3D; ``p``, ``a``, ``axial``, ``p_axial``,
        ``a_axial`` of the power scheme, numbers or arrays of shape (...).

    Returns
    -------
    ndarray, shape of the input
        In the unit and the float type of the input; a data frame or DataArray, with its names and attributes, where one
        came in. Flavor sums and lepton numbers are those of the input, to rounding
        (with ``mu_fraction`` the lepton numbers of mu and tau only together); a state without a crossing is the input.

    Raises
    ------
    FourFluxError
        If the shape is another, or a row is not physical.
    ValueError
        If the scheme is not known, or a parameter or `invalid` is outside its range.
    TypeError
        If the scheme has no such parameter.

    Examples
    --------
    >>> import numpy as np
    >>> from rheidae import mix
    >>> F = np.zeros((1, 6, 4))
    >>> F[0, :, 3] = [1.0, 0.3, 0.3, 0.9, 0.3, 0.3]
    >>> F[0, 3, 2] = 0.4
    >>> mix(F)[0, 0, 3].round(2), mix(F, c=0.5)[0, 0, 3].round(2)
    (np.float64(0.62), np.float64(0.81))
    """
    if scheme not in SCHEMES:
        raise ValueError(f"scheme={scheme!r} is not one of {', '.join(SCHEMES)}")
    if order is not None:
        parameters["order"] = order
    cells = Cells(F_init, "F_init", invalid)
    c, parameters = cells.per_row(c), {name: cells.per_row(value) for name, value in parameters.items()}
    flux = SCHEMES[scheme].flux
    if SCHEMES[scheme].takes_strength:
        return cells.back(flux(cells.rows, c=c, threads=threads, **parameters))
    out = flux(cells.rows, threads=threads, **parameters)
    strength = np.asarray(c, dtype=out.dtype)
    if strength.shape not in ((), (len(out),)) or not ((strength >= 0) & (strength <= 1.5)).all():
        raise ValueError(f"c has to be a number in [0, 1.5], or {len(out)} of them; got {c!r}")
    if not (strength == 1).all():
        out = cells.rows + strength.reshape(-1, 1, 1) * (out - cells.rows)
        from rheidae.mixing.physical import keep_physical

        more = np.broadcast_to(strength > 1, len(out))
        start, end = (np.ascontiguousarray(states[more], dtype=np.float64) for states in (cells.rows, out))
        keep_physical(start, end, threads)
        out[more] = end
    return cells.back(out)
