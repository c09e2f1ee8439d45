"""The distributions of one state over directions, and its electron lepton number: for figures and checks.

The schemes evaluate these at the nodes of their quadrature, in kernels. Survival probabilities over directions stand
beside each scheme: `rheidae.mixing.schemes`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ive

from rheidae import fourflux
from rheidae.mixing.closure import inverse_langevin

Array = NDArray[np.float64]


def electron_and_heavy(F: fourflux.Float) -> Array:
    """Four-fluxes (4, 4) of e, ebar, x, xbar from a state (6, 4); x is the mean of mu and tau."""
    F = np.asarray(F, dtype=np.float64)
    return np.stack([F[0], F[3], 0.5 * (F[1] + F[2]), 0.5 * (F[4] + F[5])])


def distributions(F: fourflux.Float, directions: Array) -> Array:
    """Minerbo distributions of e, ebar, x and xbar per steradian.

    Parameters
    ----------
    F : ndarray, shape (6, 4)
        A state, any unit.
    directions : ndarray, shape (3, m)
        Unit vectors.

    Returns
    -------
    ndarray, shape (4, m)
    """
    return minerbo(electron_and_heavy(F), directions)


def lepton_number(F: fourflux.Float, directions: Array) -> Array:
    """``G(n)``, shape (m,): the electron lepton number per steradian, counted against that of x."""
    e, ebar, x, xbar = distributions(F, directions)
    return (e - ebar) - (x - xbar)


def mean_lepton_number(F: fourflux.Float, axis: Array, zeta: Array) -> Array:
    """Mean of ``G(n)`` over the azimuth about `axis` (3,), at each ``zeta = n . axis`` (m,)."""
    peak, Z, unit = peak_and_exponent(electron_and_heavy(F))
    cosine = unit @ axis
    rho = (Z * np.sqrt(np.maximum(1 - cosine**2, 0)))[:, None] * np.sqrt(np.maximum(1 - zeta**2, 0))
    e, ebar, x, xbar = peak[:, None] * np.exp(Z[:, None] * (cosine[:, None] * zeta - 1) + rho) * ive(0, rho)
    return (e - ebar) - (x - xbar)


def minerbo(F: Array, directions: Array) -> Array:
    """Minerbo distributions ``(..., m)`` of four-fluxes ``(..., 4)`` in ``directions (3, m)``."""
    peak, Z, unit = peak_and_exponent(F)
    return peak[..., None] * np.exp(Z[..., None] * (unit @ directions - 1))


def peak_and_exponent(F: Array) -> tuple[Array, Array, Array]:
    """Value of each Minerbo distribution at its peak, its exponent Z, and its direction ``(..., 3)``."""
    N, flux = F[..., fourflux.T], F[..., : fourflux.T]
    length = np.linalg.norm(flux, axis=-1)
    Z = inverse_langevin(np.minimum(length / np.where(N > 0, N, 1), 1 - 1e-9))
    # N/(4 pi) Z/sinh(Z) exp(Z), of which the limit at Z = 0 is N/(4 pi)
    peak = np.where(Z > 1e-6, 2 * Z / -np.expm1(-2 * np.maximum(Z, 1e-6)), 1 + Z)
    return N / (4 * np.pi) * peak, Z, flux / np.where(length > 0, length, 1)[..., None]
