"""Continuous ("power") mixing: a survival probability that does not jump at the crossing."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rheidae import fourflux
from rheidae.mixing import _power_kernels as kernels
from rheidae.mixing.physical import keep_physical
from rheidae.mixing.quadrature import lebedev
from rheidae.system.threads import share_rows

Array = NDArray[np.float64]

AXIAL_POINTS = 24
"""Gauss-Legendre nodes along the axis."""

TOLERANCE = 1e-10
"""Relative error allowed in ``int (1 - P) G = 0`` before the two densities that it equates are averaged."""

PARAMETERS = ("log_c", "log_p", "log_a", "axial", "log_p_axial", "log_a_axial")
"""Columns of `theta`."""

LITERATURE = (0.0, 0.0, float(np.log(2.0)), 0.0, 0.0, float(np.log(2.0)))
"""Parameters of the power scheme of the literature: ``c = p = 1, a = 2``, no axial component."""

INVARIANTS = ("axial_depth", "depth", "net_number", "net_flux", "net_quadrupole")
"""Columns of `power_invariants`."""


class PowerChange(NamedTuple):
    """What `power_change` returns for n states.

    Attributes
    ----------
    D : ndarray, shape (n, 8)
        Four-fluxes ``(x, y, z, t)`` that nu_e and nubar_e lose, over the total number density.
    jacobian : ndarray, shape (n, 6, 8), or None
        Derivatives of `D` by the parameters, in the order of `PARAMETERS`.
    scales : ndarray, shape (n, 2)
        ``s`` on the sphere and on the axis, over the total number density per steradian; NaN where there is no
        crossing, or no such component.
    """

    D: NDArray[np.float64]
    jacobian: NDArray[np.float64] | None
    scales: NDArray[np.float64]


@cache
def _rules(order: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return kernels.sphere_rule(*lebedev(order)), kernels.axial_rule(AXIAL_POINTS)


def power_change(
    F: fourflux.Float,
    theta: NDArray[np.float64],
    *,
    derivatives: bool = False,
    order: int = 31,
    tolerance: float = TOLERANCE,
    threads: int | None = None,
) -> PowerChange:
    """Change by continuous mixing and its derivatives by the parameters, in one pass.

    Parameters
    ----------
    F : ndarray, shape (n, 6, 4)
        Initial four-fluxes, C-contiguous, any one unit; not checked.
    theta : ndarray, shape (n, 6)
        Parameters of each row, in the order of `PARAMETERS`: the logarithms of c, p, a, the weight of the axial
        component, and log p and log a of that one.
    derivatives : bool
        Whether to compute the Jacobian.
    order, tolerance, threads
        As in `power_flux`; `tolerance` is the relative error of lepton number before it is made exact.

    Returns
    -------
    PowerChange
    """
    n = len(F)
    theta = np.ascontiguousarray(theta, dtype=np.float64)
    D, scales = np.empty((n, 8)), np.empty((n, 2))
    J = np.empty((n, kernels.PARAMETERS, 8) if derivatives else (0, 0, 0))
    sphere, axial = _rules(order)
    # The tolerance holds for the logarithm to base 2.
    share_rows(
        lambda start, stop: kernels.power_rows(
            F, theta, sphere, axial, 1.4 * tolerance, derivatives, D, J, scales, start, stop
        ),
        n,
        threads,
    )
    with np.errstate(over="ignore", under="ignore"):
        return PowerChange(D, J if derivatives else None, np.exp2(scales))


def power_invariants(F: fourflux.Float, *, order: int = 31, threads: int | None = None) -> NDArray[np.float64]:
    """Five numbers of a state that know nothing of its frame, its scale, or which side is which.

    Parameters
    ----------
    F : ndarray, shape (n, 6, 4)
        Initial four-fluxes, C-contiguous, any one unit; not checked.
    order, threads
        As in `power_flux`.

    Returns
    -------
    ndarray, shape (n, 5)
        In the order of `INVARIANTS`, of ``G`` and its azimuthal mean ``Gbar`` with ``A = int |Gbar|``: depth of the
        crossing in Gbar and in G, ``log(I_small/I_large + 1e-3)``; ``|int G|/A``; ``|int G n|/A``; and ``|int G|/A``
        times the quadrupole ``int Gbar P2(zeta)/A``, zeta counted towards the larger side.
    """
    out = np.empty((len(F), kernels.FEATURES))
    sphere, axial = _rules(order)
    share_rows(lambda start, stop: kernels.power_features(F, sphere, axial, out, start, stop), len(F), threads)
    return out


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
    theta = np.empty((len(F), kernels.PARAMETERS))
    given = (
        (0, "c", c, 0, 1.5, np.log),
        (1, "p", p, _LEAST, _MOST, np.log),
        (2, "a", a, _LEAST, _MOST, np.log),
        (3, "axial", axial, 0, 1, np.asarray),
        (4, "p_axial", p if p_axial is None else p_axial, _LEAST, _MOST, np.log),
        (5, "a_axial", a if a_axial is None else a_axial, _LEAST, _MOST, np.log),
    )
    with np.errstate(divide="ignore"):  # c = 0 mixes nothing
        for column, name, value, least, most, transform in given:
            theta[:, column] = transform(_per_row(name, value, len(F), least, most))
    out = np.empty(F.shape)
    change = power_change(F, theta, order=order, threads=threads)

    share_rows(lambda start, stop: kernels.share_change(F, change.D, out, start, stop), len(F), threads)
    keep_physical(F, out, threads)
    return out.astype(F.dtype, copy=False)


def power_survival(F: fourflux.Float, directions: Array, theta: Array | tuple[float, ...] = LITERATURE) -> Array:
    """``P(n)`` of continuous mixing, the axial component included.

    Parameters
    ----------
    F : ndarray, shape (6, 4)
        A state, any unit.
    directions : ndarray, shape (3, m)
        Unit vectors.
    theta : sequence of 6 numbers
        Parameters, in the order of `PARAMETERS`.

    Returns
    -------
    ndarray, shape (m,)
        Of `power_flux` at order 31; 1 without a crossing.
    """
    from rheidae.mixing import sphere

    log_c, log_p, log_a, axial, log_p_axial, log_a_axial = theta
    state = np.ascontiguousarray(F[None], dtype=np.float64)
    state /= fourflux.total_density(state)[:, None, None]
    s, s_axial = power_change(state, np.array([theta], dtype=np.float64)).scales[0]
    e, ebar, x, xbar = sphere.electron_and_heavy(state[0])
    net = (e - ebar) - (x - xbar)
    sign = 1.0 if net[fourflux.T] >= 0 else -1.0
    nodes, weights = lebedev(_ORDER)
    G_nodes = weights * sign * sphere.lepton_number(state[0], nodes)
    on_sphere = _fall_off(sign * sphere.lepton_number(state[0], directions), G_nodes, s, log_p, log_a)
    # About the net flux; its part of the mixture is small where that is.
    size = np.linalg.norm(net[: fourflux.T])
    if axial == 0 or not size > kernels.NO_DIRECTION:
        return 1 - 2 / 3 * np.exp(log_c) * on_sphere
    axis = sign * net[: fourflux.T] / size
    zeta, zeta_weights = np.polynomial.legendre.leggauss(AXIAL_POINTS)
    G_axis = 2 * np.pi * zeta_weights * sign * sphere.mean_lepton_number(state[0], axis, zeta)
    G_here = sign * sphere.mean_lepton_number(state[0], axis, axis @ directions)
    on_axis = _fall_off(G_here, G_axis, s_axial, log_p_axial, log_a_axial)
    b = axial * -np.expm1(-((size / (kernels.AXIS * np.abs(G_axis).sum())) ** 2))
    return 1 - 2 / 3 * np.exp(log_c) * ((1 - b) * on_sphere + b * on_axis)


def _fall_off(G: Array, weighted: Array, s: float, log_p: float, log_a: float) -> Array:
    """``h``: 1 on the smaller side, ``(1 + (G/s)^a)^-p`` on the larger, faded as the crossing closes."""
    if not np.isfinite(s):
        return np.zeros_like(G)
    large, small = np.maximum(weighted, 0).sum(), np.maximum(-weighted, 0).sum()
    if small > large:  # a beam between the nodes; the kernel goes by the quadrature, too
        G, small = -G, large
    ratio = np.maximum(G, 0) / s
    return -np.expm1(-small / kernels.FADE) * (1 + ratio ** np.exp(log_a)) ** -np.exp(log_p)


_ORDER = 31

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
