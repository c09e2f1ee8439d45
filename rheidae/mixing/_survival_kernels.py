"""Numba kernels of schemes with a parameterised survival probability, value and derivative in one pass. No validation.

The family
----------
Side: G is counted positive on the side with the larger integral: that of the sign of ``int G = N_e - Nbar_e - N_x +
Nbar_x``, unless a beam falls between the nodes and the quadrature says otherwise. With ``x = (|G|/s)^a``,
``r = sqrt(1 + x^2)`` and ``q = 1 - P``, q0 at the crossing,

    larger side      q = q0 [r (r + x)]^-p
    smaller side     q = q0 + b (1 - q0) z/sqrt(1 + z^2),   z = 2^(-a rho) x

and s from ``int q G = 0``: what the larger side loses rises with s, what the smaller one loses falls, so there is one
root. q0 = 2/3 and p = a = b = 1, rho = 0 is asymptotic mixing, where ``1/[r (r + x)] = 1 - x/r``. The power schemes
of the literature have ``(1 + x)^-p`` in place of the bracket, and b = 0. With q = q0 h and ``lift = b (1 - q0)/q0``,
h = 1 + lift z/sqrt(1 + z^2) on the smaller side, and q0 stays outside.

One such function lives on the sphere (G(n)), a second on ``zeta = n . axis`` alone, made from the azimuthal mean of G
about the net flux ``int G n`` (signed so that it points to the larger side), with p and a of its own:

    1 - P = q0 [(1 - beta) h(G(n)) + beta h(Gbar(zeta))].

Each conserves lepton number by itself, so the mixture does, whatever the parameters; it is a convex mixture of the
initial distributions as long as q0 and b lie in [0, 1].

Azimuthal integrals of a Minerbo distribution with exponent Z, alpha the angle between its flux and the axis and
``rho = Z sin(alpha) sqrt(1 - zeta^2)``:

    int g dphi          = 2 pi A exp(Z (zeta cos(alpha) - 1)) I0(rho)                          A: value at the peak
    int g n_perp dphi   = the same with I1(rho) sqrt(1 - zeta^2), along the flux's part across the axis.

Fading
------
A quadrature node that crosses to the smaller side does so with its whole weight. Each h is therefore multiplied by
``1 - exp(-I_small/(FADE N_total))``, and beta by ``1 - exp(-(|int G n| / (AXIS int |Gbar|))^2)``, because the axis
loses its meaning with the net flux. Neither breaks a conservation law.

Beams
-----
A species narrower than the rule has to be kept from it: a node that it falls on would make any number of it. Rows with
one are calm by the product of ``1 - smoothstep(f in CALM) N/(N + VANISHING)``. For what is missing to 1 they take the
nodes of `_nodes_kernels` (the axis, which has none of these, fades out), or the caller takes another answer: the mixing
network takes the asymptotic scheme's. Traces that are beams leave a row calm, and fade out of the plain rule with ``f
in FADED``.

Parameters of a row: ``theta = (log 1.5 q0, log p, log a, b, rho, beta, log p_axial, log a_axial)``. All directions are
taken in the frame (across, across, axis) of the state, so the rule turns with it and rotated states give rotated
answers to rounding.
"""

from __future__ import annotations

import numpy as np
from numpy.polynomial import chebyshev
from scipy.special import iv, ive

from rheidae.mixing._asymptotic_kernels import inverse_sqrt
from rheidae.mixing._box3d_kernels import FOUR_PI, NOISE
from rheidae.mixing._closure_kernels import LOG2_E, langevin_ratio, log2, peak, pow2, pow2_pair
from rheidae.mixing._nodes_kernels import (
    COLUMNS,
    NODE_ROWS,
    VALUES,
    VANISHING,
    WEIGHT,
    X,
    Z,
    enter,
    fill_nodes,
    sums_on_nodes,
)  # fmt: skip
from rheidae.system.numba import driver, kernel, scalar_kernel, simd_function

LN2 = 0.6931471805599453
#: Scales, relative to the total density and to int |Gbar|, below which a crossing or the axis counts less and less.
FADE = 1e-4
AXIS = 0.1
#: Vectors shorter than this part of the total density are rounding of single precision: they have no direction.
NO_DIRECTION = 1e-7
#: Both ratios to int |Gbar| are at most 1; a quadrature that misses a beam would make them anything.
UNSEEN = 10.0
#: Flux factors between which a species stops to be resolved, and those between which it is left out.
CALM, FADED = (0.8, 0.9), (0.9, 0.95)
#: Of errors of the logarithm to base 2, over those of the number.
TO_LOG2 = 1.4
PARAMETERS = 8
FEATURES = 5
# Value, and derivatives by log p, log a, lift and rho.
_SUMS = 5
_TINY = 1e-300
# log2 of the largest x.
_MOST = 500.0


def axial_rule(points):
    """Return the ``(3, points)`` table ``zeta, 2 pi w, sqrt(1 - zeta^2)`` of Gauss and Legendre.

    The upper half of the axis stands before the lower one, which mirrors it.
    """
    zeta, weights = np.polynomial.legendre.leggauss(points)
    zeta, weights = (np.concatenate([table[points // 2 :], table[: points // 2][::-1]]) for table in (zeta, weights))
    return np.ascontiguousarray([zeta, 2 * np.pi * weights, np.sqrt(1 - zeta**2)])


# Scalar functions
# ----------------
# I0(x) and I1(x)/x: polynomials in x^2/32 - 1 up to x = 8, 1e-11. Above it, times exp(-x), in 16/x - 1 times 1/sqrt(x);
# 2e-10.
def _fit(function, degree):
    return tuple(float(c) for c in chebyshev.cheb2poly(chebyshev.chebinterpolate(function, degree)))


def _fit_near(order):
    def reduced(u):
        x = np.sqrt(32 * np.maximum(u + 1, 1e-12))
        return iv(order, x) / x**order

    return _fit(reduced, 15)


def _fit_far(order):
    def scaled(u):
        x = 16 / np.maximum(u + 1, 1e-9)
        return ive(order, x) * np.sqrt(x)

    return _fit(scaled, 11)


_NEAR_0, _NEAR_1 = _fit_near(0), _fit_near(1)
_FAR_0, _FAR_1 = _fit_far(0), _fit_far(1)


@scalar_kernel
def _polynomial(u, c):
    low = c[0] + u * (c[1] + u * (c[2] + u * (c[3] + u * (c[4] + u * c[5]))))
    high = c[6] + u * (c[7] + u * (c[8] + u * (c[9] + u * (c[10] + u * c[11]))))
    cube = u * u * u
    return low + cube * cube * high


@scalar_kernel
def _bessel_near(x):
    """Return ``I0(x)`` and ``I1(x)`` for ``0 <= x <= 8``."""
    u = 0.03125 * x * x - 1.0
    fourth = (u * u) * (u * u)
    twelfth = fourth * fourth * fourth
    zero, one = _polynomial(u, _NEAR_0[:12]), _polynomial(u, _NEAR_1[:12])
    zero += twelfth * (_NEAR_0[12] + u * (_NEAR_0[13] + u * (_NEAR_0[14] + u * _NEAR_0[15])))
    one += twelfth * (_NEAR_1[12] + u * (_NEAR_1[13] + u * (_NEAR_1[14] + u * _NEAR_1[15])))
    return zero, x * one


@scalar_kernel
def _bessel_far(x):
    u = 16.0 / x - 1.0
    root = 1.0 / np.sqrt(x)
    return root * _polynomial(u, _FAR_0), root * _polynomial(u, _FAR_1)


@scalar_kernel
def scaled_bessel(x):
    """Return ``exp(-x) I0(x)`` and ``exp(-x) I1(x)`` for ``x >= 0``, to 2e-10."""
    if x > 8.0:
        return _bessel_far(x)
    zero, one = _bessel_near(x)
    scale = pow2(-LOG2_E * x)
    return scale * zero, scale * one


# The frame
# ---------
@kernel
def _across(x, y, z, basis):
    """Turn the first row of ``basis`` along the part of a vector across the third; False if there is no such part."""
    along = x * basis[2, 0] + y * basis[2, 1] + z * basis[2, 2]
    x -= along * basis[2, 0]
    y -= along * basis[2, 1]
    z -= along * basis[2, 2]
    square = x * x + y * y + z * z
    if not square > NO_DIRECTION * NO_DIRECTION:
        return False
    inverse = 1.0 / np.sqrt(square)
    basis[0, 0], basis[0, 1], basis[0, 2] = x * inverse, y * inverse, z * inverse
    return True


@scalar_kernel
def _step(f, low, high):
    x = min(max((f - low) / (high - low), 0.0), 1.0)
    return x * x * (3.0 - 2.0 * x)


@kernel
def _describe(f, ratio, top):
    """Exponents ``log2(e) Z`` over flux factors, and distributions at their peak times ``4 pi/N``."""
    simd_function()
    for s in range(np.uint64(f.shape[0])):
        ratio[s] = LOG2_E * langevin_ratio(f[s])
        top[s] = peak(LN2 * ratio[s] * f[s])


@kernel
def enter_row(F, moments, basis, species):
    """Set the frame of a state ``F (6, 4)`` and its species in it; returns ``int G``, ``|int G n|`` and how calm it is.

    The second is zero where it is too small to have a direction; the last is 1 without beams, 0 with one.

    ``moments (4, 4)``: e, ebar, x, xbar over the total density. ``basis (3, 3)``: rows across, across, axis. ``species
    (7, 6)``: exponent vector ``log2(e) Z Fhat`` in the frame, its length, the peak value A, and ``A 2^-length``, the
    geometric mean at antipodes. The vector is zero where A is. The last three rows are scratch.
    """
    total = 0.0
    for s in range(6):
        total += np.float64(F[s, 3])
    inverse = 1.0 / total if total > 0.0 else 0.0
    for s, first, second in ((0, 0, 0), (1, 3, 3), (2, 1, 2), (3, 4, 5)):
        for k in range(4):
            moments[s, k] = 0.5 * inverse * (np.float64(F[first, k]) + np.float64(F[second, k]))
    net = moments[0, 3] - moments[1, 3] - moments[2, 3] + moments[3, 3]
    sign = 1.0 if net >= 0.0 else -1.0
    square = 0.0
    for k in range(3):
        basis[2, k] = sign * (moments[0, k] - moments[1, k] - moments[2, k] + moments[3, k])
        square += basis[2, k] * basis[2, k]
    net_flux = np.sqrt(square)
    # Sums over neutrinos and antineutrinos do not change when these are exchanged, the difference its sign alone, which
    # no rule sees. Without a net flux one of them gives the frame, so that it still turns with the state.
    a, b, c, d = moments[0], moments[1], moments[2], moments[3]
    if net_flux > NO_DIRECTION:
        for k in range(3):
            basis[2, k] /= net_flux
    else:
        net_flux = 0.0
        for k in range(3):
            basis[2, k] = 0.0
        found = _across(a[0] + b[0], a[1] + b[1], a[2] + b[2], basis)
        found = found or _across(c[0] + d[0], c[1] + d[1], c[2] + d[2], basis)
        found = found or _across(a[0] - b[0], a[1] - b[1], a[2] - b[2], basis)
        for k in range(3):
            basis[2, k] = basis[0, k] if found else np.float64(k == 2)
    found = _across(a[0] + b[0], a[1] + b[1], a[2] + b[2], basis)
    found = found or _across(c[0] + d[0], c[1] + d[1], c[2] + d[2], basis)
    found = found or _across(a[0] - b[0], a[1] - b[1], a[2] - b[2], basis)
    if not found and abs(basis[2, 0]) < 0.6:
        _across(1.0, 0.0, 0.0, basis)
    elif not found:
        _across(0.0, 1.0, 0.0, basis)
    for k in range(3):
        m, n = (k + 1) % 3, (k + 2) % 3
        basis[1, k] = basis[2, m] * basis[0, n] - basis[2, n] * basis[0, m]
    f, ratio, top = species[4, :4], species[5, :4], species[6, :4]
    for s in range(4):
        N = moments[s, 3]
        factor = 1.0 / N if N > 0.0 else 0.0
        x, y, z = factor * moments[s, 0], factor * moments[s, 1], factor * moments[s, 2]
        f[s] = np.sqrt(x * x + y * y + z * z)
        for k in range(3):
            species[s, k] = x * basis[k, 0] + y * basis[k, 1] + z * basis[k, 2]
    _describe(f, ratio, top)
    calm = 1.0
    for s in range(4):
        own, N = species[s], moments[s, 3]
        own[4] = N * top[s] / FOUR_PI
        if f[s] > CALM[0]:
            own[4] *= 1.0 - _step(f[s], FADED[0], FADED[1])
            calm *= 1.0 - _step(f[s], CALM[0], CALM[1]) * N / (N + VANISHING)
        factor = ratio[s] if own[4] > 0.0 else 0.0
        for k in range(3):
            own[k] *= factor
        own[3] = factor * f[s]
        own[5] = own[4] * pow2(-own[3])
    return net, net_flux, calm


# Both components
# ---------------
# ``terms`` holds at every node what is moved, weights included: of the sphere ``g_e - g_x`` and that of antineutrinos,
# of the axis the integrands of the eight moments, which are the component's own affair until `_turn_odd`. ``G (m)`` is
# the weighted G, positive on the larger side; ``size (m)`` is abs(G) without weight.
@kernel
def _turn_sides(G, large, small):
    """Make the larger side of the quadrature the positive one; returns both integrals in this order."""
    if large >= small:
        return large, small
    for j in range(G.shape[0]):
        G[j] = -G[j]
    return small, large


@kernel
def _fill_pairs(species, x, y, z, w, sign, nu, nu2, nubar, nubar2, G, G2, size, size2):
    """Fill for G(n) by antipodal pairs, of species without beams; returns ``int |G|`` and ``int G``."""
    simd_function()
    ex, ey, ez, eA = species[0, 0], species[0, 1], species[0, 2], species[0, 5]
    fx, fy, fz, fA = species[1, 0], species[1, 1], species[1, 2], species[1, 5]
    gx, gy, gz, gA = species[2, 0], species[2, 1], species[2, 2], species[2, 5]
    hx, hy, hz, hA = species[3, 0], species[3, 1], species[3, 2], species[3, 5]
    both = total = 0.0
    for j in range(np.uint64(x.shape[0])):
        p, q, r, v = x[j], y[j], z[j], w[j]
        e1, e2 = pow2_pair(ex * p + ey * q + ez * r)
        f1, f2 = pow2_pair(fx * p + fy * q + fz * r)
        g1, g2 = pow2_pair(gx * p + gy * q + gz * r)
        h1, h2 = pow2_pair(hx * p + hy * q + hz * r)
        e1, e2, f1, f2 = eA * e1 - gA * g1, eA * e2 - gA * g2, fA * f1 - hA * h1, fA * f2 - hA * h2
        g1, g2 = sign * (e1 - f1), sign * (e2 - f2)
        nu[j], nu2[j], nubar[j], nubar2[j] = v * e1, v * e2, v * f1, v * f2
        size[j], size2[j] = abs(g1), abs(g2)
        g1, g2 = v * g1, v * g2
        G[j], G2[j] = g1, g2
        both += abs(g1) + abs(g2)
        total += g1 + g2
    return both, total


@kernel
def fill_sphere(species, rule, sign, terms, G, size):
    """Fill for G(n); returns the integrals over the larger and the smaller side."""
    n = rule.shape[1]
    half = n // 2
    both, total = _fill_pairs(
        species, rule[0, :half], rule[1, :half], rule[2, :half], rule[3, :half], sign,
        terms[0, :half], terms[0, half:n], terms[1, :half], terms[1, half:n],
        G[:half], G[half:n], size[:half], size[half:n],
    )  # fmt: skip
    return _turn_sides(G, 0.5 * (both + total), 0.5 * (both - total))


@kernel
def _on_nodes(n, nodes, sign, nu, nubar, G, size):
    """The same at the nodes that `fill_nodes` left."""
    simd_function()
    w, e, g, f, h = nodes[WEIGHT], nodes[VALUES], nodes[VALUES + 1], nodes[VALUES + 2], nodes[VALUES + 3]
    large = small = 0.0
    for j in range(np.uint64(n)):
        density = sign * ((e[j] - g[j]) - (f[j] - h[j]))
        nu[j], nubar[j] = w[j] * (e[j] - g[j]), w[j] * (f[j] - h[j])
        size[j] = abs(density)
        weighted = w[j] * density
        G[j] = weighted
        large += max(weighted, 0.0)
        small += max(-weighted, 0.0)
    return _turn_sides(G[:n], large, small)


@kernel
def _change_frame(axes, basis, sums):
    """Turn eight sums, in place, from the frame of `axes` into that of `basis`."""
    for first in (0, 4):
        x, y, z = sums[first], sums[first + 1], sums[first + 2]
        a = axes[0, 0] * x + axes[1, 0] * y + axes[2, 0] * z
        b = axes[0, 1] * x + axes[1, 1] * y + axes[2, 1] * z
        c = axes[0, 2] * x + axes[1, 2] * y + axes[2, 2] * z
        for k in range(3):
            sums[first + k] = basis[k, 0] * a + basis[k, 1] * b + basis[k, 2] * c


@kernel
def _azimuthal(s, zetas, weights, roots, near, even, even2, odd, odd2):
    """Weighted azimuthal integrals of one species: of g into ``even``, of its part across the axis into ``odd``."""
    simd_function()
    across = np.sqrt(s[0] * s[0] + s[1] * s[1])
    for j in range(np.uint64(zetas.shape[0])):
        root = roots[j]
        rho = LN2 * across * root
        up, down = pow2_pair(s[2] * zetas[j])
        if near:
            zero, one = _bessel_near(rho)
            value = weights[j] * s[5]
        else:
            zero, one = scaled_bessel(rho)
            value = weights[j] * s[4] * pow2(across * root - s[3])
        zero, one = value * zero, value * one * root
        even[j], even2[j], odd[j], odd2[j] = zero * up, zero * down, one * up, one * down


@kernel
def _axial_sides(rule, sign, even, terms, G, size):
    simd_function()
    large = small = 0.0
    for j in range(np.uint64(rule.shape[1])):
        nu, nubar = even[0, j] - even[2, j], even[1, j] - even[3, j]
        terms[2, j], terms[3, j] = rule[0, j] * nu, nu
        terms[6, j], terms[7, j] = rule[0, j] * nubar, nubar
        weighted = sign * (nu - nubar)
        G[j] = weighted
        size[j] = abs(weighted) / rule[1, j]
        large += max(weighted, 0.0)
        small += max(-weighted, 0.0)
    return large, small


@kernel
def fill_axis(species, rule, sign, terms, G, size, even):
    """Fill for Gbar(zeta); returns the integrals over the larger and the smaller side."""
    n = rule.shape[1]
    half = n // 2
    # The odd parts take four of the eight rows: they are along other directions for each species.
    for s, row in ((0, 0), (2, 1), (1, 4), (3, 5)):
        own = species[s]
        near = LN2 * np.sqrt(own[0] * own[0] + own[1] * own[1]) <= 8.0
        _azimuthal(
            own, rule[0, :half], rule[1, :half], rule[2, :half], near,
            even[s, :half], even[s, half:n], terms[row, :half], terms[row, half:n],
        )  # fmt: skip
    large, small = _axial_sides(rule, sign, even, terms, G, size)
    return _turn_sides(G, large, small)


@kernel
def _turn_odd(species, sums):
    """Turn the sums of the axial component, in place, into the change in the frame."""
    for nu, x, k in ((0, 2, 0), (1, 3, 4)):
        sx = sy = 0.0
        for s, size in ((nu, sums[k]), (x, -sums[k + 1])):
            across = np.sqrt(species[s, 0] * species[s, 0] + species[s, 1] * species[s, 1])
            factor = size / across if across > 0.0 else 0.0
            sx += factor * species[s, 0]
            sy += factor * species[s, 1]
        sums[k], sums[k + 1] = sx, sy


# The scale s
# -----------
# With ``v = [r (r + x)]^-P``, P = p on the larger side and, with z in place of x, 1 on the smaller, h is v there and
# ``1 + lift (1 - v)`` here. So s solves ``A = sum W v = (1 + lift) I_small`` with the positive weights G and lift
# abs(G). A goes like a power of s at both of its ends, and ``log(A/(sum W - A))`` is nearly linear in log s: Newton on
# it, in a bracket, is at the root after two or three steps. Its last error is about the square of the last step: h
# follows that one along its derivative, by which ``int h G`` is zero to rounding.
#
# ``place`` is log2 of x at s = 1, ``position`` is a log2 s. The powers themselves leave the range of a double: they are
# taken from where the position is at first, or was when it had gone far, and end at `_MOST`, beyond which logarithms go
# on as ``2 y + 1``.
#
# A node's powers, root and logarithm wait for each other, and a processor looks ahead over some 250 instructions: loops
# are cut where one chain ends, so that many nodes are under way at a time. What is between stays in the first cache.
@kernel
def _anchor(place, position, x):
    """Fill x at this position."""
    simd_function()
    for j in range(np.uint64(place.shape[0])):
        x[j] = pow2(min(max(place[j] - position, -1000.0), 1000.0))


@kernel
def _fall(G, place, anchored, anchor, position, settled, base, part):
    """Fill log2 of ``r (r + x)``, or on the larger side of ``1 + x`` if not `settled`, and its derivative by y.

    ``y = place - position`` is log2 of x; ``anchored`` is x at `anchor`.
    """
    simd_function()
    factor, most = pow2(min(max(anchor - position, -1000.0), 1000.0)), pow2(_MOST)
    for j in range(np.uint64(G.shape[0])):
        x = min(anchored[j] * factor, most)
        square = 1.0 + x * x
        inverse = inverse_sqrt(square)
        u = x * inverse
        if settled:
            base[j], part[j] = square + x * (square * inverse), u + u * u
        else:
            larger, plain = G[j] > 0.0, 1.0 + x
            base[j] = plain if larger else square + x * (square * inverse)
            part[j] = x / plain if larger else u + u * u
    for j in range(np.uint64(G.shape[0])):
        beyond = max(place[j] - position - _MOST, 0.0)
        if settled:
            base[j] = 2.0 * beyond + log2(base[j])
        else:
            base[j] = (1.0 if G[j] > 0.0 else 2.0) * beyond + log2(base[j])


@kernel
def _place(G, size, p, a, lift, rho, weight, place, power):
    """Fill all three; returns the sums under W of one, place, its square and power."""
    simd_function()
    total = places = squares = powers = 0.0
    for j in range(np.uint64(G.shape[0])):
        larger = G[j] > 0.0
        w = G[j] if larger else -lift * G[j]
        y = a * (log2(max(size[j], _TINY)) - (0.0 if larger else rho))
        P = p if larger else 1.0
        weight[j], place[j], power[j] = w, y, P
        total += w
        places += w * y
        squares += w * y * y
        powers += w * P
    return total, places, squares, powers


@kernel
def _evaluate(weight, power, v, slope):
    """Turn what `_fall` left in ``v`` and ``slope`` into v and its derivative by position; sums of both under W."""
    simd_function()
    total = rising = 0.0
    for j in range(np.uint64(weight.shape[0])):
        value = pow2(max(-power[j] * v[j], -1000.0))
        by = LN2 * power[j] * slope[j] * value
        v[j], slope[j] = value, by
        total += weight[j] * value
        rising += weight[j] * by
    return total, rising


@scalar_kernel
def _start(logit, power, variance, settled):
    """Where place is above position on average, by `logit` = log2(A/(sum W - A)), mean power and variance of place.

    If place and power were the same everywhere, less a fit to random states, of what the spread of place adds.
    """
    # log2 of v^(-1/P); r (r + x) = (exp(2 asinh x) + 1)/2.
    b = min((log2(1.0 + pow2(-min(abs(logit), 1000.0))) + max(-logit, 0.0)) / power, 1000.0)
    if settled:
        arc = 0.5 * (b + log2(2.0 - pow2(-b)))
        y = arc + log2(max(0.5 - 0.5 * pow2(-2.0 * arc), 1e-18))
    else:
        y = b + log2(max(1.0 - pow2(-b), 1e-18))
    t = LN2 * logit / (8.0 + LN2 * abs(logit))
    return y - min(variance, 50.0) * (0.085 + t * (1.62 - 3.79 * t))


@kernel
def _solve(G, large, small, shape, settled, tolerance, work):
    """Return ``a log2 s``, and the last step to it, which `_evaluate` did not see."""
    p, a, lift, rho = shape
    n = G.shape[0]
    weight, place, power, v, slope = work[0, :n], work[1, :n], work[2, :n], work[3, :n], work[4, :n]
    limit, places, squares, powers = _place(G, work[5], p, a, lift, rho, weight, place, power)
    goal = (1.0 + lift) * small
    # Wide enough for a and p of 0.01: there s^(a p) ~ small/large >= NOISE; s is large where both sides are alike.
    low, high = -1e6, 1e6
    room = large - small
    logit = log2(goal) - log2(room) if room > 1e-16 * limit else 60.0
    mean = places / limit
    y = _start(logit, powers / limit, max(squares / limit - mean * mean, 0.0), settled)
    position = min(max(mean - y, low), high)
    anchored, anchor = work[5, :n], position
    _anchor(place, anchor, anchored)
    # h goes like x^-2p.
    steepest = 2.0 * max(p, 1.0)
    for step in range(200):
        if abs(position - anchor) > 400.0:
            anchor = position
            _anchor(place, anchor, anchored)
        _fall(G, place, anchored, anchor, position, settled, v, slope)
        A, rising = _evaluate(weight, power, v, slope)
        if goal > A:
            low = position
        else:
            high = position
        last = (goal - A) / rising if rising > 1e-200 else 1e6
        close = abs(steepest * last)
        if close * close < TO_LOG2 * tolerance:
            return position + last, last
        if high - low < 1e-12 * max(abs(position), 1.0) or abs(goal - A) < 1e-16 * limit:
            break
        A, rest = max(A, _TINY), limit - A
        new = low - 1.0
        if rest > 0.0 and rising > 1e-200:
            new = position - (log2(A) - log2(rest) - logit) * LN2 * A * rest / (rising * limit)
        if not low < new < high or (step >= 8 and step % 2 == 0):
            new = 0.5 * (low + high)
        position = new
    return position, 0.0


@kernel
def _survive(G, v, slope, last, lift, factor, h):
    """``factor h`` from v."""
    simd_function()
    for j in range(np.uint64(G.shape[0])):
        value = v[j] + last * slope[j]
        h[j] = factor * (value if G[j] > 0.0 else 1.0 + lift * (1.0 - value))


@kernel
def _sums_of_terms(terms, h, out):
    simd_function()
    for k in range(8):
        term = terms[k]
        value = 0.0
        for j in range(np.uint64(h.shape[0])):
            value += term[j] * h[j]
        out[k] = value


@kernel
def _derivatives(G, place, power, position, base, part, a, lift, factor, by):
    """Derivatives of ``factor h`` by log p, log a, lift and rho into ``by[:4]``, with s moving along.

    ``d position = -(dH/dtheta)/(dH/dposition) dtheta`` of ``H = int h G``. ``base`` and ``part`` are from `_fall`, and
    ``by[4]`` is scratch.
    """
    simd_function()
    s0 = s1 = s2 = s3 = s4 = both = 0.0
    for j in range(np.uint64(G.shape[0])):
        larger = G[j] > 0.0
        v = pow2(max(-power[j] * base[j], -1000.0))
        d = LN2 * factor * power[j] * v
        b0 = -d * base[j] if larger else 0.0
        b4 = (1.0 if larger else -lift) * d * part[j]
        # y is a (log2 abs(G) - log2 s - rho), rho on the smaller side alone, and log2 s stays.
        b1 = -b4 * (place[j] - position)
        b2 = 0.0 if larger else factor * (1.0 - v)
        b3 = 0.0 if larger else a * b4
        by[0, j], by[1, j], by[2, j], by[3, j], by[4, j] = b0, b1, b2, b3, b4
        s0 += G[j] * b0
        s1 += G[j] * b1
        s2 += G[j] * b2
        s3 += G[j] * b3
        s4 += G[j] * b4
        both += max(-G[j], 0.0)
    # Between a beam and the rest int h G may not depend on s; then s stays.
    inverse = 1.0 / s4 if s4 * a > 1e-12 * factor * both else 0.0
    s0, s1, s2, s3 = s0 * inverse, s1 * inverse, s2 * inverse, s3 * inverse
    for j in range(np.uint64(G.shape[0])):
        b4 = by[4, j]
        by[0, j] -= s0 * b4
        by[1, j] -= s1 * b4
        by[2, j] -= s2 * b4
        by[3, j] -= s3 * b4


@kernel
def _component(G, large, small, shape, settled, tolerance, with_derivatives, work):
    """``h`` on the nodes into ``work[6]``, derivatives by log p, log a, lift, rho into ``work[7:11]``; returns log2 s.

    ``work (12, m)`` holds abs(G) without weight in its row 5, which does not stay; NaN without a crossing.
    """
    if not small > NOISE:
        return np.nan
    _, a, lift, _ = shape
    position, last = _solve(G, large, small, shape, settled, tolerance, work)
    fade = 1.0 - pow2(-min(LOG2_E * small / FADE, 1000.0))
    if settled:
        # int |G| is at most the total density, of which a beam on a node can make any number.
        fade /= max(large + small, 1.0)
    _survive(G, work[3], work[4], last, lift, fade, work[6])
    if with_derivatives:
        n = G.shape[0]
        _anchor(work[1, :n], position, work[5, :n])
        _fall(G, work[1], work[5], position, position, settled, work[3], work[4])
        _derivatives(G, work[1], work[2], position, work[3], work[4], a, lift, fade, work[7:12])
    return position / a


@kernel
def trust_in_axis(net_flux, both):
    """How far the axis is to be trusted, 0 to 1."""
    ratio = net_flux / (AXIS * both) if both > 0.0 else 0.0
    return 1.0 - pow2(-min(LOG2_E * ratio * ratio, 1000.0))


@kernel
def take_shapes(theta):
    """q0, and what `_component` has to know on the sphere and on the axis: p, a, lift and rho."""
    q0, b, rho = 2.0 / 3.0 * np.exp(theta[0]), theta[3], theta[4]
    lift = b * (1.0 - q0) / q0 if b != 0.0 else 0.0
    return q0, (np.exp(theta[1]), np.exp(theta[2]), lift, rho), (np.exp(theta[6]), np.exp(theta[7]), lift, rho)


@kernel
def mix_axis(species, G, large, small, shape, settled, tolerance, with_derivatives, terms, work, sums):
    """Sums by the component on the axis, and derivatives, into ``sums``, zeros until then; returns log2 s."""
    scale = _component(G, large, small, shape, settled, tolerance, with_derivatives, work)
    if small > NOISE:
        for k in range(_SUMS if with_derivatives else 1):
            _sums_of_terms(terms, work[6 + k, : G.shape[0]], sums[k])
            _turn_odd(species, sums[k])
    return scale


@kernel
def mix_sphere(nodes, G, large, small, shape, settled, tolerance, with_derivatives, moved, work, sums):
    """Likewise on the sphere, in the frame of its nodes."""
    scale, n = _component(G, large, small, shape, settled, tolerance, with_derivatives, work), G.shape[0]
    if small > NOISE:
        for k in range(_SUMS if with_derivatives else 1):
            sums_on_nodes(
                nodes[0, :n], nodes[1, :n], nodes[2, :n], moved[0, :n], moved[1, :n], work[6 + k, :n], sums[k]
            )
    return scale


@kernel
def take_mean(q0, beta, on_sphere, on_axis, moments, basis, change, D):
    """Change by both components, in the frame and, into ``D (8)``, out of it."""
    for k in range(8):
        change[k] = q0 * ((1.0 - beta) * on_sphere[k] + beta * on_axis[k])
    _leave(change, basis, D)
    # The root's last digits must not ask of an empty species what it does not have.
    least, most = -2.0 * min(moments[2, 3], moments[3, 3]), min(moments[0, 3], moments[1, 3])
    D[3] = D[7] = min(max(D[3], least), most)


@driver
def survival_rows(
    F, theta, settled, sphere, upright, narrow, axial, tolerance, with_derivatives, D, J, scales, start, stop
):  # fmt: skip
    """Mixing of rows ``start:stop`` of ``F (n, 6, 4)`` by the family if `settled`, else by its power law.

    Beams have nodes by the rules `upright` and `narrow` of `_nodes_kernels`; without any in the latter they fade out.

    ``theta (n, 8)`` -> ``D (n, 8)``, what nu_e and nubar_e lose, each ``(x, y, z, t)``, over the total density;
    ``J (n, 8, 8)``, its derivatives by theta, if asked for (else any 3d array); ``scales (n, 2)``, log2 of s on the
    sphere and on the axis over the total density, NaN where there is no crossing or no such component.
    """
    K, M = sphere.shape[1], axial.shape[1]
    wide = upright.shape[1] + 4 * narrow.shape[1]
    m = max(K, M, wide)
    moments, basis, species = np.empty((4, 4)), np.empty((3, 3)), np.empty((7, 6))
    own, Q, axes, described = np.empty((6, 4)), np.empty((3, 3)), np.empty((3, 3)), np.empty((6, COLUMNS))
    nodes, scratch = np.empty((NODE_ROWS, wide)), np.empty((5, 12))
    terms, moved, even = np.empty((8, M)), np.empty((2, m)), np.empty((4, M))
    G, work = np.empty(m), np.empty((12, m))
    size = work[5]
    on_sphere, on_axis, change = np.zeros((_SUMS, 8)), np.zeros((_SUMS, 8)), np.empty((1 + PARAMETERS, 8))
    on_nodes = np.zeros((_SUMS, 8))
    count = _SUMS if with_derivatives else 1
    for i in range(start, stop):
        net, net_flux, calm = enter_row(F[i], moments, basis, species)
        with_beams = calm < 1.0 and narrow.shape[1] > 0
        sign = 1.0 if net >= 0.0 else -1.0
        q0, shape, axial_shape = take_shapes(theta[i])
        b, beta = theta[i, 3], theta[i, 5]
        on_sphere[:] = 0.0
        on_axis[:] = 0.0
        scales[i, 0] = scales[i, 1] = np.nan
        trust = 1.0
        if beta != 0.0 or with_derivatives:
            large, small = fill_axis(species, axial, sign, terms, G[:M], size[:M], even)
            trust = trust_in_axis(net_flux, large + small) * (calm if with_beams else 1.0)
            scales[i, 1] = mix_axis(
                species, G[:M], large, small, axial_shape, settled, tolerance, with_derivatives, terms, work, on_axis
            )
        beta *= trust
        if beta != 1.0 or with_derivatives:
            large, small = fill_sphere(species, sphere, sign, moved, G[:K], size[:K])
            scales[i, 0] = mix_sphere(
                sphere, G[:K], large, small, shape, settled, tolerance, with_derivatives, moved, work, on_sphere
            )
            if with_beams:
                _, _, beams = enter(F[i], np.int64(2), own, Q, axes, described)
                n = fill_nodes(np.int64(4), beams, described, own, Q, upright, narrow, scratch, nodes)
                large, small = _on_nodes(n, nodes, sign, moved[0], moved[1], G, size)
                # A beam has no width to hide an error of s in.
                tight = min(tolerance, 1e-13 / TO_LOG2)
                on_nodes[:] = 0.0
                scales[i, 0] = mix_sphere(
                    nodes[X : Z + 1], G[:n], large, small, shape, settled, tight, with_derivatives, moved, work,
                    on_nodes,
                )  # fmt: skip
                for k in range(count):
                    _change_frame(axes, basis, on_nodes[k])
                for k in range(count):
                    for j in range(8):
                        on_sphere[k, j] = on_nodes[k, j] + calm * (on_sphere[k, j] - on_nodes[k, j])
        alpha = 1.0 - beta
        take_mean(q0, beta, on_sphere[0], on_axis[0], moments, basis, change[0], D[i])
        if with_derivatives:
            for k in range(8):
                lifted = alpha * on_sphere[3, k] + beta * on_axis[3, k]
                change[1, k] = change[0, k] - b * lifted
                change[2, k], change[3, k] = q0 * alpha * on_sphere[1, k], q0 * alpha * on_sphere[2, k]
                change[4, k] = (1.0 - q0) * lifted
                change[5, k] = q0 * (alpha * on_sphere[4, k] + beta * on_axis[4, k])
                change[6, k] = q0 * trust * (on_axis[0, k] - on_sphere[0, k])
                change[7, k], change[8, k] = q0 * beta * on_axis[1, k], q0 * beta * on_axis[2, k]
            for parameter in range(PARAMETERS):
                _leave(change[1 + parameter], basis, J[i, parameter])


@kernel
def _leave(change, basis, out):
    """Turn a change out of the frame; both densities, equal up to the tolerance of s, become exactly equal."""
    for k in range(3):
        out[k] = change[0] * basis[0, k] + change[1] * basis[1, k] + change[2] * basis[2, k]
        out[4 + k] = change[4] * basis[0, k] + change[5] * basis[1, k] + change[6] * basis[2, k]
    out[3] = out[7] = 0.5 * (change[3] + change[7])


@driver
def survival_features(F, sphere, axial, out, start, stop):
    """Five invariants of G of rows ``start:stop`` of ``F (n, 6, 4)`` into ``out (n, 5)``.

    Depth of the crossing on the axis and on the sphere, ``log(I_small/I_large + 1e-3)``; net number and net flux over
    ``A = int |Gbar|``; ``|int G| / A`` times ``int Gbar P2(zeta) / A``, P2 the Legendre polynomial.
    """
    K, M = sphere.shape[1], axial.shape[1]
    m = max(K, M)
    moments, basis, species = np.empty((4, 4)), np.empty((3, 3)), np.empty((7, 6))
    terms, moved, even, G, size = np.empty((8, M)), np.empty((2, K)), np.empty((4, M)), np.empty(m), np.empty(m)
    for i in range(start, stop):
        net, net_flux, _ = enter_row(F[i], moments, basis, species)
        sign = 1.0 if net >= 0.0 else -1.0
        sphere_sides = fill_sphere(species, sphere, sign, moved, G[:K], size[:K])
        axis_sides = fill_axis(species, axial, sign, terms, G[:M], size[:M], even)
        describe_sides(net, net_flux, sphere_sides, axis_sides, G[:M], axial, out[i])


@kernel
def describe_sides(net, net_flux, on_sphere, on_axis, G, axial, out):
    """Invariants of a row from the integrals over the larger and the smaller side, and from Gbar on the axis."""
    both = max(on_axis[0] + on_axis[1], _TINY)
    quadrupole = 0.0
    for j in range(G.shape[0]):
        quadrupole += G[j] * (1.5 * axial[0, j] * axial[0, j] - 0.5)
    out[0] = np.log(on_axis[1] / max(on_axis[0], _TINY) + 1e-3)
    out[1] = np.log(on_sphere[1] / max(on_sphere[0], _TINY) + 1e-3)
    out[2] = min(abs(net) / both, UNSEEN)
    out[3] = min(net_flux / both, UNSEEN)
    out[4] = out[2] * quadrupole / both


@driver
def calm_rows(F, out):
    """How calm each row is: 1 without beams, 0 with one."""
    moments, basis, species = np.empty((4, 4)), np.empty((3, 3)), np.empty((7, 6))
    for i in range(F.shape[0]):
        out[i] = enter_row(F[i], moments, basis, species)[2]


@driver
def likeness_rows(F, rule, out):
    """``max(0, 1 - 2 int |L_mu - L_tau| / int (|L_e - L_mu| + |L_e - L_tau|))`` of each row into ``out (n)``."""
    moments, basis, means = np.empty((4, 4)), np.empty((3, 3)), np.empty((7, 6))
    species, L = np.empty((6, 5)), np.empty(3)
    for i in range(F.shape[0]):
        enter_row(F[i], moments, basis, means)
        for s in range(6):
            N = np.float64(F[i, s, 3])
            inverse = 1.0 / N if N > 0.0 else 0.0
            x, y, z = inverse * F[i, s, 0], inverse * F[i, s, 1], inverse * F[i, s, 2]
            f = np.sqrt(x * x + y * y + z * z)
            ratio = LOG2_E * langevin_ratio(f)
            for k in range(3):
                species[s, k] = ratio * (x * basis[k, 0] + y * basis[k, 1] + z * basis[k, 2])
            species[s, 3], species[s, 4] = ratio * f, N * peak(LN2 * ratio * f)
        heavy = electron = 0.0
        for j in range(rule.shape[1]):
            for k in range(3):
                value = 0.0
                for s, sign in ((k, 1.0), (k + 3, -1.0)):
                    own = species[s]
                    exponent = own[0] * rule[0, j] + own[1] * rule[1, j] + own[2] * rule[2, j] - own[3]
                    value += sign * own[4] * pow2(max(exponent, -1000.0))
                L[k] = value
            heavy += rule[3, j] * abs(L[1] - L[2])
            electron += rule[3, j] * (abs(L[0] - L[1]) + abs(L[0] - L[2]))
        out[i] = max(1.0 - 2.0 * heavy / electron, 0.0) if electron > 0.0 else 0.0


# From the change to the state
# ----------------------------
@kernel
def share_change(F, D, out, start, stop):
    """Take ``D (n, 8)``, in units of the total density, from e and give half of it to mu and to tau each."""
    for i in range(start, stop):
        total = 0.0
        for s in range(6):
            total += np.float64(F[i, s, 3])
        for k in range(4):
            for s, d in ((0, D[i, k] * total), (3, D[i, 4 + k] * total)):
                out[i, s, k] = F[i, s, k] - d
                out[i, s + 1, k] = F[i, s + 1, k] + 0.5 * d
                out[i, s + 2, k] = F[i, s + 2, k] + 0.5 * d


@kernel
def fill_matrices(losses, out):
    """Matrices ``(2, 6, 6)`` of `rheidae.mixing.transition` from averages ``(4, 2)`` over e, ebar, x and xbar."""
    for kind in range(2):
        out[kind] = 0.0
        for nu in range(2):
            e, x, first = losses[nu, kind], losses[2 + nu, kind], 3 * nu
            own = out[kind, first : first + 3, first : first + 3]
            own[0, 0], own[0, 1], own[0, 2] = 1.0 - e, 0.5 * x, 0.5 * x
            own[1, 0], own[1, 1], own[1, 2] = 0.5 * e, 1.0 - 0.25 * x, -0.25 * x
            own[2, 0], own[2, 1], own[2, 2] = 0.5 * e, -0.25 * x, 1.0 - 0.25 * x
