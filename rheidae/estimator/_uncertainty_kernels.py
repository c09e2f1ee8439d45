"""Numba kernels of `rheidae.estimator.uncertainty`: row by row what NumPy would take a dozen passes for."""

from __future__ import annotations

import numpy as np

from rheidae.system.numba import driver, scalar_kernel

DESCRIPTION = 12


@scalar_kernel
def _length(x, y, z):
    return np.sqrt(x * x + y * y + z * z)


@driver
def describe_rows(F, out):
    """What tells near rows ``F (n, 6, 4)`` from far ones: densities, fluxes, and how far the species differ."""
    v = np.empty((7, 4))
    for i in range(F.shape[0]):
        unlike = 0.0
        for k in range(4):
            v[0, k], v[1, k] = F[i, 0, k], 0.5 * (F[i, 1, k] + F[i, 2, k])
            v[2, k], v[3, k] = F[i, 3, k], 0.5 * (F[i, 4, k] + F[i, 5, k])
            v[4, k], v[5, k] = v[0, k] - v[2, k], v[1, k] - v[3, k]
            v[6, k] = v[4, k] - v[5, k]
            nu, nubar = F[i, 1, k] - F[i, 2, k], F[i, 4, k] - F[i, 5, k]
            unlike += nu * nu + nubar * nubar
        for s in range(4):
            out[i, s] = v[s, 3]
        for s in range(7):
            out[i, 4 + s] = _length(v[s, 0], v[s, 1], v[s, 2])
        out[i, 11] = np.sqrt(unlike)


@driver
def neighbour_rows(F, F_pred, sizes, lost, terms, far, unlike):
    """Squares of what each variation changes of each species, its flux and its density, into ``terms (n, 6, 2, > 3)``.

    ``far (n, 6, 4)``: the scheme's answer, the prediction where it has none. ``unlike (n)``: whether mu and tau differ
    by any bit.
    """
    kinds = sizes.shape[2]
    for i in range(F.shape[0]):
        for nu in range(2):
            for c in range(2):
                for kind in range(kinds):
                    a, b, d = sizes[i, 0, kind, nu, c], sizes[i, 1, kind, nu, c], sizes[i, 2, kind, nu, c]
                    terms[i, 3 * nu, c, kind] = 0.25 * (a + b) * (a + b)
                    terms[i, 3 * nu + 1, c, kind] = 0.25 * (a + d) * (a + d)
                    terms[i, 3 * nu + 2, c, kind] = 0.25 * (b + d) * (b + d)
                for kind in range(kinds, terms.shape[3]):
                    for s in range(3):
                        terms[i, 3 * nu + s, c, kind] = 0.0
        unlike[i] = False
        for nu in range(2):
            for k in range(4):
                s, q = 3 * nu, lost[i, nu, k]
                unlike[i] |= F[i, s + 1, k] != F[i, s + 2, k]
                far[i, s, k] = F[i, s, k] - q if np.isfinite(q) else F_pred[i, s, k]
                far[i, s + 1, k] = F[i, s + 1, k] + 0.5 * q if np.isfinite(q) else F_pred[i, s + 1, k]
                far[i, s + 2, k] = F[i, s + 2, k] + 0.5 * q if np.isfinite(q) else F_pred[i, s + 2, k]


@driver
def mean_square_rows(A, B, out):
    """Of ``A - B (n, 6, 4)``: of fluxes, by component, and of densities, ``(n, 6, 2)``."""
    for i in range(A.shape[0]):
        for s in range(6):
            x, y, z, t = (
                A[i, s, 0] - B[i, s, 0],
                A[i, s, 1] - B[i, s, 1],
                A[i, s, 2] - B[i, s, 2],
                A[i, s, 3] - B[i, s, 3],
            )
            out[i, s, 0], out[i, s, 1] = (x * x + y * y + z * z) / 3.0, t * t


@driver
def deviation_rows(F, F_pred, share, learned, other, out):
    """Roots of the mixed variances ``(n, 6, 2)`` by component ``(n, 6, 4)``; zero where nothing changes."""
    for i in range(F.shape[0]):
        changed = False
        for s in range(6):
            for k in range(4):
                changed |= F[i, s, k] != F_pred[i, s, k]
        for s in range(6):
            flux = np.sqrt(share[i] * learned[i, s, 0] + (1.0 - share[i]) * other[i, s, 0]) if changed else 0.0
            density = np.sqrt(share[i] * learned[i, s, 1] + (1.0 - share[i]) * other[i, s, 1]) if changed else 0.0
            out[i, s, 0] = out[i, s, 1] = out[i, s, 2] = flux
            out[i, s, 3] = density
