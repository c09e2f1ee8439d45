"""Box3D in plain NumPy, one line per equation: slow, and there to be read and compared with.

The scheme is that of Richers, Froustey, Ghosh, Foucart and Gomez, arXiv:2409.04405, section III, and the
names are theirs. Tests and benchmarks use this module; the package itself does not.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rheidae.mixing.quadrature import lebedev

Array = NDArray[np.float64]


def inverse_langevin(f: Array) -> Array:
    """Solve ``L(Z) = coth Z - 1/Z = f`` by Newton's method from the Pade form of Cohen (1991), to 1e-11 relative.

    Parameters
    ----------
    f : ndarray
        Flux factors in [0, 1).

    Returns
    -------
    ndarray
        Z, in the shape of `f`.
    """
    Z = f * (3 - f**2) / (1 - f**2)
    for _ in range(7):
        series = Z < 0.03
        safe = np.where(series, 1.0, Z)
        q = np.exp(-2 * safe)
        L = np.where(series, Z / 3 - Z**3 / 45 + 2 * Z**5 / 945, (1 + q) / (1 - q) - 1 / safe)
        slope = np.where(series, 1 / 3 - Z**2 / 15 + 2 * Z**4 / 189, 1 / safe**2 - 4 * q / (1 - q) ** 2)
        Z = Z - (L - f) / slope
    return Z


def minerbo(F: Array, nodes: Array) -> Array:
    """Evaluate the Minerbo distributions ``g(n) = N/(4 pi) Z/sinh Z exp(Z Fhat.n)``.

    Parameters
    ----------
    F : ndarray, shape (..., 4)
        Four-fluxes.
    nodes : ndarray, shape (3, points)
        Directions n.

    Returns
    -------
    ndarray, shape (..., points)
        In the unit of `F`, per steradian.
    """
    N, vector = F[..., 3], F[..., :3]
    length = np.linalg.norm(vector, axis=-1)
    Fhat = vector / np.where(length > 0, length, 1.0)[..., None]
    Z = inverse_langevin(np.minimum(length / np.where(N > 0, N, 1.0), 1 - 1e-16))
    # Z / sinh Z = 2 Z exp(-Z) / (1 - exp(-2 Z)), which does not overflow.
    safe = np.where(Z > 0, Z, 1.0)
    norm = N / (4 * np.pi) * np.where(Z > 0, 2 * safe / -np.expm1(-2 * safe), 1.0)
    return norm[..., None] * np.exp(Z[..., None] * (Fhat @ nodes - 1))


def box3d(F_init: Array, order: int = 31) -> Array:
    """Box3D with a sharp crossing, in conservative form.

    Parameters
    ----------
    F_init : ndarray, shape (n, 6, 4)
        Initial four-fluxes, any one unit.
    order : int
        Lebedev order.

    Returns
    -------
    ndarray, shape (n, 6, 4)
        Final four-fluxes, in the unit of the input.
    """
    nodes, w = lebedev(order)
    e, ebar = F_init[:, 0], F_init[:, 3]
    x, xbar = F_init[:, 1:3].mean(axis=1), F_init[:, 4:6].mean(axis=1)
    g_e, g_x, gbar_e, gbar_x = (minerbo(F, nodes) for F in (e, x, ebar, xbar))
    G = (g_e - gbar_e) - (g_x - gbar_x)
    I_plus = (w * G * (G > 0)).sum(axis=1)
    I_minus = -(w * G * (G <= 0)).sum(axis=1)
    small, large = np.minimum(I_plus, I_minus), np.maximum(I_plus, I_minus)
    crossing = small > 0
    P_large = 1 - (2 / 3) * small / np.where(crossing, large, 1.0)
    P_plus = np.where(I_plus <= I_minus, 1 / 3, P_large)
    P_minus = np.where(I_plus <= I_minus, P_large, 1 / 3)
    P = np.where(crossing[:, None], np.where(G > 0, P_plus[:, None], P_minus[:, None]), 1.0)
    moments = np.vstack([nodes, np.ones_like(w)])  # (n, 1)
    D = (w * (1 - P) * (g_e - g_x)) @ moments.T
    Dbar = (w * (1 - P) * (gbar_e - gbar_x)) @ moments.T
    change = np.stack([-D, D / 2, D / 2, -Dbar, Dbar / 2, Dbar / 2], axis=1)
    return F_init + change
