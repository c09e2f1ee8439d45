"""Numba kernels of asymptotic mixing: the settled state, without fitted numbers. No validation here.

Interface
---------
asymptotic_rows(F, spheres, narrow, levels, three, out, start, stop)
    rows ``start:stop`` of ``F (n, 6, 4)`` (float64) -> ``out``; rules from `symmetric_rule` and `spiral_rule`.
    ``three``: True, or None where mu equals tau in all rows, and what mixes three flavors need not be compiled.
transition_row(F, table, narrow, directions, p)
    ``p (m, 3, 3)``, from flavor to flavor, of one state (6, 4) in ``directions (3, m)``.
matrix_rows(F, table, narrow, out, start, stop)
    rows ``start:stop`` of ``F (n, 6, 4)`` -> ``out (n, 2, 6, 6)``, averages of those over densities and fluxes.
crossing_rows(F, table, narrow, crosses, start, stop)
    ``crosses (n, 3)``: whether the pairs e-mu, e-tau, mu-tau do.

One pair: two flavors
---------------------
``G = L_a - L_b``, ``L = g - gbar`` per direction, counted positive on the side with the larger integral. Both stay with
probability ``1/2 + G/(2 sqrt(G^2 + s^2))``, s from ``int (1 - T) G = 0``.

mu = tau: electrons against x
-----------------------------
``P = 1/3 + a G/sqrt(G^2 + s^2)``, ``a`` = 2/3 for G > 0 and 1/3 for G < 0, ``int (1 - P) G = 0``.

Three flavors
-------------
The final order of the flavors is that of their conserved totals ``int L``. Of the six permutations one sorts a
direction so; permutation pi falls short of it by the cost ``c = max_rho e_rho - e_pi``, ``e_pi = sum_a L_a
lambda_pi(a)``. Permutations with a cost below a threshold t are equally likely, t spread as ``P(t < c) = u(c) =
c/sqrt(1 + c^2)``:

    p = sum_k (u(c_(k+1)) - u(c_(k))) * mean of the k cheapest permutations,      c_(1) = 0, u(c_(7)) = 1,

the two differences of lambda, ``alpha, beta``, from ``int L'_a = int L_a``. For mu = tau this is the line above.

The order of events
-------------------
The pair with the strongest crossing, ``sigma = sqrt(I+ I-)``, mixes first as two flavors, by the share
``1 - sigma_2nd/sigma_1st``; what that leaves mixes as three. See docs/physics.md for the argument.

The scale of one pair
---------------------
With ``c = a W |G|`` and ``u = |G|/sqrt(G^2 + s^2)`` both conditions read ``H(s) = sum c (1 - u) = goal`` with ``H(inf)
= sum c`` and ``dH/dlog s = sum c u (1 - u^2)``; goal is I_small, with a = 1 for a pair of two flavors 2 I_small. H goes
like s^2 for small s, ``H(inf) - H`` like 1/s for large, so ``log(H/(H(inf) - H))`` is nearly linear in log s: Halley's
method on it, in a bracket, has all digits after two or three steps; where it has not after eight (distributions of very
unlike widths), every second step halves the bracket, so that it converges for every input.

Levels
------
A cap or a lens of the smaller side that lies between a few nodes is the first level's error, and at worst 1e-2. The
doubt of a row is the root of the sum of ``w^2 ((g_e - g_x)^2 + (gbar_e - gbar_x)^2) rho^6`` over nodes, ``rho =
d^2/(d^2 + G^2 + s^2)``, d what G changes by over the node's cell: what nodes would be off by where G and s are small
against that. Of three flavors it is summed over the pair that mixes first, with its share and its s, and over neighbors
in the order of each direction, with s = 1/(alpha + beta); and over pairs without a crossing, with s = 0. The share of
the pair that mixes first goes like the root of the second crossing, so what the smaller side of that may hold between
the nodes counts by its root, times what the first pair moves. d goes by the gradient of G itself: where antineutrinos
of x are those of neutrinos, as in most simulations, they drop out. Where all fluxes lie on one line, nodes on one
circle are off alike, and doubt counts up to `CIRCLE` times as much. From `DOUBT` to twice that, the answer goes over to
one with more nodes; where that is in doubt, too, to one where every species of a flux factor above `FINE` has a rule of
its own; and from that, likewise, to one whose rules have twice as many.
With beams a level is also in doubt by its distance from the one before, the first by that from a coarser rule
(`CHECK`): where beams nearly cancel in G, nodes that lie unevenly about the line between its sides are off by what no
single one of them tells, a percent of what moves.
All levels conserve, and a mean of physical answers is physical. Most rows are found to be out of doubt by s alone: d is
nowhere larger than for the sum of all peaks.

Fading
------
A last node that leaves the smaller side does so with its whole weight. The share of a pair whose crossing closes is
therefore ``1 - 2^(-I_small/FADE)``; of three flavors the one of the second deepest crossing, and the deepest pair
mixes alone by what is missing to its own.
"""

from __future__ import annotations

import numpy as np

from rheidae.mixing._box3d_kernels import FADE, FOUR_PI, NOISE
from rheidae.mixing._closure_kernels import LOG2_E, log2, pow2, pow2_pair, z_over_sinh
from rheidae.mixing._nodes_kernels import (
    CELL,
    COLUMNS,
    DENSITY,
    DISTANCE,
    LARGEST,
    NODE_ROWS,
    VALUES,
    WEIGHT,
    X,
    Y,
    Z,
    enter,
    fill_nodes,
    fill_slope,
    give_rules,
    sums_on_nodes,
)  # fmt: skip
from rheidae.system.numba import driver, kernel, scalar_kernel, simd_function

#: Doubt, over the total density, from which on a row goes to the next level; from twice that on, wholly.
DOUBT = 1e-3
#: Flux factors between which a species comes to have a rule of its own there.
FINE = (0.05, 0.3)
#: The first level where species of such flux factors have one.
RULED = 2
#: Distance of a species, over the total density, from the level before, of the first from the rule `CHECK`, that counts
#: as `DOUBT` where there are beams.
APART, CHECK = 2e-4, 4
#: How much more doubt counts with all fluxes on one line, and the ratio of Q across it and along it where it begins to.
CIRCLE, NEARLY_LINE = 4.0, 0.02
#: Depth of a lens of G < 0 between nodes over what G changes by over the cell, at most: that of a parabola.
LENS = 1.0 / 8.0
#: Pairs of nodes that are looked at for a crossing at a time.
SOME = 16
_TINY = 1e-280
_LN_2 = 0.6931471805599453
# Rows of `work`: two flavors use four behind the weights, three flavors those of the distances and six more.
_NU, _NUBAR, _G, _PART = 4, 5, 6, 7
_EXCHANGE, _LEPTON, _UPPER, _LOWER, _BOTTOM = DENSITY, DISTANCE, 8, 9, 10
_MIXED, _SLOPE, _ROWS = NODE_ROWS, NODE_ROWS + 6, NODE_ROWS + 9


@scalar_kernel
def inverse_sqrt(x):
    """Return ``1/sqrt(x)`` of a normal positive x, to rounding: half as long as a square root and a division.

    The exponent is halved on the bits; series of third and second order then leave 7e-6 and 7e-16.
    """
    y = np.int64(0x5FE6EB50C7B537A9 - (np.float64(x).view(np.int64) >> 1)).view(np.float64)
    e = 1.0 - x * y * y
    y *= 1.0 + e * (0.5 + e * (0.375 + e * 0.3125))
    e = 1.0 - x * y * y
    return y * (1.0 + e * (0.5 + e * 0.375))


@scalar_kernel
def fade(small):
    """Share of a crossing with this ``I_small``."""
    return 1.0 - pow2(-min(small / FADE, 1000.0)) if small > NOISE else 0.0


# The scale of one pair
# ---------------------
@kernel
def _scale_sums(c, G, square, out):
    """H, and its first two derivatives by log s."""
    simd_function()
    total = slope = curve = 0.0
    for i in range(np.uint64(c.shape[0])):
        u = abs(G[i]) * inverse_sqrt(G[i] * G[i] + square)
        part = c[i] * (1.0 - u)
        total += part
        part *= u * (1.0 + u)
        slope += part
        curve += part * (u * u)
    out[0], out[1], out[2] = total, slope, 3.0 * curve - slope


@scalar_kernel
def _logit(goal, limit):
    """log2 of ``goal/(limit - goal)``."""
    room = limit - goal
    return log2(goal) - log2(room) if room > 1e-18 * limit else 100.0


@scalar_kernel
def _first_scale(logit, mean):
    """log2 of s by a fit to random states, within 10 %; `mean` of abs(G)."""
    return log2(mean) + 0.64 + 0.79 * logit


@kernel
def solve_scale(c, G, goal, limit, moment, out):
    """Return s with ``sum c (1 - u) = goal``; ``limit`` = sum c, ``moment`` = sum c abs(G)."""
    low, high = -80.0, 140.0
    logit = _logit(goal, limit)
    position = min(max(_first_scale(logit, moment / limit), low), high)
    for step in range(200):
        s = pow2(position)
        _scale_sums(c, G, s * s + _TINY, out)
        H, slope, curve = max(out[0], _TINY), out[1], out[2]
        if goal < H:
            high = position
        else:
            low = position
        rest = limit - H
        new = low - 1.0
        if rest > 0.0 and slope > 0.0:
            move = -(log2(H) - log2(rest) - logit) * H * rest / (slope * limit)
            # Half the logarithm's second derivative over its first.
            bend = 0.5 * (curve / slope - slope / H + slope / rest)
            new = position + move / max(1.0 + move * bend * _LN_2, 0.5)
        # The next error is about the third power of this step.
        if low <= new <= high and abs(new - position) < 1e-4:
            return pow2(new)
        if not low < new < high or (step >= 8 and step % 2 == 0):
            new = 0.5 * (low + high)
        if abs(new - position) < 1e-14 or high - low < 1e-13:
            break
        position = new
    return s


# mu = tau
# --------
@scalar_kernel
def _exponent(s):
    """Length of the exponent vector, to base 2; the vector; and the geometric mean of the distribution at antipodes."""
    a = LOG2_E * s[3]
    return a, a * s[0], a * s[1], a * s[2], s[4] / FOUR_PI * z_over_sinh(s[3])


@kernel
def fill_pairs(species, sign, x, y, z, w, nu, nu2, nubar, nubar2, G, G2, c, c2, out):
    """Without beams, by antipodal pairs: ``W (g_e - g_x)``, of antineutrinos, G and ``c``.

    ``out``: I+, I-, sum c G and the sum of squares of the first two.
    """
    simd_function()
    _, ex, ey, ez, eA = _exponent(species[0])
    _, fx, fy, fz, fA = _exponent(species[2])
    _, gx, gy, gz, gA = _exponent(species[1])
    _, hx, hy, hz, hA = _exponent(species[3])
    large = small = moment = squares = 0.0
    for i in range(np.uint64(x.shape[0])):
        p, q, r, v = x[i], y[i], z[i], w[i]
        e1, e2 = pow2_pair(ex * p + ey * q + ez * r)
        f1, f2 = pow2_pair(fx * p + fy * q + fz * r)
        g1, g2 = pow2_pair(gx * p + gy * q + gz * r)
        h1, h2 = pow2_pair(hx * p + hy * q + hz * r)
        d1, d2, b1, b2 = eA * e1 - gA * g1, eA * e2 - gA * g2, fA * f1 - hA * h1, fA * f2 - hA * h2
        n1, n2, m1, m2 = v * d1, v * d2, v * b1, v * b2
        nu[i], nu2[i], nubar[i], nubar2[i] = n1, n2, m1, m2
        squares += (n1 * n1 + n2 * n2) + (m1 * m1 + m2 * m2)
        d1, d2 = sign * (d1 - b1), sign * (d2 - b2)
        G[i], G2[i] = d1, d2
        b1, b2 = abs(d1), abs(d2)
        large += v * (b1 + d1 + b2 + d2)
        small += v * (b1 - d1 + b2 - d2)
        # a = 1/2 + G/(6 |G|)
        c1, c2_ = v * (0.5 * b1 + d1 * (1.0 / 6.0)), v * (0.5 * b2 + d2 * (1.0 / 6.0))
        c[i], c2[i] = c1, c2_
        moment += c1 * b1 + c2_ * b2
    out[0], out[1], out[2], out[3] = 0.5 * large, 0.5 * small, moment, squares


@kernel
def fill_values(sign, w, e, g, f, h, nu, nubar, G, c, out):
    """As `fill_pairs` from the distributions on the nodes: of e, x, ebar and xbar, or of any two flavors."""
    simd_function()
    large = small = moment = 0.0
    for i in range(np.uint64(w.shape[0])):
        v, d, b = w[i], e[i] - g[i], f[i] - h[i]
        nu[i], nubar[i] = v * d, v * b
        d = sign * (d - b)
        G[i] = d
        b = abs(d)
        large += v * (b + d)
        small += v * (b - d)
        part = v * (0.5 * b + d * (1.0 / 6.0))
        c[i] = part
        moment += part * b
    out[0], out[1], out[2] = 0.5 * large, 0.5 * small, moment


@kernel
def _lose(G, square, q):
    """Fill ``q = 1 - P``."""
    simd_function()
    for i in range(np.uint64(G.shape[0])):
        u = G[i] * inverse_sqrt(G[i] * G[i] + square)
        q[i] = 2.0 / 3.0 - (0.5 * u + (1.0 / 6.0) * abs(u))


@scalar_kernel
def _larger_side(moments):
    """Sign of G on the side with the larger integral; the moments are exact but for rounding, and so is this."""
    return 1.0 if moments[0, 3] - moments[1, 3] - moments[2, 3] + moments[3, 3] >= 0.0 else -1.0


@kernel
def _values_on_nodes(moments, n, work, out):
    """As `fill_values`, of e, x, ebar and xbar, from what `fill_nodes` left."""
    fill_values(
        _larger_side(moments), work[WEIGHT, :n], work[VALUES, :n], work[VALUES + 1, :n], work[VALUES + 2, :n],
        work[VALUES + 3, :n], work[_NU, :n], work[_NUBAR, :n], work[_G, :n], work[_PART, :n], out,
    )  # fmt: skip


@kernel
def _values(beams, least, species, moments, Q, table, narrow, scratch, work, out):
    """Nodes and integrands of a row with mu = tau; returns the number of nodes."""
    if beams > 0:
        n = fill_nodes(np.int64(4), beams, species, moments, Q, table, narrow, scratch, work)
        if least > 0.0:
            fill_slope(species, np.int64(0), np.int64(1), np.int64(2), np.int64(3), n, work, work[_SLOPE])
        _values_on_nodes(moments, n, work, out)
        return n
    n = table.shape[1]
    half = n // 2
    fill_pairs(
        species, _larger_side(moments), table[0, :half], table[1, :half], table[2, :half], table[3, :half],
        work[_NU, :half], work[_NU, half:n], work[_NUBAR, :half], work[_NUBAR, half:n],
        work[_G, :half], work[_G, half:n], work[_PART, :half], work[_PART, half:n], out,
    )  # fmt: skip
    return n


# Doubt
# -----
@scalar_kernel
def doubt(moved, slope, G, square):
    """Square of what a node may be off by: what it moves, if G and s are small over its cell."""
    rho = slope / (slope + G * G + square)
    rho *= rho
    return moved * (rho * rho * rho)


@kernel
def _least_square(largest, squares, doubt):
    """Square of the scale s from which on a row is not in doubt, whatever its nodes.

    Of squares of what G may change by over a cell, the largest possible, and of what nodes move, the sum.
    """
    return largest * (max((2.0 * squares / (doubt * doubt)) ** (1.0 / 6.0), 1.0) - 1.0)


@kernel
def _steepest(a, b, c, d, cell):
    """Square of what ``g_a - g_b - g_c + g_d`` may change by over a cell of this square size, at most."""
    first, second = a[3] * a[5] + c[3] * c[5], b[3] * b[5] + d[3] * d[5]
    if b[3] == d[3] and b[4] == d[4] and b[0] == d[0] and b[1] == d[1] and b[2] == d[2]:
        second = 0.0
    return cell * (1.0 + cell) * (first + second) ** 2


@scalar_kernel
def _over_cell(cell, square, along):
    """As `_slope` has it, from the squares of a gradient to base 2 and of its component along the node."""
    return cell * (cell * square + max(square - along, 0.0)) * (1.0 / (LOG2_E * LOG2_E)) + _TINY


@kernel
def _doubts_of_pairs(species, square, x, y, z, w, nu, nu2, nubar, nubar2, G, G2):
    """As `_doubts`, without beams."""
    simd_function()
    _, ex, ey, ez, eA = _exponent(species[0])
    _, fx, fy, fz, fA = _exponent(species[2])
    _, gx, gy, gz, gA = _exponent(species[1])
    _, hx, hy, hz, hA = _exponent(species[3])
    total = 0.0
    for i in range(np.uint64(x.shape[0])):
        p, q, r = x[i], y[i], z[i]
        te, tf = ex * p + ey * q + ez * r, fx * p + fy * q + fz * r
        tg, th = gx * p + gy * q + gz * r, hx * p + hy * q + hz * r
        e1, e2 = pow2_pair(te)
        f1, f2 = pow2_pair(tf)
        g1, g2 = pow2_pair(tg)
        h1, h2 = pow2_pair(th)
        e1, e2, f1, f2, g1, g2, h1, h2 = eA * e1, eA * e2, fA * f1, fA * f2, gA * g1, gA * g2, hA * h1, hA * h2
        cell = CELL * w[i]
        a, b = e1 * ex - g1 * gx - f1 * fx + h1 * hx, e1 * ey - g1 * gy - f1 * fy + h1 * hy
        c, d = e1 * ez - g1 * gz - f1 * fz + h1 * hz, e1 * te - g1 * tg - f1 * tf + h1 * th
        slope = _over_cell(cell, a * a + b * b + c * c, d * d)
        total += doubt(nu[i] * nu[i] + nubar[i] * nubar[i], slope, G[i], square)
        a, b = e2 * ex - g2 * gx - f2 * fx + h2 * hx, e2 * ey - g2 * gy - f2 * fy + h2 * hy
        c, d = e2 * ez - g2 * gz - f2 * fz + h2 * hz, e2 * te - g2 * tg - f2 * tf + h2 * th
        slope = _over_cell(cell, a * a + b * b + c * c, d * d)
        total += doubt(nu2[i] * nu2[i] + nubar2[i] * nubar2[i], slope, G2[i], square)
    return total


@kernel
def _doubts(nu, nubar, slope, G, square):
    """Of one pair of flavors."""
    simd_function()
    total = 0.0
    for i in range(np.uint64(G.shape[0])):
        total += doubt(nu[i] * nu[i] + nubar[i] * nubar[i], slope[i] + _TINY, G[i], square)
    return total


@kernel
def _doubts_alike(beams, least, species, squares, square, n, table, work):
    """Square of the doubt of a row with mu = tau, of both pairs; 0 where it is below `least` in any case."""
    nu, nubar, G = work[_NU, :n], work[_NUBAR, :n], work[_G, :n]
    if beams > 0:
        return 2.0 * _doubts(nu, nubar, work[_SLOPE, :n], G, square)
    steepest = _steepest(species[0], species[1], species[2], species[3], CELL * LARGEST / n)
    if square >= _least_square(steepest, squares, least):
        return 0.0
    half = n // 2
    return 2.0 * _doubts_of_pairs(
        species, square, table[0, :half], table[1, :half], table[2, :half], table[3, :half],
        nu[:half], nu[half:], nubar[:half], nubar[half:], G[:half], G[half:],
    )  # fmt: skip


@kernel
def _lost_alike(n, work, out):
    """1 - P of a row with mu = tau, over its `c`, which is of no more use then; returns the square of s."""
    large, small, moment = out[0], out[1], out[2]
    q = work[_PART, :n]
    s = solve_scale(q, work[_G, :n], small, (2.0 / 3.0) * large + (1.0 / 3.0) * small, moment, out)
    _lose(work[_G, :n], s * s + _TINY, q)
    return s * s


@kernel
def _mix_alike(beams, least, species, moments, Q, table, narrow, scratch, work, change):
    """Change of the six species in the frame, of a row with mu = tau; returns the square of its doubt if asked to."""
    out = scratch[7]
    n = _values(beams, least, species, moments, Q, table, narrow, scratch, work, out)
    small, squares = out[1], out[3]
    square = 0.0
    if small <= NOISE:
        change[:] = 0.0
    else:
        square = _lost_alike(n, work, out)
        nodes = work if beams > 0 else table
        sums_on_nodes(nodes[X, :n], nodes[Y, :n], nodes[Z, :n], work[_NU, :n], work[_NUBAR, :n], work[_PART, :n], out)
        share = fade(small)
        out[3] = out[7] = 0.5 * (out[3] + out[7])
        for k in range(4):
            for e in (0, 3):
                lost = share * out[k + e + e // 3]
                change[e, k], change[e + 1, k], change[e + 2, k] = -lost, 0.5 * lost, 0.5 * lost
    return _doubts_alike(beams, least, species, squares, square, n, table, work) if least > 0.0 else 0.0


# Three flavors, one pair
# -----------------------
@kernel
def _sides(La, Lb, w):
    """I+ and I- of ``La - Lb``."""
    simd_function()
    large = small = 0.0
    for i in range(np.uint64(w.shape[0])):
        G = La[i] - Lb[i]
        large += w[i] * (abs(G) + G)
        small += w[i] * (abs(G) - G)
    return 0.5 * large, 0.5 * small


@kernel
def _differences(La, Lb, w, G, c):
    """``abs(G)`` and ``c``; returns ``sum c abs(G)``."""
    simd_function()
    moment = 0.0
    for i in range(np.uint64(w.shape[0])):
        value = abs(La[i] - Lb[i])
        G[i], c[i] = value, w[i] * value
        moment += c[i] * value
    return moment


@kernel
def _leaving(La, Lb, sign, square, share, q):
    """Probability ``share (1 - T)`` to leave a flavor of the pair."""
    simd_function()
    for i in range(np.uint64(q.shape[0])):
        G = La[i] - Lb[i]
        q[i] = share * (0.5 - 0.5 * sign * G * inverse_sqrt(G * G + square))


@kernel
def _exchange(q, a, b):
    simd_function()
    for i in range(np.uint64(q.shape[0])):
        moved = q[i] * (a[i] - b[i])
        a[i] -= moved
        b[i] += moved


@kernel
def _pair(La, Lb, w, plus, minus, share, G, c, q, out):
    """Two-flavor mixing of a pair into ``q``; returns the square of its scale."""
    moment = _differences(La, Lb, w, G, c)
    s = solve_scale(c, G, 2.0 * min(plus, minus), plus + minus, moment, out)
    _leaving(La, Lb, 1.0 if plus >= minus else -1.0, s * s + _TINY, share, q)
    return s * s


# Three flavors, all pairs
# ------------------------
# Sorted by their lepton number in a direction, with gaps A = L1 - L2 and B = L2 - L3: the cheapest permutation is the
# identity, the dearest exchanges 1 and 3; between them come two exchanges of neighbors, then two cycles: up, from 1 to
# 2 to 3 to 1, and down, from 1 to 3 to 2 to 1. With alpha, beta > 0 the differences of lambda,
#     c12 = A alpha,  c23 = B beta,  up = c12 + c23 + B alpha,  down = c12 + c23 + A beta,  c13 = (A + B)(alpha + beta).
@kernel
def _sort(a, b, c, upper, lower, bottom):
    simd_function()
    for i in range(np.uint64(bottom.shape[0])):
        high, low = max(a[i], b[i]), min(a[i], b[i])
        top, middle = max(high, c[i]), min(high, c[i])
        least, middle = min(low, middle), max(low, middle)
        upper[i], lower[i], bottom[i] = top - middle, middle - least, least


@kernel
def _totals(A, B, w, alpha, beta, out):
    """``out``: int L'_1 and int L'_3 above each direction's lowest, their derivatives by log alpha and log beta."""
    simd_function()
    r1 = r3 = j11 = j12 = j31 = j32 = 0.0
    for i in range(np.uint64(A.shape[0])):
        a, b, v = A[i], B[i], w[i]
        c = a + b
        c12, c23 = a * alpha, b * beta
        up, down, c13 = c12 + c23 + b * alpha, c12 + c23 + a * beta, c * (alpha + beta)
        first, rising = c12 <= c23, up <= down
        g2, g3 = min(c12, c23), max(c12, c23)
        g4, g5 = min(up, down), max(up, down)
        h2, h3, h4 = inverse_sqrt(1.0 + g2 * g2), inverse_sqrt(1.0 + g3 * g3), inverse_sqrt(1.0 + g4 * g4)
        h5, h6 = inverse_sqrt(1.0 + g5 * g5), inverse_sqrt(1.0 + c13 * c13)
        # What each permutation, in the order of cost, brings to rank 1 and to rank 3; then means of the k cheapest.
        x2, x3 = (b if first else c), (c if first else b)
        x4, x5 = (0.0 if rising else b), (b if rising else 0.0)
        y2, y3 = (0.0 if first else b), (b if first else 0.0)
        y4, y5 = (b if rising else c), (c if rising else b)
        m2 = c + x2
        m3 = m2 + x3
        m4 = m3 + x4
        m5 = m4 + x5
        n3 = y2 + y3
        n4 = n3 + y4
        n5 = n4 + y5
        m2, m3, m4, m6, m5 = m2 * 0.5, m3 * (1.0 / 3.0), m4 * 0.25, m5 * (1.0 / 6.0), m5 * 0.2
        n2, n3, n4, n6, n5 = y2 * 0.5, n3 * (1.0 / 3.0), n4 * 0.25, (n5 + c) * (1.0 / 6.0), n5 * 0.2
        e2, e3, e4, e5, e6 = v * (c - m2), v * (m2 - m3), v * (m3 - m4), v * (m4 - m5), v * (m5 - m6)
        f2, f3, f4, f5, f6 = -v * n2, v * (n2 - n3), v * (n3 - n4), v * (n4 - n5), v * (n5 - n6)
        u2, u3, u4, u5, u6 = g2 * h2, g3 * h3, g4 * h4, g5 * h5, c13 * h6
        r1 += v * m6 + u2 * e2 + u3 * e3 + u4 * e4 + u5 * e5 + u6 * e6
        r3 += v * n6 + u2 * f2 + u3 * f3 + u4 * f4 + u5 * f5 + u6 * f6
        h2, h3, h4, h5, h6 = h2 * h2 * h2, h3 * h3 * h3, h4 * h4 * h4, h5 * h5 * h5, h6 * h6 * h6
        a2, a3 = (c12 if first else 0.0), (0.0 if first else c12)
        b2, b3 = (0.0 if first else c23), (c23 if first else 0.0)
        a4, a5 = (c * alpha if rising else c12), (c12 if rising else c * alpha)
        b4, b5 = (c23 if rising else c * beta), (c * beta if rising else c23)
        a2, a3, a4, a5, a6 = h2 * a2, h3 * a3, h4 * a4, h5 * a5, h6 * (c * alpha)
        b2, b3, b4, b5, b6 = h2 * b2, h3 * b3, h4 * b4, h5 * b5, h6 * (c * beta)
        j11 += a2 * e2 + a3 * e3 + a4 * e4 + a5 * e5 + a6 * e6
        j12 += b2 * e2 + b3 * e3 + b4 * e4 + b5 * e5 + b6 * e6
        j31 += a2 * f2 + a3 * f3 + a4 * f4 + a5 * f5 + a6 * f6
        j32 += b2 * f2 + b3 * f3 + b4 * f4 + b5 * f5 + b6 * f6
    out[0], out[1], out[2], out[3], out[4], out[5] = r1, r3, j11, j12, j31, j32


@kernel
def _solve_lower(A, B, w, alpha, t3, out):
    """The beta with ``int L'_3 = t3`` at this alpha: its logarithm into ``out[6]``, its `_totals` before."""
    low, high, position = -40.0, 40.0, 0.0
    for step in range(120):
        _totals(A, B, w, alpha, np.exp(position), out)
        if out[1] > t3:
            low = position
        else:
            high = position
        new = position - (out[1] - t3) / out[5]
        if abs(new - position) < 1e-13 or high - low < 1e-13:
            break
        if not low < new < high or (step >= 8 and step % 2 == 0):
            new = 0.5 * (low + high)
        position = new
    out[6] = position


@scalar_kernel
def _log_odds(part, whole):
    """Logarithm of ``part/(whole - part)``, within bounds."""
    rest = whole - part
    if not part > 1e-18 * whole:
        return -40.0
    return np.log(part / rest) if rest > 1e-18 * whole else 40.0


@kernel
def forget_scales(scratch):
    """Let `solve_two_scales` start anew, for a row or for its first level."""
    scratch[7, 8] = np.nan


@scalar_kernel
def _keep(log_a, log_b, out):
    out[8], out[9] = log_a, log_b
    return np.exp(log_a), np.exp(log_b)


@kernel
def solve_two_scales(A, B, w, t1, t3, out):
    """Return alpha and beta with ``int L'_1 = t1`` and ``int L'_3 = t3``, both above the lowest of each direction.

    What rank 1 loses is at most ``int (2 A + B)/3``, and its odds are like a power of alpha; what rank 3 gains is at
    most ``int (A + 2 B)/3``, likewise with beta. So Newton goes from the logarithms to those of the odds, shortened
    until the residual falls, and starts with what one pair alone would have, or with the logarithms of the level before
    in ``out[8:10]``, if they are not NaN. Where that fails, one in the other, each in a bracket that is halved at least
    every second step: int L'_3 falls with beta, and with it held right, int L'_1 rises with alpha.
    """
    a = b = a2 = b2 = 0.0
    for i in range(A.shape[0]):
        a += w[i] * A[i]
        b += w[i] * B[i]
        a2 += w[i] * A[i] * A[i]
        b2 += w[i] * B[i] * B[i]
    tolerance = 1e-13 * (a + b)
    most_1, most_3 = (2.0 * a + b) / 3.0, (a + 2.0 * b) / 3.0
    goal_1, goal_3 = _log_odds(a + b - t1, most_1), _log_odds(t3, most_3)
    log_a = np.log(a / a2 if a2 > 0.0 else 1.0) - 0.44 - 0.79 * goal_1
    log_b = np.log(b / b2 if b2 > 0.0 else 1.0) - 0.44 - 0.79 * goal_3
    if not np.isnan(out[8]):
        log_a, log_b = out[8], out[9]
    step_a = step_b = 0.0
    share, error = 1.0, np.inf
    for _ in range(40):
        _totals(A, B, w, np.exp(log_a + share * step_a), np.exp(log_b + share * step_b), out)
        r1, r3 = out[0] - t1, out[1] - t3
        if max(abs(r1), abs(r3)) < tolerance:
            return _keep(log_a + share * step_a, log_b + share * step_b, out)
        lost, gained = max(a + b - out[0], 1e-300), max(out[1], 1e-300)
        y1 = _log_odds(lost, most_1) - goal_1 if abs(r1) > tolerance else 0.0
        y3 = _log_odds(gained, most_3) - goal_3 if abs(r3) > tolerance else 0.0
        if not max(abs(y1), abs(y3)) < (1.0 - 1e-4 * share) * error:
            share *= 0.5
            if share < 1e-3:
                break
            continue
        log_a += share * step_a
        log_b += share * step_b
        error = max(abs(y1), abs(y3))
        # dy = most/(part (most - part)) dpart
        k1, k3 = lost * (1.0 - lost / most_1), gained * (1.0 - gained / most_3)
        j11, j12, j31, j32 = -out[2] / k1, -out[3] / k1, out[4] / k3, out[5] / k3
        determinant = j11 * j32 - j12 * j31
        step_a, step_b = (y3 * j12 - y1 * j32) / determinant, (y1 * j31 - y3 * j11) / determinant
        longest = max(abs(step_a), abs(step_b))
        if not longest < 1e6:
            break
        # Newton's next error is about the square of this step.
        if longest < 1e-7:
            return _keep(log_a + step_a, log_b + step_b, out)
        share = min(1.0, 4.0 / longest)
    low_a, high_a = -40.0, 40.0
    log_a = min(max(log_a, low_a), high_a)
    for step in range(120):
        _solve_lower(A, B, w, np.exp(log_a), t3, out)
        log_b = out[6]
        if out[0] < t1:
            low_a = log_a
        else:
            high_a = log_a
        new = log_a - (out[0] - t1) / (out[2] - out[3] * out[4] / out[5])
        if abs(out[0] - t1) < tolerance or high_a - low_a < 1e-13:
            break
        if not low_a < new < high_a or (step >= 8 and step % 2 == 0):
            new = 0.5 * (low_a + high_a)
        log_a = new
    return _keep(log_a, log_b, out)


@scalar_kernel
def _places(x, y, z):
    """Whether the largest of three numbers is the first, or the second; likewise the middle one and the least."""
    rises, over, last = y > x, z > x, z > y
    return (
        ((not rises) & (not over), rises & (not last)),
        (rises ^ over, not rises ^ last),
        (rises & over, (not rises) & last),
    )


@scalar_kernel
def _at(place, x, y, z):
    return x if place[0] else (y if place[1] else z)


@scalar_kernel
def _mixed(places, p, share, pair, q, x, y, z):
    """New ``x, y, z``, and the squares of the differences of neighbors in the order of the direction."""
    high, middle, low = _at(places[0], x, y, z), _at(places[1], x, y, z), _at(places[2], x, y, z)
    moved = q * (pair[0] * x + pair[1] * y + pair[2] * z)
    return (
        x + share * (p[0] * high + p[1] * middle + p[2] * low - x) - pair[0] * moved,
        y + share * (p[3] * high + p[4] * middle + p[5] * low - y) - pair[1] * moved,
        z + share * (p[6] * high + p[7] * middle + p[8] * low - z) - pair[2] * moved,
        (high - middle) * (high - middle),
        (middle - low) * (middle - low),
    )


@kernel
def _permute(
    La, Lb, Lc, upper, lower, alpha, beta, share, pair, q, w, slope_a, slope_b, slope_c, a, b, c, d, e, f
):  # fmt: skip
    """Replace each h of six by ``h + share (p h - h)``, less what a pair exchanges with probability ``q``.

    Flavors a, b, c in the order of their totals: lepton numbers; ``pair``, 1 and -1 for those of it, else 0; slopes,
    each of the other two; h, ``a`` to ``c`` of neutrinos and ``d`` to ``f`` of antineutrinos. Returns the square of the
    doubt, of neighbors in the order of each direction; half of it, since where mu and tau are alike two pairs are one
    pair of neighbors.
    """
    simd_function()
    square = 1.0 / ((alpha + beta) * (alpha + beta))
    doubts = 0.0
    for i in range(np.uint64(q.shape[0])):
        A, B = upper[i], lower[i]
        c12, c23 = A * alpha, B * beta
        up, down, c13 = c12 + c23 + B * alpha, c12 + c23 + A * beta, (A + B) * (alpha + beta)
        g2, g3 = min(c12, c23), max(c12, c23)
        g4, g5 = min(up, down), max(up, down)
        u2, u3 = g2 * inverse_sqrt(1.0 + g2 * g2), g3 * inverse_sqrt(1.0 + g3 * g3)
        u4, u5 = g4 * inverse_sqrt(1.0 + g4 * g4), g5 * inverse_sqrt(1.0 + g5 * g5)
        u6 = c13 * inverse_sqrt(1.0 + c13 * c13)
        w6 = (1.0 - u6) / 6.0
        w5 = w6 + (u6 - u5) / 5.0
        w4 = w5 + (u5 - u4) / 4.0
        w3 = w4 + (u4 - u3) / 3.0
        w2 = w3 + (u3 - u2) / 2.0
        w1 = w2 + u2
        s12, s23 = (w2 if c12 <= c23 else w3), (w3 if c12 <= c23 else w2)
        rising, falling = (w4 if up <= down else w5), (w5 if up <= down else w4)
        p = (
            w1 + s23, s12 + falling, w6 + rising, s12 + rising, w1 + w6, s23 + falling, w6 + falling, s23 + rising,
            w1 + s12,
        )  # fmt: skip
        places = _places(La[i], Lb[i], Lc[i])
        a[i], b[i], c[i], top, bottom = _mixed(places, p, share, pair, q[i], a[i], b[i], c[i])
        d[i], e[i], f[i], top_bar, bottom_bar = _mixed(places, p, share, pair, q[i], d[i], e[i], f[i])
        v = w[i] * w[i]
        # The slope of the highest two is that without the lowest.
        highest = _at(places[2], slope_a[i], slope_b[i], slope_c[i]) + _TINY
        lowest = _at(places[0], slope_a[i], slope_b[i], slope_c[i]) + _TINY
        doubts += doubt(v * (top + top_bar), highest, A, square) + doubt(v * (bottom + bottom_bar), lowest, B, square)
    return doubts


@scalar_kernel
def _by_total(x, y, z):
    """The three flavors by falling total."""
    first = 0 if x >= y and x >= z else (1 if y >= z else 2)
    third = 2 if z <= x and z <= y else (1 if y <= x else 0)
    return first, 3 - first - third, third


@scalar_kernel
def _in_pair(flavor, a, b):
    """1 for the first of a pair, -1 for the second, 0 for the one that is not in it."""
    return 1.0 if flavor == a else (-1.0 if flavor == b else 0.0)


@scalar_kernel
def _members(pair):
    """Flavors of the pairs e-mu, e-tau, mu-tau."""
    return (1 if pair == 2 else 0), (1 if pair == 0 else 2)


@kernel
def _doubts_of_pair(a, b, n, work, square):
    """As `_doubts`, of one pair of flavors; of the three slopes its own."""
    return _sum_of_pair(
        work[_LEPTON + a, :n], work[_LEPTON + b, :n], work[WEIGHT, :n], work[_MIXED + a, :n], work[_MIXED + b, :n],
        work[_MIXED + a + 3, :n], work[_MIXED + b + 3, :n], work[_SLOPE + a + b - 1, :n], square,
    )  # fmt: skip


@kernel
def _sum_of_pair(La, Lb, w, ga, gb, ha, hb, slope, square):
    simd_function()
    total = 0.0
    for i in range(np.uint64(w.shape[0])):
        d, e = w[i] * (ga[i] - gb[i]), w[i] * (ha[i] - hb[i])
        total += doubt(d * d + e * e, slope[i] + _TINY, La[i] - Lb[i], square)
    return total


@kernel
def _missed(La, Lb, w, slope):
    """What the smaller side of a pair may hold between the nodes."""
    simd_function()
    total = 0.0
    for i in range(np.uint64(w.shape[0])):
        total += doubt(w[i] * w[i] * slope[i], slope[i] + _TINY, La[i] - Lb[i], 0.0)
    return LENS * np.sqrt(total)


@kernel
def _moved(q, a, b, w):
    """What an exchange by ``q`` moves from a to b."""
    simd_function()
    total = 0.0
    for i in range(np.uint64(w.shape[0])):
        total += w[i] * q[i] * (a[i] - b[i])
    return total


@kernel
def mix_flavors(n, work, scratch):
    """Mix the six rows of `work` from `_MIXED` on as the lepton numbers there say, which change.

    Returns whether there is a crossing, and the square of the doubt, from the slopes in `work`.
    """
    # Not ``[..., :n]``: rows of what is not contiguous would not be vectorised over.
    w, L, h, slope = work[WEIGHT, :n], work[_LEPTON : _LEPTON + 3], work[_MIXED : _MIXED + 6], work[_SLOPE : _SLOPE + 3]
    q, upper, lower, bottom = work[_EXCHANGE, :n], work[_UPPER, :n], work[_LOWER, :n], work[_BOTTOM, :n]
    out, plus, minus = scratch[7], scratch[8], scratch[9]
    first = second = doubts = 0.0
    deepest = -1
    for pair in range(3):
        a, b = _members(pair)
        plus[pair], minus[pair] = _sides(L[a, :n], L[b, :n], w)
        sigma = np.sqrt(plus[pair] * minus[pair]) if min(plus[pair], minus[pair]) > NOISE else 0.0
        if sigma > first:
            first, second, deepest = sigma, first, pair
        elif sigma > second:
            second = sigma
    if first > 0.0:
        reach = second
        for pair in range(3):
            if pair != deepest:
                a, b = _members(pair)
                small = min(plus[pair], minus[pair]) + _missed(L[a, :n], L[b, :n], w, slope[a + b - 1, :n])
                reach = max(reach, min(np.sqrt(max(plus[pair], minus[pair]) * small), first))
        risk, moved = (reach - second) / first, min(plus[deepest], minus[deepest])
        ahead = 1.0 - second / first
        share = ahead * fade(min(plus[deepest], minus[deepest]))
        if share > 0.0:
            a, b = _members(deepest)
            square = _pair(L[a, :n], L[b, :n], w, plus[deepest], minus[deepest], share, lower, upper, q, out)
            doubts += ahead * ahead * _doubts_of_pair(a, b, n, work, square)
            if risk > 0.0:
                moved = max(moved, abs(_moved(q, h[a, :n], h[b, :n], w)) / ahead)
            _exchange(q, L[a, :n], L[b, :n])
            _exchange(q, h[a, :n], h[b, :n])
            _exchange(q, h[a + 3, :n], h[b + 3, :n])
        doubts += risk * risk * moved * moved
    if second == 0.0:
        # What crosses between the nodes.
        for pair in range(3):
            a, b = _members(pair)
            if pair != deepest:
                doubts += _doubts_of_pair(a, b, n, work, 0.0)
        return first > 0.0, doubts
    strongest = deepest
    first = second = 0.0
    for pair in range(3):
        a, b = _members(pair)
        plus[pair], minus[pair] = _sides(L[a, :n], L[b, :n], w)
        small = min(plus[pair], minus[pair])
        if small > first:
            first, second, deepest = small, first, pair
        elif small > second:
            second = small
    alone, together = fade(first), fade(second)
    alone -= together
    if together < 1.0:
        for pair in range(3):
            a, b = _members(pair)
            if pair != strongest:
                doubts += (1.0 - together) * (1.0 - together) * _doubts_of_pair(a, b, n, work, 0.0)
    a, b = _members(deepest)
    if alone > 0.0:
        square = _pair(L[a, :n], L[b, :n], w, plus[deepest], minus[deepest], alone, lower, upper, q, out)
        doubts += alone * alone * _doubts_of_pair(a, b, n, work, square)
    else:
        for i in range(n):
            q[i] = 0.0
    if together == 0.0:
        if alone > 0.0:
            _exchange(q, h[a, :n], h[b, :n])
            _exchange(q, h[a + 3, :n], h[b + 3, :n])
        return True, doubts
    _sort(L[0, :n], L[1, :n], L[2, :n], upper, lower, bottom)
    least = 0.0
    for i in range(n):
        least += w[i] * bottom[i]
    for flavor in range(3):
        total = 0.0
        for i in range(n):
            total += w[i] * L[flavor, i]
        plus[flavor] = total
    f, g, k = _by_total(plus[0], plus[1], plus[2])
    alpha, beta = solve_two_scales(upper, lower, w, plus[f] - least, plus[k] - least, out)
    signs = _in_pair(f, a, b), _in_pair(g, a, b), _in_pair(k, a, b)
    half = _permute(
        L[f, :n], L[g, :n], L[k, :n], upper, lower, alpha, beta, together, signs, q, w, slope[2 - f, :n],
        slope[2 - g, :n], slope[2 - k, :n], h[f, :n], h[g, :n], h[k, :n], h[f + 3, :n], h[g + 3, :n], h[k + 3, :n],
    )  # fmt: skip
    return True, doubts + 2.0 * together * together * half


@kernel
def _lepton_numbers(flavors, n, work):
    for f in range(flavors):
        for i in range(n):
            work[_LEPTON + f, i] = work[VALUES + f, i] - work[VALUES + flavors + f, i]


@kernel
def _moments(x, y, z, w, h, g, out):
    """Moments of ``h - g``."""
    simd_function()
    s0 = s1 = s2 = s3 = 0.0
    for i in range(np.uint64(x.shape[0])):
        value = w[i] * (h[i] - g[i])
        s0 += value * x[i]
        s1 += value * y[i]
        s2 += value * z[i]
        s3 += value
    out[0], out[1], out[2], out[3] = s0, s1, s2, s3


@kernel
def _mix_unlike(beams, least, species, moments, Q, table, narrow, scratch, work, change):
    """Change of the six species in the frame; returns the square of its doubt if asked to."""
    n = fill_nodes(np.int64(6), beams, species, moments, Q, table, narrow, scratch, work)
    for pair in range(3):
        a, b = _members(pair)
        if least > 0.0:
            fill_slope(species, a, b, a + 3, b + 3, n, work, work[_SLOPE + pair])
        else:
            work[_SLOPE + pair, :n] = 0.0
    _lepton_numbers(np.int64(3), n, work)
    for s in range(6):
        for i in range(n):
            work[_MIXED + s, i] = work[VALUES + s, i]
    change[:] = 0.0
    crosses, doubts = mix_flavors(n, work, scratch)
    if not crosses:
        return doubts
    for s in range(6):
        _moments(
            work[X, :n], work[Y, :n], work[Z, :n], work[WEIGHT, :n], work[_MIXED + s, :n], work[VALUES + s, :n],
            change[s],
        )  # fmt: skip
    # Conservation, which holds to the error of the scales, to rounding.
    for f in range(3):
        change[f, 3] = change[f + 3, 3] = 0.5 * (change[f, 3] + change[f + 3, 3])
    for nu in (0, 3):
        for k in range(4):
            mean = (change[nu, k] + change[nu + 1, k] + change[nu + 2, k]) / 3.0
            for f in range(3):
                change[nu + f, k] -= mean
    return doubts


# Rows
# ----
@scalar_kernel
def _share(doubts):
    """Of the next level, from the doubt."""
    x = min(max(doubts / DOUBT - 1.0, 0.0), 1.0)
    return x * x * (3.0 - 2.0 * x)


@kernel
def _go_over(change, share, better):
    for s in range(6):
        for k in range(4):
            change[s, k] += share * (better[s, k] - change[s, k])


@kernel
def _distance(change, other):
    """Largest of a species."""
    largest = 0.0
    for s in range(6):
        square = 0.0
        for k in range(4):
            square += (change[s, k] - other[s, k]) ** 2
        largest = max(largest, square)
    return np.sqrt(largest)


@kernel
def _mix_row(three, flavors, beams, least, species, moments, Q, table, narrow, scratch, work, change):
    """As `_mix_alike` and `_mix_unlike`."""
    # Numba compiles nothing where it knows that there is None.
    if three is not None and flavors == 3:
        return _mix_unlike(beams, least, species, moments, Q, table, narrow, scratch, work, change)
    return _mix_alike(beams, least, species, moments, Q, table, narrow, scratch, work, change)


@driver
def asymptotic_rows(F, spheres, narrow, levels, three, out, start, stop):
    """Rows ``start:stop`` of ``F (n, 6, 4)`` into ``out``; of the levels' rules, sphere and species, that many.

    Behind the rules of four levels stands the one that the first is compared with, `CHECK`; of one level none counts.
    """
    moments, Q, axes, species = np.empty((6, 4)), np.empty((3, 3)), np.empty((3, 3)), np.empty((6, COLUMNS))
    scratch, changes, shares = np.empty((10, 12)), np.empty((levels, 6, 4)), np.empty(levels)
    coarser, size = np.empty((6, 4)), 0
    for level in range(levels):
        size = max(size, spheres[level].shape[1] + 6 * narrow[level].shape[1])
    work = np.empty((_ROWS, size))
    for i in range(start, stop):
        total, flavors, beams = enter(F[i], np.int64(2 if three is None else 0), moments, Q, axes, species)
        moved = False
        forget_scales(scratch)
        if total > 0.0:
            along = max(1.0 - Q[1, 1] / (NEARLY_LINE * Q[2, 2] + _TINY), 0.0)
            factor = 1.0 + (CIRCLE - 1.0) * along * along
            before = coarser
            for level in range(levels):
                change = changes[level]
                least = DOUBT / factor if level + 1 < levels else 0.0
                if level == RULED:
                    beams = give_rules(flavors, species, FINE[0], FINE[1])
                doubts = _mix_row(
                    three, flavors, beams, least, species, moments, Q, spheres[level], narrow[level], scratch, work,
                    change,
                )  # fmt: skip
                found = factor * np.sqrt(doubts)
                if least > 0.0 and beams > 0:
                    if level == 0:
                        _mix_row(
                            three, flavors, beams, 0.0, species, moments, Q, spheres[CHECK], narrow[CHECK], scratch,
                            work, before,
                        )  # fmt: skip
                    found = max(found, DOUBT / APART * _distance(change, before))
                shares[level] = _share(found) if least > 0.0 else 0.0
                if shares[level] == 0.0:
                    break
                before = change
            for finer in range(level, 0, -1):
                _go_over(changes[finer - 1], shares[finer - 1], changes[finer])
            for s in range(6):
                for k in range(4):
                    moved = moved or changes[0, s, k] != 0.0
        for s in range(6):
            for k in range(4):
                out[i, s, k] = F[i, s, k]
            if moved:
                x, y, z = total * changes[0, s, 0], total * changes[0, s, 1], total * changes[0, s, 2]
                for k in range(3):
                    out[i, s, k] += x * axes[0, k] + y * axes[1, k] + z * axes[2, k]
                out[i, s, 3] += total * changes[0, s, 3]


@kernel
def _sides_of_species(a, abar, b, bbar, x, y, z, w):
    """I+ and I- between two flavors, of species without nodes of their own, over pairs of nodes."""
    simd_function()
    _, ex, ey, ez, eA = _exponent(a)
    _, fx, fy, fz, fA = _exponent(abar)
    _, gx, gy, gz, gA = _exponent(b)
    _, hx, hy, hz, hA = _exponent(bbar)
    large = small = 0.0
    for i in range(np.uint64(x.shape[0])):
        p, q, r, v = x[i], y[i], z[i], w[i]
        e1, e2 = pow2_pair(ex * p + ey * q + ez * r)
        f1, f2 = pow2_pair(fx * p + fy * q + fz * r)
        g1, g2 = pow2_pair(gx * p + gy * q + gz * r)
        h1, h2 = pow2_pair(hx * p + hy * q + hz * r)
        d1 = (eA * e1 - gA * g1) - (fA * f1 - hA * h1)
        d2 = (eA * e2 - gA * g2) - (fA * f2 - hA * h2)
        b1, b2 = abs(d1), abs(d2)
        large += v * (b1 + d1 + b2 + d2)
        small += v * (b1 - d1 + b2 - d2)
    return 0.5 * large, 0.5 * small


@kernel
def _crosses(a, abar, b, bbar, table):
    """Whether two flavors do: both sides only grow, and are mostly known after some nodes."""
    large = small = 0.0
    begin, half = 0, table.shape[1] // 2
    while begin < half and not min(large, small) > NOISE:
        end = min(begin + SOME, half)
        plus, minus = _sides_of_species(
            a, abar, b, bbar, table[0, begin:end], table[1, begin:end], table[2, begin:end], table[3, begin:end]
        )
        large += plus
        small += minus
        begin = end
    return min(large, small) > NOISE


@driver
def crossing_rows(F, table, narrow, crosses, start, stop):
    """Whether both sides of the three pairs hold more than `NOISE` of the total density, into ``crosses (n, 3)``."""
    moments, Q, axes, species = np.empty((6, 4)), np.empty((3, 3)), np.empty((3, 3)), np.empty((6, COLUMNS))
    scratch = np.empty((10, 12))
    work = np.empty((_ROWS, table.shape[1] + 6 * narrow.shape[1]))
    for i in range(start, stop):
        total, flavors, beams = enter(F[i], np.int64(0), moments, Q, axes, species)
        crosses[i] = False
        if not total > 0.0:
            continue
        n = 0
        if beams > 0:
            n = fill_nodes(np.int64(2 * flavors), beams, species, moments, Q, table, narrow, scratch, work)
            _lepton_numbers(flavors, n, work)
        for pair in range(3 if flavors == 3 else 1):
            a, b = _members(pair)
            if beams > 0:
                large, small = _sides(work[_LEPTON + a, :n], work[_LEPTON + b, :n], work[WEIGHT, :n])
                crosses[i, pair] = min(large, small) > NOISE
            else:
                crosses[i, pair] = _crosses(species[a], species[flavors + a], species[b], species[flavors + b], table)
        if flavors == 2:
            crosses[i, 1] = crosses[i, 0]


@kernel
def _probabilities(n, work, scratch):
    """Fill the mixed rows of `work` with where e and mu go; return whether there is a crossing."""
    _lepton_numbers(np.int64(3), n, work)
    h = work[_MIXED : _MIXED + 6]
    # Neutrinos start as e, "antineutrinos" as mu.
    for s in range(6):
        for i in range(n):
            h[s, i] = 1.0 if s == 0 or s == 4 else 0.0
    work[_SLOPE : _SLOPE + 3, :n] = 0.0
    forget_scales(scratch)
    crosses, _ = mix_flavors(n, work, scratch)
    return crosses


@driver
def transition_row(F, table, narrow, directions, p):
    """``p (m, 3, 3)`` of one state: the directions are nodes of weight 0, and flavors are mixed that are 1 each."""
    moments, Q, axes, species = np.empty((6, 4)), np.empty((3, 3)), np.empty((3, 3)), np.empty((6, COLUMNS))
    scratch = np.empty((10, 12))
    size, m = table.shape[1], directions.shape[1]
    nodes = np.zeros((4, size + m))
    work = np.empty((_ROWS, size + m + 6 * narrow.shape[1]))
    total, _, beams = enter(F, np.int64(3), moments, Q, axes, species)
    for i in range(m):
        for a in range(3):
            for b in range(3):
                p[i, a, b] = 1.0 if a == b else 0.0
    if not total > 0.0:
        return
    for k in range(4):
        for i in range(size):
            nodes[k, i] = table[k, i]
    for k in range(3):
        for i in range(m):
            nodes[k, size + i] = (
                axes[k, 0] * directions[0, i] + axes[k, 1] * directions[1, i] + axes[k, 2] * directions[2, i]
            )
    n = fill_nodes(np.int64(6), beams, species, moments, Q, nodes, narrow, scratch, work)
    h = work[_MIXED : _MIXED + 6]
    if _probabilities(n, work, scratch):
        for i in range(m):
            for b in range(3):
                p[i, 0, b], p[i, 1, b] = h[b, size + i], h[b + 3, size + i]
                p[i, 2, b] = 1.0 - p[i, 0, b] - p[i, 1, b]


@kernel
def _probabilities_alike(moments, n, work, out):
    """As `_probabilities` of e, x and their antineutrinos, x being mu and tau in equal parts."""
    _values_on_nodes(moments, n, work, out)
    small = out[1]
    if small <= NOISE:
        return False
    _lost_alike(n, work, out)
    q, h, share = work[_PART, :n], work[_MIXED : _MIXED + 6], fade(small)
    for i in range(n):
        lost = share * q[i]
        h[0, i], h[1, i], h[2, i] = 1.0 - lost, 0.5 * lost, 0.5 * lost
        h[3, i], h[4, i], h[5, i] = 0.5 * lost, 1.0 - 0.5 * share - 0.25 * lost, 0.5 * share - 0.25 * lost
    return True


@driver
def matrix_rows(F, table, narrow, out, start, stop):
    """Matrices of densities and of fluxes of rows ``start:stop`` into ``out (n, 2, 6, 6)``, species out and in."""
    moments, Q, axes, species = np.empty((6, 4)), np.empty((3, 3)), np.empty((3, 3)), np.empty((6, COLUMNS))
    scratch, sums = np.empty((10, 12)), np.empty((2, 3))
    work = np.empty((_ROWS, table.shape[1] + 6 * narrow.shape[1]))
    for i in range(start, stop):
        total, flavors, beams = enter(F[i], np.int64(0), moments, Q, axes, species)
        for s in range(6):
            for r in range(6):
                out[i, 0, r, s] = out[i, 1, r, s] = 1.0 if r == s else 0.0
        if not total > 0.0:
            continue
        n = fill_nodes(np.int64(2 * flavors), beams, species, moments, Q, table, narrow, scratch, work)
        if flavors == 2:
            crosses = _probabilities_alike(moments, n, work, scratch[7])
        else:
            crosses = _probabilities(n, work, scratch)
        for s in range(6):
            first = s // 3 * 3
            k = s // 3 * flavors + min(s - first, flavors - 1)
            if not crosses or not moments[k, 3] > 0.0:
                continue
            _sums_of_species(s - first, k, n, species[k], work, sums)
            if not sums[0, 0] > 0.0:  # a trace that no node holds
                continue
            for kind in range(2):
                by = kind if sums[1, 0] > 1e-6 * sums[0, 0] else 0
                out[i, kind, first, s] = to_e = sums[by, 1] / sums[by, 0]
                out[i, kind, first + 1, s] = to_mu = sums[by, 2] / sums[by, 0]
                out[i, kind, first + 2, s] = 1.0 - to_e - to_mu


@kernel
def _sums_of_species(a, k, n, own, work, sums):
    """Of species k, of flavor a, all and what goes to e and to mu: its density, and its flux along its direction."""
    h = work[_MIXED : _MIXED + 6]
    N = N_e = N_mu = F = F_e = F_mu = 0.0
    for i in range(n):
        to_e, to_mu = h[0, i], h[1, i]
        if a == 1:
            to_e, to_mu = h[3, i], h[4, i]
        elif a == 2:
            to_e, to_mu = 1.0 - to_e - h[3, i], 1.0 - to_mu - h[4, i]
        part = work[WEIGHT, i] * work[VALUES + k, i]
        along = part * (work[X, i] * own[0] + work[Y, i] * own[1] + work[Z, i] * own[2])
        N, N_e, N_mu = N + part, N_e + part * to_e, N_mu + part * to_mu
        F, F_e, F_mu = F + along, F_e + along * to_e, F_mu + along * to_mu
    sums[0, 0], sums[0, 1], sums[0, 2] = N, N_e, N_mu
    sums[1, 0], sums[1, 1], sums[1, 2] = F, F_e, F_mu
