"""Numba kernel of the quick growth rate: features of the lepton number on a small rule, and a small network.

Features
--------
With G(n) between two flavors, L the side (G > 0 or G < 0) of the larger integral and S the other, for each side the
integral I, the mean direction j = int |G| n / I and the second moment Q = int |G| (n n - 1/3) / I:

    ln(I_S/I_L), j_L.j_L, j_S.j_S, j_L.j_S, Q_L:Q_L, Q_S:Q_S, Q_L:Q_S,
    j_S.Q_L.j_S, j_S.Q_S.j_S, j_L.Q_L.j_L, j_L.Q_S.j_L, j_S.Q_L.j_L, j_S.Q_S.j_L.

All are rotation invariants, and the nodes turn with the state. The rate is sqrt(I_L I_S) exp(network(features)), one
hidden layer of tanh. Where both sides are nearly equal it goes over, by `BOTH`, to that with the sides exchanged, so
that it does not jump where the other becomes the larger. States with beams have nodes that follow them.
"""

from __future__ import annotations

import numpy as np

from rheidae.linear._beams_kernels import fill_lepton_numbers
from rheidae.mixing._box3d_kernels import FOUR_PI
from rheidae.mixing._closure_kernels import LOG2_E, pow2, z_over_sinh
from rheidae.mixing._nodes_kernels import COLUMNS, NODE_ROWS, alike, average_heavy, enter, total_of
from rheidae.system.numba import driver, kernel, simd_function

FEATURES = 13
#: Differences of mu and tau, over the total density, that are rounding of single precision.
ALIKE = 1e-6
#: Largest Z on a rule without nodes for beams: a flux factor of 0.99.
NARROWEST = 100.0
#: Of ln(I_S/I_L): from this on the larger side alone is the larger one.
BOTH = 0.1
#: Features with the sides exchanged.
EXCHANGED = (0, 2, 1, 3, 5, 4, 6, 10, 9, 8, 7, 12, 11)
_LEAST = 1e-4
"""Ratio of the integrals below which the feature stays: nothing was fitted there."""


@kernel
def _add_minerbo(own, scale, half, weights, g):
    """Add ``scale`` times the distribution of one of `enter`'s species, over pairs of opposite directions."""
    simd_function()
    Z = min(own[3], NARROWEST)
    A, s = scale * own[4] * z_over_sinh(Z) / FOUR_PI, LOG2_E * Z
    x, y, z = s * own[0], s * own[1], s * own[2]
    pairs = half.shape[1]
    for p in range(pairs):
        e = pow2(x * half[0, p] + y * half[1, p] + z * half[2, p])
        w = A * weights[p]
        g[p] += w * e
        g[pairs + p] += w / e


@kernel
def _sums(La, Lb, half, pairs, plus, minus):
    """Moments 1, x, y, z, xx, xy, xz, yy, yz, zz of the positive and the negative part of ``La - Lb``.

    The second half of ``La`` and ``Lb`` is opposite to the first.
    """
    simd_function()
    a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = a8 = a9 = 0.0
    b0 = b1 = b2 = b3 = b4 = b5 = b6 = b7 = b8 = b9 = 0.0
    for p in range(pairs):
        x, y, z = half[0, p], half[1, p], half[2, p]
        g, opposite = La[p] - Lb[p], La[pairs + p] - Lb[pairs + p]
        u, v = max(g, 0.0), max(opposite, 0.0)
        s, d = u + v, u - v
        a0 += s
        a1 += d * x
        a2 += d * y
        a3 += d * z
        a4 += s * x * x
        a5 += s * x * y
        a6 += s * x * z
        a7 += s * y * y
        a8 += s * y * z
        a9 += s * z * z
        u, v = u - g, v - opposite
        s, d = u + v, u - v
        b0 += s
        b1 += d * x
        b2 += d * y
        b3 += d * z
        b4 += s * x * x
        b5 += s * x * y
        b6 += s * x * z
        b7 += s * y * y
        b8 += s * y * z
        b9 += s * z * z
    plus[0], plus[1], plus[2], plus[3], plus[4] = a0, a1, a2, a3, a4
    plus[5], plus[6], plus[7], plus[8], plus[9] = a5, a6, a7, a8, a9
    minus[0], minus[1], minus[2], minus[3], minus[4] = b0, b1, b2, b3, b4
    minus[5], minus[6], minus[7], minus[8], minus[9] = b5, b6, b7, b8, b9


@kernel
def _form(Q, a, b):
    """a.Q.b for ``Q`` as xx, xy, xz, yy, yz, zz."""
    return (
        Q[0] * a[0] * b[0] + Q[3] * a[1] * b[1] + Q[5] * a[2] * b[2]
        + Q[1] * (a[0] * b[1] + a[1] * b[0]) + Q[2] * (a[0] * b[2] + a[2] * b[0]) + Q[4] * (a[1] * b[2] + a[2] * b[1])
    )  # fmt: skip


@kernel
def _double(Q, P):
    """Double contraction Q:P."""
    return Q[0] * P[0] + Q[3] * P[3] + Q[5] * P[5] + 2.0 * (Q[1] * P[1] + Q[2] * P[2] + Q[4] * P[4])


@kernel
def _features(plus, minus, out):
    """The 13 features into ``out``; returns sqrt(I_L I_S), 0 without a crossing. Overwrites the sums."""
    if plus[0] >= minus[0]:
        large, small = plus, minus
    else:
        large, small = minus, plus
    L, S = large[0], small[0]
    # What rounding leaves of equal distributions, or of a side that is not there, is no crossing.
    if not S > 1e-12 * L or not L > 0.0:
        return 0.0
    for k in range(1, 10):
        large[k] /= L
        small[k] /= S
    third = 1.0 / 3.0
    for k in (4, 7, 9):
        large[k] -= third
        small[k] -= third
    jl, js, Ql, Qs = large[1:4], small[1:4], large[4:10], small[4:10]
    out[0] = np.log(max(S / L, _LEAST))
    out[1] = jl[0] ** 2 + jl[1] ** 2 + jl[2] ** 2
    out[2] = js[0] ** 2 + js[1] ** 2 + js[2] ** 2
    out[3] = jl[0] * js[0] + jl[1] * js[1] + jl[2] * js[2]
    out[4], out[5], out[6] = _double(Ql, Ql), _double(Qs, Qs), _double(Ql, Qs)
    out[7], out[8], out[9] = _form(Ql, js, js), _form(Qs, js, js), _form(Ql, jl, jl)
    out[10], out[11], out[12] = _form(Qs, jl, jl), _form(Ql, js, jl), _form(Qs, js, jl)
    return np.sqrt(L * S)


@kernel
def _network(x, W, b, v, c, hidden):
    """``c + v . tanh(W x + b)``, with W ``(FEATURES, hidden)``; ``hidden`` is scratch."""
    simd_function()
    for h in range(np.uint64(b.shape[0])):
        hidden[h] = b[h]
    for k in range(FEATURES):
        for h in range(np.uint64(b.shape[0])):
            hidden[h] += x[k] * W[k, h]
    total = c
    for h in range(np.uint64(b.shape[0])):
        # tanh s = 1 - 2/(exp(2 s) + 1)
        t = min(max(2.0 * LOG2_E * hidden[h], -60.0), 60.0)
        total += v[h] * (1.0 - 2.0 / (pow2(t) + 1.0))
    return total


@kernel
def _of_both(x, W, b, v, c, hidden, other):
    """`_network`, and the mean with that of exchanged sides where these are nearly equal; ``other`` is scratch."""
    found = _network(x, W, b, v, c, hidden)
    if x[0] < -BOTH:
        return found
    for k in range(FEATURES):
        other[k] = x[EXCHANGED[k]]
    t = -x[0] / BOTH
    return found - 0.25 * (1.0 - t) * (1.0 - t) * (2.0 + t) * (found - _network(other, W, b, v, c, hidden))


@kernel
def _features_of_pairs(total, unlike, L, nodes, m, plus, minus, x, scale):
    """As `features` of one state, from its lepton numbers on m nodes and, behind them, the opposite ones."""
    for pair in range(3):
        scale[pair] = 0.0
        if pair == 0 or unlike:
            a, b = 1 if pair == 2 else 0, 1 if pair == 0 else 2
            _sums(L[a, : 2 * m], L[b, : 2 * m], nodes, m, plus, minus)
            found = _features(plus, minus, x[pair])
            scale[pair] = found if found > 1e-12 * total else 0.0


@driver
def features(F, half, weights, x, scale):
    """Features ``x (n, 3, FEATURES)`` of the pairs e-mu, e-tau and mu-tau of ``F (n, 6, 4)``, without nodes for beams.

    And ``scale (n, 3)``, sqrt(I_L I_S): 0 without a crossing, and but for the first pair where mu and tau are alike.
    """
    moments, Q, axes, species = np.empty((6, 4)), np.empty((3, 3)), np.empty((3, 3)), np.empty((6, COLUMNS))
    m = half.shape[1]
    L, plus, minus = np.empty((3, 2 * m)), np.empty(10), np.empty(10)
    for r in range(F.shape[0]):
        total = total_of(F[r])
        unlike = not alike(F[r], ALIKE * total)
        flavors = 3 if unlike else 2
        enter(F[r], np.int64(flavors), moments, Q, axes, species)
        for a in range(flavors):
            L[a] = 0.0
            _add_minerbo(species[a], total, half, weights, L[a])
            _add_minerbo(species[flavors + a], -total, half, weights, L[a])
        _features_of_pairs(total, unlike, L, half, m, plus, minus, x[r], scale[r])


@driver
def features_of_beams(F, table, narrow, x, scale):
    """The same on nodes that follow the beams."""
    state = np.empty((6, 4))
    moments, Q, axes, species = np.empty((6, 4)), np.empty((3, 3)), np.empty((3, 3)), np.empty((6, COLUMNS))
    size = table.shape[1] + 6 * narrow.shape[1]
    scratch, work, L = np.empty((10, 12)), np.empty((NODE_ROWS, size)), np.empty((3, 2 * size))
    plus, minus = np.empty(10), np.empty(10)
    for r in range(F.shape[0]):
        total = total_of(F[r])
        unlike = not alike(F[r], ALIKE * total)
        average_heavy(F[r], state)
        if unlike:
            for s in range(6):
                for k in range(4):
                    state[s, k] = F[r, s, k]
        m = fill_lepton_numbers(state, table, narrow, moments, Q, axes, species, scratch, work, L)
        L[:, m : 2 * m] = 0.0
        _features_of_pairs(total, unlike, L, work, m, plus, minus, x[r], scale[r])


@driver
def rates(x, scale, W, b, v, c, out):
    """Growth rates ``out (n)`` from features, in the unit of ``scale``; the largest of the pairs."""
    hidden, other = np.empty(b.shape[0]), np.empty(FEATURES)
    for r in range(x.shape[0]):
        best = 0.0
        for pair in range(3):
            if scale[r, pair] > 0.0:
                best = max(best, scale[r, pair] * np.exp(_of_both(x[r, pair], W, b, v, c, hidden, other)))
        out[r] = best
