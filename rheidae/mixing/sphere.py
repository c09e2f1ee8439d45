"""The survival probability P(n) of electron neutrinos over the directions of one state, under each scheme.

For figures and checks: the schemes themselves never need it at more than their quadrature's nodes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ive

from rheidae import fourflux
from rheidae.mixing._power_kernels import AXIS, FADE, NO_DIRECTION
from rheidae.mixing.box3d import box3d
from rheidae.mixing.closure import inverse_langevin
from rheidae.mixing.power import PARAMETERS, power_change
from rheidae.mixing.quadrature import lebedev

Array = NDArray[np.float64]

ANALYTIC = (0.0, 0.0, float(np.log(2.0)), 0.0, 0.0, float(np.log(2.0)))
"""Parameters of the power scheme of the literature, in the order of `rheidae.mixing.power.PARAMETERS`."""

_ORDER = 31


def distributions(F: fourflux.Float, directions: Array) -> Array:
    """Minerbo distributions of e, ebar, x and xbar per steradian.

    Parameters
    ----------
    F : ndarray, shape (6, 4)
        A state, any unit; x is the mean of mu and tau.
    directions : ndarray, shape (3, m)
        Unit vectors.

    Returns
    -------
    ndarray, shape (4, m)
    """
    amplitude, Z, unit = _closure(_electron_and_heavy(F))
    return amplitude[:, None] * np.exp(Z[:, None] * (unit @ directions - 1))


def lepton_number(F: fourflux.Float, directions: Array) -> Array:
    """``G(n)``, shape (m,): the electron lepton number per steradian, counted against that of x."""
    e, ebar, x, xbar = distributions(F, directions)
    return (e - ebar) - (x - xbar)


def box3d_survival(F: fourflux.Float, directions: Array) -> Array:
    """``P(n)``, shape (m,), of `rheidae.box3d` at order 31: one number on each side of the crossing."""
    ((positive, negative),) = box3d(F[None]).survival_probability
    return np.where(lepton_number(F, directions) > 0, positive, negative)


def power_survival(F: fourflux.Float, directions: Array, theta: Array | tuple[float, ...] = ANALYTIC) -> Array:
    """``P(n)`` of continuous mixing, the axial component included.

    Parameters
    ----------
    F : ndarray, shape (6, 4)
        A state, any unit.
    directions : ndarray, shape (3, m)
        Unit vectors.
    theta : sequence of 6 numbers
        Parameters as `rheidae.mixing.power.power_change` takes them.

    Returns
    -------
    ndarray, shape (m,)
        Of `rheidae.mixing.power.power_flux` at order 31; 1 without a crossing.
    """
    log_c, log_p, log_a, axial, log_p_axial, log_a_axial = (
        dict(zip(PARAMETERS, theta, strict=True))[name] for name in PARAMETERS
    )
    state = np.ascontiguousarray(F[None], dtype=np.float64)
    state /= fourflux.total_density(state)[:, None, None]
    s, s_axial = power_change(state, np.array([theta], dtype=np.float64), order=_ORDER).scales[0]
    moments = _electron_and_heavy(state[0])
    net = moments[0] - moments[1] - moments[2] + moments[3]
    sign = 1.0 if net[fourflux.T] >= 0 else -1.0
    nodes, weights = lebedev(_ORDER)

    G_nodes = weights * sign * lepton_number(state[0], nodes)
    on_sphere = _fall_off(sign * lepton_number(state[0], directions), G_nodes, s, log_p, log_a)
    # About the net flux; its part of the mixture is small where that is.
    size = np.linalg.norm(net[: fourflux.T])
    if axial == 0 or not size > NO_DIRECTION:
        return 1 - 2 / 3 * np.exp(log_c) * on_sphere
    axis = sign * net[: fourflux.T] / size
    zeta, zeta_weights = np.polynomial.legendre.leggauss(24)
    G_axis = 2 * np.pi * zeta_weights * sign * _azimuthal_mean(moments, axis, zeta)
    G_here = sign * _azimuthal_mean(moments, axis, axis @ directions)
    on_axis = _fall_off(G_here, G_axis, s_axial, log_p_axial, log_a_axial)
    b = axial * -np.expm1(-((size / (AXIS * np.abs(G_axis).sum())) ** 2))
    return 1 - 2 / 3 * np.exp(log_c) * ((1 - b) * on_sphere + b * on_axis)


def _fall_off(G: Array, weighted: Array, s: float, log_p: float, log_a: float) -> Array:
    """``h``: 1 on the smaller side, ``(1 + (G/s)^a)^-p`` on the larger, faded as the crossing closes."""
    if not np.isfinite(s):
        return np.zeros_like(G)
    large, small = np.maximum(weighted, 0).sum(), np.maximum(-weighted, 0).sum()
    if small > large:  # a beam between the nodes; the kernel goes by the quadrature, too
        G, small = -G, large
    ratio = np.maximum(G, 0) / s
    return -np.expm1(-small / FADE) * (1 + ratio ** np.exp(log_a)) ** -np.exp(log_p)


def _electron_and_heavy(F: fourflux.Float) -> Array:
    """Four-fluxes (4, 4) of e, ebar, x, xbar from a state (6, 4)."""
    F = np.asarray(F, dtype=np.float64)
    return np.stack([F[0], F[3], 0.5 * (F[1] + F[2]), 0.5 * (F[4] + F[5])])


def _closure(moments: Array) -> tuple[Array, Array, Array]:
    """Value of each Minerbo distribution at its peak, its exponent Z, and its direction (4, 3)."""
    N, flux = moments[:, fourflux.T], moments[:, : fourflux.T]
    length = np.linalg.norm(flux, axis=1)
    Z = inverse_langevin(np.minimum(length / np.where(N > 0, N, 1), 1 - 1e-9))
    # N/(4 pi) Z/sinh(Z) exp(Z), of which the limit at Z = 0 is N/(4 pi)
    peak = np.where(Z > 1e-6, 2 * Z / -np.expm1(-2 * np.maximum(Z, 1e-6)), 1 + Z)
    return N / (4 * np.pi) * peak, Z, flux / np.where(length > 0, length, 1)[:, None]


def _azimuthal_mean(moments: Array, axis: Array, zeta: Array) -> Array:
    """Mean of G over the azimuth about `axis`, at each ``zeta = n . axis``; I0 is the modified Bessel function."""
    amplitude, Z, unit = _closure(moments)
    cosine = unit @ axis
    sine = np.sqrt(np.maximum(1 - cosine**2, 0))
    rho = (Z * sine)[:, None] * np.sqrt(np.maximum(1 - zeta**2, 0))
    means = amplitude[:, None] * np.exp(Z[:, None] * (cosine[:, None] * zeta - 1) + rho) * ive(0, rho)
    e, ebar, x, xbar = means
    return (e - ebar) - (x - xbar)
