"""Numba kernels of neighbours of the asymptotic scheme: how far other plausible functions move its answer.

For each pair of flavors a and b, with ``G = L_a - L_b`` counted positive on the larger side and as if the third flavor
were like b: ``q = 1 - P = 2/3 - c u``, ``u = G/sqrt(G^2 + s^2)``, c = 2/3 for G > 0 and 1/3 for G < 0. Three
directions in which q may vary,

    shape   c u (1 - u^2) (1 - 2 u^2)     as if G/s were raised to a power; 2 u^2 - 1 stands for its logarithm
    rise    c u for G < 0                 less leaves the smaller side, down to equipartition
    amount  q exp(-depth/SHALLOW)         more or less of all, where the crossing is shallow: depth = I_small/I_large

each with the change of s that keeps ``int q G = 0``, ``dq/dlog s = c u (1 - u^2)``. It changes the moments that a loses
by ``int dq (g_a - g_b)(n, 1)``; out of this come its density, the same for neutrinos and antineutrinos, and the rms of
the components of its flux, which know no frame.
"""

from __future__ import annotations

import numpy as np

from rheidae.mixing._asymptotic_kernels import fade, fill_values, inverse_sqrt, solve_scale
from rheidae.mixing._box3d_kernels import NOISE
from rheidae.mixing._nodes_kernels import COLUMNS, NODE_ROWS, VALUES, WEIGHT, X, Y, Z, enter, fill_nodes
from rheidae.system.numba import driver, kernel, simd_function

#: Directions of variation.
KINDS = 3
#: Depth of a crossing below which its whole change is in doubt.
SHALLOW = 0.06
_NU, _NUBAR, _G, _PART = NODE_ROWS, NODE_ROWS + 1, NODE_ROWS + 2, NODE_ROWS + 3
_ROWS = NODE_ROWS + 4


@kernel
def _varied(x, y, z, nu, G, square, out):
    """Moments by dq/dlog s, shape, rise and q itself, into ``out (4, 4)``."""
    simd_function()
    b0 = b1 = b2 = b3 = s0 = s1 = s2 = s3 = r0 = r1 = r2 = r3 = a0 = a1 = a2 = a3 = 0.0
    for i in range(np.uint64(x.shape[0])):
        value = G[i]
        u = value * inverse_sqrt(value * value + square)
        rise = (1.0 / 6.0) * (u - abs(u))
        kept = 0.5 * u + (1.0 / 6.0) * abs(u)
        lost = nu[i] * (2.0 / 3.0 - kept)
        both = nu[i] * kept * (1.0 - u * u)
        shape = both * (1.0 - 2.0 * u * u)
        rise *= nu[i]
        b0 += both * x[i]
        b1 += both * y[i]
        b2 += both * z[i]
        b3 += both
        s0 += shape * x[i]
        s1 += shape * y[i]
        s2 += shape * z[i]
        s3 += shape
        r0 += rise * x[i]
        r1 += rise * y[i]
        r2 += rise * z[i]
        r3 += rise
        a0 += lost * x[i]
        a1 += lost * y[i]
        a2 += lost * z[i]
        a3 += lost
    out[0, 0], out[0, 1], out[0, 2], out[0, 3] = b0, b1, b2, b3
    out[1, 0], out[1, 1], out[1, 2], out[1, 3] = s0, s1, s2, s3
    out[2, 0], out[2, 1], out[2, 2], out[2, 3] = r0, r1, r2, r3
    out[3, 0], out[3, 1], out[3, 2], out[3, 3] = a0, a1, a2, a3


@kernel
def _pair(n, a, b, flavors, sign, work, scratch, sums, size):
    """Sizes ``(KINDS, 2, 2)`` of the variations of one pair: neutrinos and antineutrinos; flux and density."""
    G, c, out = work[_G, :n], work[_PART, :n], scratch[0]
    nu, nubar = VALUES, VALUES + flavors
    fill_values(
        sign, work[WEIGHT, :n], work[nu + a, :n], work[nu + b, :n], work[nubar + a, :n], work[nubar + b, :n],
        work[_NU, :n], work[_NUBAR, :n], G, c, out,
    )  # fmt: skip
    large, small, moment = out[0], out[1], out[2]
    for kind in range(KINDS):
        for k in range(2):
            size[kind, k, 0] = size[kind, k, 1] = 0.0
    if small <= NOISE:
        return
    s = solve_scale(c, G, small, (2.0 / 3.0) * large + (1.0 / 3.0) * small, moment, out)
    for k in range(2):
        _varied(work[X, :n], work[Y, :n], work[Z, :n], work[_NU + k, :n], G, s * s + 1e-280, sums[k])
    slope = sums[0, 0, 3] - sums[1, 0, 3]
    for kind in range(KINDS):
        share = fade(small)
        if kind == 2:
            share *= np.exp(-small / (SHALLOW * large)) if small < large else 0.0
        factor = (sums[1, 1 + kind, 3] - sums[0, 1 + kind, 3]) / slope if abs(slope) > 1e-30 else 0.0
        for k in range(2):
            square = 0.0
            for i in range(3):
                square += (sums[k, 1 + kind, i] + factor * sums[k, 0, i]) ** 2
            size[kind, k, 0] = share * np.sqrt(square / 3.0)
            size[kind, k, 1] = share * abs(sums[k, 1 + kind, 3] + factor * sums[k, 0, 3])


@driver
def variation_rows(F, table, narrow, sizes, start, stop):
    """Rows ``start:stop`` of ``F (n, 6, 4)`` into ``sizes (n, 3, KINDS, 2, 2)``: pairs e-mu, e-tau, mu-tau."""
    moments, Q, axes, species = np.empty((6, 4)), np.empty((3, 3)), np.empty((3, 3)), np.empty((6, COLUMNS))
    scratch, sums = np.empty((11, 12)), np.empty((2, 1 + KINDS, 4))
    work = np.empty((_ROWS, table.shape[1] + 6 * narrow.shape[1]))
    for i in range(start, stop):
        for pair in range(3):
            for kind in range(KINDS):
                for k in range(2):
                    sizes[i, pair, kind, k, 0] = sizes[i, pair, kind, k, 1] = 0.0
        total, flavors, beams = enter(F[i], 0, moments, Q, axes, species)
        if not total > 0.0:
            continue
        n = fill_nodes(2 * flavors, beams, species, moments, Q, table, narrow, scratch, work)
        for pair in range(3 if flavors == 3 else 1):
            a, b = (1 if pair == 2 else 0), (1 if pair == 0 else 2)
            net = moments[a, 3] - moments[flavors + a, 3] - moments[b, 3] + moments[flavors + b, 3]
            _pair(n, a, b, flavors, 1.0 if net >= 0.0 else -1.0, work, scratch, sums, sizes[i, pair])
        if flavors == 2:
            for kind in range(KINDS):
                for k in range(2):
                    sizes[i, 1, kind, k, 0], sizes[i, 1, kind, k, 1] = sizes[i, 0, kind, k, 0], sizes[i, 0, kind, k, 1]
