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

from rheidae.mixing._asymptotic_kernels import fade, fill_pairs, fill_values, inverse_sqrt, solve_scale
from rheidae.mixing._box3d_kernels import NOISE
from rheidae.mixing._nodes_kernels import COLUMNS, NODE_ROWS, VALUES, WEIGHT, X, Y, Z, enter, fill_nodes, sums_on_nodes
from rheidae.system.numba import driver, kernel, simd_function

#: Directions of variation.
KINDS = 3
#: Depth of a crossing below which its whole change is in doubt.
SHALLOW = 0.06
_NU, _NUBAR, _G, _PART = NODE_ROWS, NODE_ROWS + 1, NODE_ROWS + 2, NODE_ROWS + 3
# By dq/dlog s, shape, rise and q itself.
_KIND = NODE_ROWS + 4
_ROWS = _KIND + 4


@kernel
def _vary(G, square, slope, shape, rise, q):
    simd_function()
    for i in range(np.uint64(G.shape[0])):
        value = G[i]
        u = value * inverse_sqrt(value * value + square)
        kept = 0.5 * u + (1.0 / 6.0) * abs(u)
        steep = kept * (1.0 - u * u)
        slope[i], shape[i], rise[i] = steep, steep * (1.0 - 2.0 * u * u), (1.0 / 6.0) * (u - abs(u))
        q[i] = 2.0 / 3.0 - kept


@kernel
def _pair(nodes, large, small, moment, work, n, scratch, sums, size):
    """Sizes ``(KINDS, 2, 2)`` of the variations of one pair, if it crosses: nu and nubar; flux and density.

    ``sums (1 + KINDS, 8)`` are those behind them, the last what the scheme itself moves.
    """
    sums[:] = 0.0
    if small <= NOISE:
        return
    G, nu, nubar = work[_G, :n], work[_NU, :n], work[_NUBAR, :n]
    s = solve_scale(work[_PART, :n], G, small, (2.0 / 3.0) * large + (1.0 / 3.0) * small, moment, scratch[0])
    _vary(G, s * s + 1e-280, work[_KIND], work[_KIND + 1], work[_KIND + 2], work[_KIND + 3])
    for kind in range(1 + KINDS):
        sums_on_nodes(nodes[X, :n], nodes[Y, :n], nodes[Z, :n], nu, nubar, work[_KIND + kind, :n], sums[kind])
    slope = sums[0, 3] - sums[0, 7]
    for kind in range(KINDS):
        share = fade(small)
        if kind == 2:
            share *= np.exp(-small / (SHALLOW * large)) if small < large else 0.0
        factor = (sums[1 + kind, 7] - sums[1 + kind, 3]) / slope if abs(slope) > 1e-30 else 0.0
        for k in range(2):
            square = 0.0
            for i in range(4 * k, 4 * k + 3):
                square += (sums[1 + kind, i] + factor * sums[0, i]) ** 2
            size[kind, k, 0] = share * np.sqrt(square / 3.0)
            size[kind, k, 1] = share * abs(sums[1 + kind, 4 * k + 3] + factor * sums[0, 4 * k + 3])
    for k in range(8):
        sums[KINDS, k] *= fade(small)


@driver
def variation_rows(F, table, narrow, sizes, lost, start, stop):
    """Rows ``start:stop`` of ``F (n, 6, 4)`` into ``sizes (n, 3, KINDS, 2, 2)``: pairs e-mu, e-tau, mu-tau.

    ``lost (n, 2, 4)``: what nu_e and nubar_e lose under the scheme, over the total; NaN where mu and tau differ.
    """
    moments, Q, axes, species = np.empty((6, 4)), np.empty((3, 3)), np.empty((3, 3)), np.empty((6, COLUMNS))
    scratch, sums = np.empty((10, 12)), np.empty((1 + KINDS, 8))
    work = np.empty((_ROWS, table.shape[1] + 6 * narrow.shape[1]))
    out = scratch[0]
    for i in range(start, stop):
        sizes[i] = 0.0
        lost[i] = 0.0
        total, flavors, beams = enter(F[i], np.int64(0), moments, Q, axes, species)
        if not total > 0.0:
            continue
        nodes, n = table, table.shape[1]
        by_pairs = flavors == 2 and beams == 0
        if not by_pairs:
            nodes, n = work, fill_nodes(2 * flavors, beams, species, moments, Q, table, narrow, scratch, work)
        for pair in range(3 if flavors == 3 else 1):
            a, b = (1 if pair == 2 else 0), (1 if pair == 0 else 2)
            net = moments[a, 3] - moments[flavors + a, 3] - moments[b, 3] + moments[flavors + b, 3]
            sign = 1.0 if net >= 0.0 else -1.0
            nu, nubar, G, c = work[_NU, :n], work[_NUBAR, :n], work[_G, :n], work[_PART, :n]
            if by_pairs:
                half = n // 2
                fill_pairs(
                    species, sign, table[X, :half], table[Y, :half], table[Z, :half], table[WEIGHT, :half],
                    nu[:half], nu[half:], nubar[:half], nubar[half:], G[:half], G[half:], c[:half], c[half:], out,
                )  # fmt: skip
            else:
                g, gbar = VALUES, VALUES + flavors
                fill_values(
                    sign, work[WEIGHT, :n], work[g + a, :n], work[g + b, :n], work[gbar + a, :n], work[gbar + b, :n],
                    nu, nubar, G, c, out,
                )  # fmt: skip
            _pair(nodes, out[0], out[1], out[2], work, n, scratch, sums, sizes[i, pair])
        if flavors == 2:
            sizes[i, 1] = sizes[i, 0]
            q = sums[KINDS]
            for k in range(2):
                for j in range(3):
                    lost[i, k, j] = q[4 * k] * axes[0, j] + q[4 * k + 1] * axes[1, j] + q[4 * k + 2] * axes[2, j]
                lost[i, k, 3] = 0.5 * (q[3] + q[7])
        else:
            lost[i] = np.nan
