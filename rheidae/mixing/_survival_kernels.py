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
from scipy.special import ive

from rheidae.mixing._box3d_kernels import FOUR_PI, NOISE
from rheidae.mixing._closure_kernels import LOG2_E, langevin_ratio, log2, pow2
from rheidae.mixing._nodes_kernels import COLUMNS, NODE_ROWS, VALUES, VANISHING, WEIGHT, X, Y, Z, enter, fill_nodes
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
PARAMETERS = 8
FEATURES = 5
# Value, and derivatives by log p, log a, lift and rho.
_SUMS = 5
_TINY = 1e-300


def sphere_rule(nodes, weights):
    """Return the ``(4, m)`` table ``x, y, z, w``, padded with empty nodes to a multiple of 8."""
    table = np.vstack([nodes, weights])
    pad = -table.shape[1] % 8
    return np.ascontiguousarray(np.pad(table, ((0, 0), (0, pad))))


def axial_rule(points):
    """Return the ``(3, points)`` table ``zeta, 2 pi w, sqrt(1 - zeta^2)`` of Gauss and Legendre."""
    zeta, weights = np.polynomial.legendre.leggauss(points)
    return np.ascontiguousarray([zeta, 2 * np.pi * weights, np.sqrt(1 - zeta**2)])


# Scalar functions
# ----------------
# exp(-x) I0(x) and exp(-x) I1(x): polynomials in x/4 - 1 up to x = 8, above it in 16/x - 1 times 1/sqrt(x); 2e-10.
def _fit(function, degree=19):
    return tuple(float(c) for c in chebyshev.cheb2poly(chebyshev.chebinterpolate(function, degree)))


def _fit_far(order):
    def scaled(u):
        x = 16 / np.maximum(u + 1, 1e-9)
        return ive(order, x) * np.sqrt(x)

    return _fit(scaled, 11)


_NEAR_0, _NEAR_1 = _fit(lambda u: ive(0, 4 * (u + 1))), _fit(lambda u: ive(1, 4 * (u + 1)))
_FAR_0, _FAR_1 = _fit_far(0), _fit_far(1)


@scalar_kernel
def _polynomial(u, c):
    low = c[0] + u * (c[1] + u * (c[2] + u * (c[3] + u * (c[4] + u * c[5]))))
    high = c[6] + u * (c[7] + u * (c[8] + u * (c[9] + u * (c[10] + u * c[11]))))
    cube = u * u * u
    return low + cube * cube * high


@scalar_kernel
def _tail(u, c):
    return c[0] + u * (c[1] + u * (c[2] + u * (c[3] + u * (c[4] + u * (c[5] + u * (c[6] + u * c[7]))))))


@scalar_kernel
def _bessel_near(x):
    u = 0.25 * x - 1.0
    twelfth = u**12
    zero, one = _polynomial(u, _NEAR_0[:12]), _polynomial(u, _NEAR_1[:12])
    return zero + twelfth * _tail(u, _NEAR_0[12:]), one + twelfth * _tail(u, _NEAR_1[12:])


@scalar_kernel
def _bessel_far(x):
    u = 16.0 / x - 1.0
    root = 1.0 / np.sqrt(x)
    return root * _polynomial(u, _FAR_0), root * _polynomial(u, _FAR_1)


@scalar_kernel
def scaled_bessel(x):
    """Return ``exp(-x) I0(x)`` and ``exp(-x) I1(x)`` for ``x >= 0``, to 2e-10."""
    return _bessel_near(x) if x <= 8.0 else _bessel_far(x)


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
def _peak(length):
    """``2 Z/(1 - exp(-2 Z))`` of ``length = log2(e) Z``."""
    if length > 1e-4:
        return 2.0 * LN2 * length / (1.0 - pow2(-min(2.0 * length, 1000.0)))
    return 1.0 + LN2 * length


@scalar_kernel
def _step(f, low, high):
    x = min(max((f - low) / (high - low), 0.0), 1.0)
    return x * x * (3.0 - 2.0 * x)


@kernel
def _enter(F, moments, basis, species):
    """Set the frame of a state ``F (6, 4)`` and its species in it; returns ``int G``, ``|int G n|`` and how calm it is.

    The second is zero where it is too small to have a direction; the last is 1 without beams, 0 with one.

    ``moments (4, 4)``: e, ebar, x, xbar over the total density. ``basis (3, 3)``: rows across, across, axis. ``species
    (4, 5)``: exponent vector ``log2(e) Z Fhat`` in the frame, its length, and the peak value A.
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
    calm = 1.0
    for s in range(4):
        N = moments[s, 3]
        factor = 1.0 / N if N > 0.0 else 0.0
        x, y, z = factor * moments[s, 0], factor * moments[s, 1], factor * moments[s, 2]
        f = np.sqrt(x * x + y * y + z * z)
        ratio = LOG2_E * langevin_ratio(f)
        for k in range(3):
            species[s, k] = ratio * (x * basis[k, 0] + y * basis[k, 1] + z * basis[k, 2])
        length = ratio * f
        species[s, 3] = length
        species[s, 4] = N * _peak(length) / FOUR_PI
        if f > CALM[0]:
            species[s, 4] *= 1.0 - _step(f, FADED[0], FADED[1])
            calm *= 1.0 - _step(f, CALM[0], CALM[1]) * N / (N + VANISHING)
    return net, net_flux, calm


# Both components
# ---------------
# ``terms (8, m)`` holds at every node the integrands of the eight moments, weights included, and ``G (m)`` the weighted
# G, positive on the larger side; ``L (m)`` is log2 |G| without weight. What the eight are is the component's own affair
# until `_leave_*` turns their sums into the change in the frame.
@kernel
def _turn_sides(G, large, small):
    """Make the larger side of the quadrature the positive one; returns both integrals in this order."""
    if large >= small:
        return large, small
    for j in range(G.shape[0]):
        G[j] = -G[j]
    return small, large


@kernel
def _on_sphere(species, rule, sign, terms, G, L):
    """Fill for G(n); returns the integrals over the larger and the smaller side."""
    simd_function()
    a, b, c, d = species[0], species[1], species[2], species[3]
    large = small = 0.0
    for j in range(rule.shape[1]):
        x, y, z, w = rule[0, j], rule[1, j], rule[2, j], rule[3, j]
        e = a[4] * pow2(max(a[0] * x + a[1] * y + a[2] * z - a[3], -1000.0))
        f = b[4] * pow2(max(b[0] * x + b[1] * y + b[2] * z - b[3], -1000.0))
        g = c[4] * pow2(max(c[0] * x + c[1] * y + c[2] * z - c[3], -1000.0))
        h = d[4] * pow2(max(d[0] * x + d[1] * y + d[2] * z - d[3], -1000.0))
        density = sign * ((e - g) - (f - h))
        nu, nubar = w * (e - g), w * (f - h)
        terms[0, j], terms[1, j], terms[2, j], terms[3, j] = x * nu, y * nu, z * nu, nu
        terms[4, j], terms[5, j], terms[6, j], terms[7, j] = x * nubar, y * nubar, z * nubar, nubar
        L[j] = log2(max(abs(density), _TINY))
        weighted = w * density
        G[j] = weighted
        large += max(weighted, 0.0)
        small += max(-weighted, 0.0)
    return _turn_sides(G, large, small)


@kernel
def _on_nodes(n, nodes, sign, terms, G, L):
    """The same at the nodes that `fill_nodes` left."""
    simd_function()
    x, y, z, w = nodes[X], nodes[Y], nodes[Z], nodes[WEIGHT]
    e, g, f, h = nodes[VALUES], nodes[VALUES + 1], nodes[VALUES + 2], nodes[VALUES + 3]
    large = small = 0.0
    for j in range(np.uint64(n)):
        density = sign * ((e[j] - g[j]) - (f[j] - h[j]))
        nu, nubar = w[j] * (e[j] - g[j]), w[j] * (f[j] - h[j])
        terms[0, j], terms[1, j], terms[2, j], terms[3, j] = x[j] * nu, y[j] * nu, z[j] * nu, nu
        terms[4, j], terms[5, j], terms[6, j], terms[7, j] = x[j] * nubar, y[j] * nubar, z[j] * nubar, nubar
        L[j] = log2(max(abs(density), _TINY))
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
def _azimuthal(s, rule, near, even, odd):
    """Weighted azimuthal integrals of one species: of g into ``even``, of its part across the axis into ``odd``."""
    simd_function()
    across = np.sqrt(s[0] * s[0] + s[1] * s[1])
    for j in range(rule.shape[1]):
        zeta, w, root = rule[0, j], rule[1, j], rule[2, j]
        rho = LN2 * across * root
        value = w * s[4] * pow2(max(s[2] * zeta + across * root - s[3], -1000.0))
        zero, one = _bessel_near(rho) if near else scaled_bessel(rho)
        even[j] = value * zero
        odd[j] = value * one * root


@kernel
def _on_axis(species, rule, sign, terms, G, L, even):
    """Fill for Gbar(zeta); returns the integrals over the larger and the smaller side."""
    # The odd parts take four of the eight rows: they are along other directions for each species.
    for s, row in ((0, 0), (2, 1), (1, 4), (3, 5)):
        own = species[s]
        near = LN2 * np.sqrt(own[0] * own[0] + own[1] * own[1]) <= 8.0
        _azimuthal(own, rule, near, even[s], terms[row])
    large = small = 0.0
    for j in range(rule.shape[1]):
        nu, nubar = even[0, j] - even[2, j], even[1, j] - even[3, j]
        terms[2, j], terms[3, j] = rule[0, j] * nu, nu
        terms[6, j], terms[7, j] = rule[0, j] * nubar, nubar
        weighted = sign * (nu - nubar)
        G[j] = weighted
        L[j] = log2(max(abs(weighted) / rule[1, j], _TINY))
        large += max(weighted, 0.0)
        small += max(-weighted, 0.0)
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
# Nodes stand sorted: those of the larger side first. ``y = log2 x``, and everything is written in ``t = 2^-|y|``, so
# that it holds for every y: the powers themselves leave the range of a double.
@kernel
def _sort_sides(L, G, where, L_sorted, G_sorted):
    """Put the nodes of the larger side in front; returns how many there are, ``where`` says which is which."""
    count, last = 0, L.shape[0] - 1
    for j in range(L.shape[0]):
        larger = G[j] > 0.0
        place = count if larger else last - j + count
        L_sorted[place], G_sorted[place], where[place] = L[j], G[j], j
        count += larger
    return count


@scalar_kernel
def _fall(y, settled):
    """Return log2 of ``r (r + x)``, or of ``1 + x`` if not `settled`, and its derivative by y."""
    t = pow2(-min(abs(y), 1000.0))
    if settled:
        square = 1.0 + t * t
        r = np.sqrt(square)
        part = (1.0 if y > 0.0 else t) * r
        return 2.0 * max(y, 0.0) + log2(square + part), ((1.0 if y > 0.0 else t * t) + part) / square
    return max(y, 0.0) + log2(1.0 + t), (1.0 if y > 0.0 else t) / (1.0 + t)


@scalar_kernel
def _rise(y):
    """Return ``z/sqrt(1 + z^2)`` of ``z = 2^y``, and its derivative by ln z."""
    t = pow2(-min(abs(y), 1000.0))
    inverse = 1.0 / (1.0 + t * t)
    u = (1.0 if y > 0.0 else t) * np.sqrt(inverse)
    return u, u * inverse * (t * t if y > 0.0 else 1.0)


@kernel
def _larger(L, G, log_s, p, a, settled, h):
    """Fill ``h`` of the larger side; return ``int h G`` and its derivative by ``ln s``."""
    simd_function()
    total = slope = 0.0
    for j in range(L.shape[0]):
        base, part = _fall(a * (L[j] - log_s), settled)
        value = pow2(max(-p * base, -1000.0))
        h[j] = value
        total += value * G[j]
        slope += value * G[j] * part
    return total, p * a * slope


@kernel
def _smaller(L, G, log_s, a, rho, lift, h):
    """The same of the smaller side, of ``int h |G|``."""
    simd_function()
    total = slope = 0.0
    for j in range(L.shape[0]):
        u, part = _rise(a * (L[j] - log_s - rho))
        h[j] = 1.0 + lift * u
        total -= h[j] * G[j]
        slope += part * G[j]
    return total, a * lift * slope


@kernel
def _solve(L, G, count, large, small, shape, settled, tolerance, h):
    """Return ``log2 s`` with ``int h G = 0``: Newton on the logarithms of both sides, in a bracket.

    The start is exact where G >> s everywhere on the larger side and b = 0: there ``int h G ~ s^(a p)``.
    """
    p, a, lift, rho = shape
    # Wide enough for a and p of 0.01: there s^(a p) ~ small/large >= NOISE; s is large where both sides are alike.
    low, high = -1e6, 1e4
    log_s = log2(max(large, _TINY) / FOUR_PI) + (log2(small) - log2(max(large, _TINY))) / (a * p * (1.0 + settled))
    log_s = min(max(log_s, low), high)
    loss, falling = small, 0.0
    h[count:] = 1.0
    for _ in range(100):
        gain, rising = _larger(L[:count], G[:count], log_s, p, a, settled, h[:count])
        if lift != 0.0:
            loss, falling = _smaller(L[count:], G[count:], log_s, a, rho, lift, h[count:])
        error = log2(max(gain, _TINY)) - log2(loss)
        if abs(error) < tolerance:
            break
        if error > 0.0:
            high = log_s
        else:
            low = log_s
        # A steep fall-off has no slope left to go by where every h is at its least.
        slope = rising / max(gain, _TINY) - falling / loss
        step = log_s - error / slope if slope > 1e-200 else low
        if not low < step < high:
            step = 0.5 * (low + high)
        if step == log_s or high - low < 1e-12:
            break
        log_s = step
    return log_s


@kernel
def _sums(terms, h, out):
    simd_function()
    for k in range(8):
        term = terms[k]
        value = 0.0
        for j in range(h.shape[0]):
            value += term[j] * h[j]
        out[k] = value


@kernel
def _derivatives(L, G, count, small, log_s, shape, settled, h, by):
    """Derivatives of h by log p, log a, lift and rho into ``by[:4]``, with s moving along; ``by[4]``: by ``log2 s``.

    ``d log2 s = -(dH/dtheta)/(dH/dlog2 s) dtheta`` of ``H = int h G``.
    """
    simd_function()
    p, a, lift, rho = shape
    nodes = L.shape[0]
    s0 = s1 = s2 = s3 = s4 = 0.0
    for j in range(count):
        above = L[j] - log_s
        base, part = _fall(a * above, settled)
        by[0, j], by[2, j], by[3, j] = -LN2 * p * base * h[j], 0.0, 0.0
        by[4, j] = LN2 * p * a * part * h[j]
        by[1, j] = -by[4, j] * above
    for j in range(count, nodes):
        above = L[j] - log_s - rho
        u, part = _rise(a * above)
        by[0, j], by[2, j], by[4, j] = 0.0, u, -LN2 * a * lift * part
        by[1, j], by[3, j] = -by[4, j] * above, by[4, j]
    for j in range(nodes):
        s0 += G[j] * by[0, j]
        s1 += G[j] * by[1, j]
        s2 += G[j] * by[2, j]
        s3 += G[j] * by[3, j]
        s4 += G[j] * by[4, j]
    # Between a beam and the rest int h G may not depend on s; then s stays.
    inverse = 1.0 / s4 if s4 > 1e-12 * small else 0.0
    s0, s1, s2, s3 = s0 * inverse, s1 * inverse, s2 * inverse, s3 * inverse
    for j in range(nodes):
        by[0, j] -= s0 * by[4, j]
        by[1, j] -= s1 * by[4, j]
        by[2, j] -= s2 * by[4, j]
        by[3, j] -= s3 * by[4, j]


@kernel
def _component(terms, G, L, large, small, shape, settled, tolerance, with_derivatives, where, work, sums):
    """Eight sums into ``sums[0]``, their derivatives by log p, log a, lift, rho into ``sums[1:]``; returns ``log2 s``.

    ``where (m)`` and ``work (9, m)`` are scratch.
    """
    for i in range(_SUMS):
        for k in range(8):
            sums[i, k] = 0.0
    if not small > NOISE:
        return np.nan
    nodes = L.shape[0]
    L_sorted, G_sorted, everywhere = work[0, :nodes], work[1, :nodes], work[2, :nodes]
    by, h = work[3:8, :nodes], work[8, :nodes]
    count = _sort_sides(L, G, where, L_sorted, G_sorted)
    log_s = _solve(L_sorted, G_sorted, count, large, small, shape, settled, tolerance, h)
    if with_derivatives:
        _derivatives(L_sorted, G_sorted, count, small, log_s, shape, settled, h, by)
    fade = 1.0 - pow2(-min(LOG2_E * small / FADE, 1000.0))
    if settled:
        # int |G| is at most the total density, of which a beam on a node can make any number.
        fade /= max(large + small, 1.0)
    for i in range(_SUMS if with_derivatives else 1):
        values = h if i == 0 else by[i - 1]
        for j in range(nodes):
            everywhere[where[j]] = fade * values[j]
        _sums(terms, everywhere, sums[i])
    return log_s


@kernel
def _trust(net_flux, both):
    """How far the axis is to be trusted, 0 to 1."""
    ratio = net_flux / (AXIS * both) if both > 0.0 else 0.0
    return 1.0 - pow2(-min(LOG2_E * ratio * ratio, 1000.0))


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
    moments, basis, species = np.empty((4, 4)), np.empty((3, 3)), np.empty((4, 5))
    own, Q, axes, described = np.empty((6, 4)), np.empty((3, 3)), np.empty((3, 3)), np.empty((6, COLUMNS))
    nodes, scratch = np.empty((NODE_ROWS, wide)), np.empty((5, 12))
    terms_s, terms_a, even = np.empty(8 * max(K, wide)), np.empty((8, M)), np.empty((4, M))
    G, L, where, work = np.empty(m), np.empty(m), np.empty(m, np.int64), np.empty((9, m))
    on_sphere, on_axis, change = np.zeros((_SUMS, 8)), np.zeros((_SUMS, 8)), np.empty((1 + PARAMETERS, 8))
    on_nodes = np.zeros((_SUMS, 8))
    for i in range(start, stop):
        net, net_flux, calm = _enter(F[i], moments, basis, species)
        with_beams = calm < 1.0 and narrow.shape[1] > 0
        sign = 1.0 if net >= 0.0 else -1.0
        q0, b, rho, beta = 2.0 / 3.0 * np.exp(theta[i, 0]), theta[i, 3], theta[i, 4], theta[i, 5]
        lift = b * (1.0 - q0) / q0 if b != 0.0 else 0.0
        on_sphere[:] = 0.0
        on_axis[:] = 0.0
        scales[i, 0] = scales[i, 1] = np.nan
        trust = 1.0
        if beta != 0.0 or with_derivatives:
            large, small = _on_axis(species, axial, sign, terms_a, G[:M], L[:M], even)
            trust = _trust(net_flux, large + small) * (calm if with_beams else 1.0)
            shape = (np.exp(theta[i, 6]), np.exp(theta[i, 7]), lift, rho)
            scales[i, 1] = _component(
                terms_a, G[:M], L[:M], large, small, shape, settled, tolerance, with_derivatives, where, work, on_axis
            )
            for k in range(_SUMS):
                _turn_odd(species, on_axis[k])
        beta *= trust
        if beta != 1.0 or with_derivatives:
            terms = terms_s[: 8 * K].reshape(8, K)
            large, small = _on_sphere(species, sphere, sign, terms, G[:K], L[:K])
            shape = (np.exp(theta[i, 1]), np.exp(theta[i, 2]), lift, rho)
            scales[i, 0] = _component(
                terms, G[:K], L[:K], large, small, shape, settled, tolerance, with_derivatives, where, work, on_sphere
            )
            if with_beams:
                _, _, beams = enter(F[i], 2, own, Q, axes, described)
                n = fill_nodes(4, beams, described, own, Q, upright, narrow, scratch, nodes)
                terms = terms_s[: 8 * n].reshape(8, n)
                large, small = _on_nodes(n, nodes, sign, terms, G, L)
                # A beam has no width to hide an error of s in.
                tight = min(tolerance, 1e-13)
                scales[i, 0] = _component(
                    terms, G[:n], L[:n], large, small, shape, settled, tight, with_derivatives, where, work, on_nodes
                )
                for k in range(_SUMS):
                    _change_frame(axes, basis, on_nodes[k])
                    for m in range(8):
                        on_sphere[k, m] = on_nodes[k, m] + calm * (on_sphere[k, m] - on_nodes[k, m])
        alpha = 1.0 - beta
        for k in range(8):
            change[0, k] = q0 * (alpha * on_sphere[0, k] + beta * on_axis[0, k])
        _leave(change[0], basis, D[i])
        # The root's last digits must not ask of an empty species what it does not have.
        least, most = -2.0 * min(moments[2, 3], moments[3, 3]), min(moments[0, 3], moments[1, 3])
        D[i, 3] = D[i, 7] = min(max(D[i, 3], least), most)
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
    m = max(sphere.shape[1], axial.shape[1])
    K, M = sphere.shape[1], axial.shape[1]
    moments, basis, species = np.empty((4, 4)), np.empty((3, 3)), np.empty((4, 5))
    terms, even, G, L = np.empty((8, m)), np.empty((4, M)), np.empty(m), np.empty(m)
    for i in range(start, stop):
        net, net_flux, _ = _enter(F[i], moments, basis, species)
        sign = 1.0 if net >= 0.0 else -1.0
        large, small = _on_sphere(species, sphere, sign, terms, G[:K], L[:K])
        out[i, 1] = np.log(small / max(large, _TINY) + 1e-3)
        large, small = _on_axis(species, axial, sign, terms, G[:M], L[:M], even)
        out[i, 0] = np.log(small / max(large, _TINY) + 1e-3)
        both = max(large + small, _TINY)
        quadrupole = 0.0
        for j in range(M):
            quadrupole += G[j] * (1.5 * axial[0, j] * axial[0, j] - 0.5)
        out[i, 2] = min(abs(net) / both, UNSEEN)
        out[i, 3] = min(net_flux / both, UNSEEN)
        out[i, 4] = out[i, 2] * quadrupole / both


@driver
def calm_rows(F, out):
    """How calm each row is: 1 without beams, 0 with one."""
    moments, basis, species = np.empty((4, 4)), np.empty((3, 3)), np.empty((4, 5))
    for i in range(F.shape[0]):
        out[i] = _enter(F[i], moments, basis, species)[2]


@driver
def likeness_rows(F, rule, out):
    """``max(0, 1 - 2 int |L_mu - L_tau| / int (|L_e - L_mu| + |L_e - L_tau|))`` of each row into ``out (n)``."""
    moments, basis, means = np.empty((4, 4)), np.empty((3, 3)), np.empty((4, 5))
    species, L = np.empty((6, 5)), np.empty(3)
    for i in range(F.shape[0]):
        _enter(F[i], moments, basis, means)
        for s in range(6):
            N = np.float64(F[i, s, 3])
            inverse = 1.0 / N if N > 0.0 else 0.0
            x, y, z = inverse * F[i, s, 0], inverse * F[i, s, 1], inverse * F[i, s, 2]
            f = np.sqrt(x * x + y * y + z * z)
            ratio = LOG2_E * langevin_ratio(f)
            for k in range(3):
                species[s, k] = ratio * (x * basis[k, 0] + y * basis[k, 1] + z * basis[k, 2])
            species[s, 3], species[s, 4] = ratio * f, N * _peak(ratio * f)
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
