"""Numba kernels of `rheidae.estimator.uncertainty`: row by row what NumPy would take a dozen passes for."""

from __future__ import annotations

import numpy as np

from rheidae.mixing._asymptotic_kernels import asymptotic_rows
from rheidae.mixing._nodes_kernels import average_heavy
from rheidae.mixing._physical_kernels import limit_rows
from rheidae.mixing._variation_kernels import KINDS, variation_rows
from rheidae.system.numba import driver, kernel, scalar_kernel

DESCRIPTION = 12
#: Its numbers with neutrinos and antineutrinos exchanged.
EXCHANGED = (2, 3, 0, 1, 6, 7, 4, 5, 8, 9, 10, 11)
#: Variances, over the square of the total density, that are none.
TINY = 1e-20


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
def distance_rows(F, mean, whitening, out):
    """Mahalanobis distances ``out (n)`` of states ``F (n, 6, 4)``, by what `describe_rows` says of them.

    Of a state and the one with neutrinos and antineutrinos exchanged, the smaller: a model knows both or none.
    """
    numbers = np.empty((F.shape[0], DESCRIPTION))
    describe_rows(F, numbers)
    for i in range(F.shape[0]):
        square = exchanged = 0.0
        for j in range(DESCRIPTION):
            white = other = 0.0
            for k in range(DESCRIPTION):
                white += (numbers[i, k] - mean[k]) * whitening[k, j]
                other += (numbers[i, EXCHANGED[k]] - mean[k]) * whitening[k, j]
            square += white * white
            exchanged += other * other
        out[i] = np.sqrt(min(square, exchanged))


@kernel
def _mean_square(A, B, out):
    """Of ``A - B (4)``: of the flux, by component, and of the density, into ``out (2)``."""
    x, y, z, t = A[0] - B[0], A[1] - B[1], A[2] - B[2], A[3] - B[3]
    out[0], out[1] = (x * x + y * y + z * z) / 3.0, t * t


@driver
def mean_square_rows(A, B, out):
    """Of ``A - B (n, 6, 4)``: of fluxes, by component, and of densities, ``(n, 6, 2)``."""
    for i in range(A.shape[0]):
        for s in range(6):
            _mean_square(A[i, s], B[i, s], out[i, s])


@driver
def term_rows(F, table, narrow, spheres, beams, levels, three, terms, far):
    """Squares of what each variation changes of each species, its flux and its density, into ``terms (n, 6, 2, 4)``.

    The last is what unlike mu and tau change. ``far (n, 6, 4)``: the scheme's answer; where mu and tau are unlike by
    any bit, that of its ``levels`` on ``spheres`` and ``beams``, as `asymptotic_rows` has them, else that of
    `variation_rows` on ``table`` and ``narrow``.
    """
    first, last, n = np.int64(0), np.int64(1), F.shape[0]
    sizes, lost = np.empty((n, 3, KINDS, 2, 2)), np.empty((n, 2, 4))
    mean, on_mean, moved = np.empty((1, 6, 4)), np.empty((1, 6, 4)), np.empty((6, 2))
    variation_rows(F, table, narrow, sizes, lost, first, n)
    for i in range(n):
        unlike = False
        for nu in range(2):
            for c in range(2):
                for kind in range(KINDS):
                    a, b, d = sizes[i, 0, kind, nu, c], sizes[i, 1, kind, nu, c], sizes[i, 2, kind, nu, c]
                    terms[i, 3 * nu, c, kind] = 0.25 * (a + b) * (a + b)
                    terms[i, 3 * nu + 1, c, kind] = 0.25 * (a + d) * (a + d)
                    terms[i, 3 * nu + 2, c, kind] = 0.25 * (b + d) * (b + d)
                for s in range(3):
                    terms[i, 3 * nu + s, c, KINDS] = 0.0
            for k in range(4):
                s, q = 3 * nu, lost[i, nu, k]
                unlike |= F[i, s + 1, k] != F[i, s + 2, k]
                far[i, s, k] = F[i, s, k] - q
                far[i, s + 1, k], far[i, s + 2, k] = F[i, s + 1, k] + 0.5 * q, F[i, s + 2, k] + 0.5 * q
        if three is None or not unlike:
            continue
        here, settled = F[i : i + 1], far[i : i + 1]
        average_heavy(here[0], mean[0])
        asymptotic_rows(here, spheres, beams, levels, three, settled, first, last)
        limit_rows(here, settled, first, last)
        asymptotic_rows(mean, spheres, beams, levels, three, on_mean, first, last)
        limit_rows(mean, on_mean, first, last)
        for s in range(6):
            for k in range(4):
                on_mean[0, s, k] += here[0, s, k] - mean[0, s, k]
            _mean_square(settled[0, s], on_mean[0, s], moved[s])
        for s in range(6):
            for c in range(2):
                f = s // 3 * 3
                terms[i, s, c, KINDS] = (moved[f, c] + moved[f + 1, c] + moved[f + 2, c]) / 3.0


@driver
def part_rows(F, F_pred, far, terms, mean, whitening, distance, near, apart, odd, share, learned, other, beyond):
    """Share ``(n)`` of what was learned, the variances ``(n, 6, 2)`` by it and by the scheme, and ``beyond (n)``.

    The latter is by how much the distance from the rows seen exceeds that of 95 of 100 of these. ``near``, ``apart``
    ``(6, 2, 5)``: coefficients of the terms, and constants.
    """
    distance_rows(F, mean, whitening, beyond)
    mean_square_rows(F_pred, far, other)
    count = terms.shape[3]
    for i in range(F.shape[0]):
        beyond[i] = max(beyond[i] - distance[0], 0.0)
        share[i] = (1.0 - odd[0]) * np.exp(-0.5 * beyond[i] * beyond[i])
        for s in range(6):
            for c in range(2):
                by_rows, by_scheme = near[s, c, count] + TINY, apart[s, c, count] + TINY
                for kind in range(count):
                    by_rows += terms[i, s, c, kind] * near[s, c, kind]
                    by_scheme += terms[i, s, c, kind] * apart[s, c, kind]
                learned[i, s, c] = by_rows
                other[i, s, c] += by_scheme


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
