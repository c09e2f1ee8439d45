"""Continuous ("power") mixing: a survival probability that does not jump at the crossing."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rheidae import fourflux
from rheidae.mixing import _survival_kernels as kernels
from rheidae.mixing import survival
from rheidae.mixing.physical import keep_physical
from rheidae.system.threads import share_rows

Array = NDArray[np.float64]

LITERATURE = (0.0, 0.0, float(np.log(2.0)), 0.0, 0.0, 0.0, 0.0, 0.0)
"""Parameters of the power scheme of the literature: ``c = p = 1, a = 2``, no axial component."""


def power_flux(
    F_init: ArrayLike,
    *,
    c: ArrayLike = 1.0,
    p: ArrayLike = 1.0,
    a: ArrayLike = 2.0,
    axial: ArrayLike = 0.0,
    p_axial: ArrayLike | None = None,
    a_axial: ArrayLike | None = None,
    order: int = 31,
    threads: int | None = None,
) -> fourflux.Float:
    r"""Final four-fluxes by continuous mixing.

    Parameters
    ----------
    F_init : array_like, shape (n, 6, 4)
        Initial four-fluxes, any one unit, usually 1/cm^3.
    c : float or array_like, shape (n,)
        Strength, in [0, 1.5]: 1 is flavor equilibrium on the smaller side, 1.5 would move everything there.
    p, a : float or array_like, shape (n,)
        How the mixing falls off on the larger side, in [0.01, 100]; 1 and 2 are the scheme of the literature.
    axial : float or array_like, shape (n,)
        Weight in [0, 1] of a second component, the same scheme in the azimuthal mean of G about the net flux ``int G
        n``.
    p_axial, a_axial : float or array_like, shape (n,), optional
        Of that component; by default those of the first.
    order : int
        Order of the Lebedev rule, one of `rheidae.mixing.quadrature.LEBEDEV_ORDERS`.
    threads : int, optional
        Threads to share the rows among; the result does not depend on it.

    Returns
    -------
    ndarray, shape (n, 6, 4)
        In the unit of the input; float32 for float32 input, else float64. Physical; a state without a crossing comes
        back unchanged.

    Raises
    ------
    FourFluxError
        If the shape is another, or a row is not physical.
    ValueError
        If a parameter is outside its range or not a number or an array of n.

    Notes
    -----
    With G as in `rheidae.box3d_flux`, ``1 - P = (2/3) c`` on the side with the smaller integral and

    .. math:: 1 - P = \tfrac23 c\,[1 + (|G|/s)^a]^{-p}, \qquad \int (1 - P)\, G\, d\Omega = 0

    on the other, s from the second equation. With c = 1, a = 2 and p between 1/2 and 1 this takes the power schemes of
    Xiong et al. (arXiv:2307.11129) and George et al. (arXiv:2409.08833), written for one angle, to the sphere. What is
    moved is applied in conservative form, so that flavor sums and lepton numbers hold to rounding. Where mu and tau are
    alike, the answer is a convex mixture of the initial distributions, and physical. Where they are not, or a flux
    factor near 1 makes a beam that the quadrature does not resolve, `rheidae.mixing.physical.keep_physical` sees to it.
    As the crossing closes, the change is faded out by ``1 - exp(-I_small/(1e-4 N_total))``, a quadrature being unable
    to see a crossing close smoothly, and the axial component by ``1 - exp(-(|int G n|/(0.1 int |Gbar|))^2)`` as its
    axis loses its meaning.

    Examples
    --------
    >>> import numpy as np
    >>> from rheidae import mix
    >>> F = np.zeros((1, 6, 4))
    >>> F[0, :, 3] = [1.0, 0.3, 0.3, 0.9, 0.3, 0.3]
    >>> F[0, 3, 2] = 0.4
    >>> mix(F, "power")[0, :, 3].round(2)
    array([0.6, 0.5, 0.5, 0.5, 0.5, 0.5])
    """
    F = fourflux.as_four_flux(F_init, "F_init")
    fourflux.require_physical(F, "F_init")
    theta = np.zeros((len(F), kernels.PARAMETERS))
    given = (
        (0, "c", c, 0, 1.5, np.log),
        (1, "p", p, _LEAST, _MOST, np.log),
        (2, "a", a, _LEAST, _MOST, np.log),
        (5, "axial", axial, 0, 1, np.asarray),
        (6, "p_axial", p if p_axial is None else p_axial, _LEAST, _MOST, np.log),
        (7, "a_axial", a if a_axial is None else a_axial, _LEAST, _MOST, np.log),
    )
    with np.errstate(divide="ignore"):  # c = 0 mixes nothing
        for column, name, value, least, most, transform in given:
            theta[:, column] = transform(_per_row(name, value, len(F), least, most))
    out = np.empty(F.shape)
    exact = np.ascontiguousarray(F, dtype=np.float64)
    change = survival.mixing_change(exact, theta, power_law=True, order=order, threads=threads)
    share_rows(lambda start, stop: kernels.share_change(exact, change.D, out, start, stop), len(F), threads)
    keep_physical(exact, out, threads)
    return out.astype(F.dtype, copy=False)


def power_survival(F: fourflux.Float, directions: Array) -> Array:
    """``P(n)`` of the literature's scheme; see `rheidae.mixing.survival.survival_probability`."""
    return survival.survival_probability(F, directions, LITERATURE, power_law=True)


# Of p and a: the kernel finds the scale s between them.
_LEAST, _MOST = 1e-2, 1e2


def _per_row(name: str, value: Any, rows: int, least: float, most: float) -> NDArray[np.float64]:
    numbers = np.asarray(value, dtype=np.float64)
    if numbers.shape not in ((), (rows,)):
        raise ValueError(f"{name} has shape {numbers.shape}; expected one number or ({rows},), one for each row")
    good = np.isfinite(numbers) & (numbers >= least) & (numbers <= most)
    if not good.all():
        bad = np.broadcast_to(numbers, rows)[np.argmin(np.broadcast_to(good, rows))]
        raise ValueError(f"{name} = {bad:g} is outside [{least:g}, {most:g}]")
    return numbers
