"""Numba kernels of continuous ("power") mixing, forward and derivative in one pass. No validation here.

The scheme
----------
Side: G is counted positive on the side with the larger integral: that of the sign of ``int G = N_e - Nbar_e - N_x +
Nbar_x``, unless a beam falls between the nodes and the quadrature says otherwise. With two numbers p, a > 0,

    h = 1 on the smaller side,      h = (1 + (G/s)^a)^-p on the larger,      int h G = 0 fixes s,

and ``1 - P = (2/3) c h``. One such function lives on the sphere (G(n)), a second on ``zeta = n . axis`` alone, made
from the azimuthal mean of G about the net flux ``int G n`` (signed so that it points to the larger side):

    1 - P = (2/3) c [(1 - b) h(G(n)) + b h(Gbar(zeta))].

Every h conserves lepton number by itself, so the mixture does, for any c and b; it is a convex mixture of the initial
distributions as long as ``(2/3) c <= 1``.

Azimuthal integrals of a Minerbo distribution with exponent Z, alpha the angle between its flux and the axis and
``rho = Z sin(alpha) sqrt(1 - zeta^2)``:

    int g dphi          = 2 pi A exp(Z (zeta cos(alpha) - 1)) I0(rho)                          A: value at the peak
    int g n_perp dphi   = the same with I1(rho) sqrt(1 - zeta^2), along the flux's part across the axis.

Fading
------
A quadrature node that crosses to the smaller side does so with its whole weight. Each h is therefore multiplied by
``1 - exp(-I_small/(FADE N_total))``, and b by ``1 - exp(-(|int G n| / (AXIS int |Gbar|))^2)``, because the axis
loses its meaning with the net flux. Neither breaks a conservation law.

Parameters of a row: ``theta = (log c, log p, log a, b, log p_axial, log a_axial)``. All directions are taken in the
frame (across, across, axis) of the state, so the rule turns with it and rotated states give rotated answers to
rounding.
"""

from __future__ import annotations

import numpy as np
from numpy.polynomial import chebyshev
from scipy.special import ive

from rheidae.mixing._box3d_kernels import FOUR_PI, NOISE
from rheidae.mixing._closure_kernels import LOG2_E, langevin_ratio, pow2
from rheidae.system.numba import driver, kernel, scalar_kernel, simd_function

LN2 = 0.6931471805599453
#: Scales, relative to the total density and to int |Gbar|, below which a crossing or the axis counts less and less.
FADE = 1e-4
AXIS = 0.1
#: Vectors shorter than this part of the total density are rounding of single precision: they have no direction.
NO_DIRECTION = 1e-7
#: Both ratios to int |Gbar| are at most 1; a quadrature that misses a beam would make them anything.
UNSEEN = 10.0
PARAMETERS = 6
FEATURES = 5
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
@scalar_kernel
def log2(x):
    """Return the logarithm to base 2 of a normal ``x > 0``, to 1e-13: ``x = 2^e m``, m in [1/sqrt 2, sqrt 2)."""
    bits = np.float64(x).view(np.int64)
    k = (bits - 0x3FE6A09E667F3BCD) >> 52
    m = np.int64(bits - (k << 52)).view(np.float64)
    # The integer is turned into a double by its bits, as in pow2.
    e = np.int64(k + 0x4338000000000000).view(np.float64) - 6755399441055744.0
    t = (m - 1.0) / (m + 1.0)
    s = t * t
    # 2/ln 2 atanh(t)
    series = 0.5770780163555854 + s * (
        0.4121985831111324
        + s * (0.3205988979753252 + s * (0.26230818925253882 + s * (0.22195308321368668 + s * 0.19235933878519512)))
    )
    return e + t * (2.8853900817779268 + s * (0.961796693925976 + s * series))


# exp(-x) I0(x) and exp(-x) I1(x): polynomials in x/4 - 1 up to x = 8, above it in 16/x - 1 times 1/sqrt(x); 1e-7.
def _fit(function):
    return tuple(float(c) for c in chebyshev.cheb2poly(chebyshev.chebinterpolate(function, 15)))


def _fit_far(order):
    def scaled(u):
        x = 16 / np.maximum(u + 1, 1e-9)
        return ive(order, x) * np.sqrt(x)

    return _fit(scaled)


_NEAR_0, _NEAR_1 = _fit(lambda u: ive(0, 4 * (u + 1))), _fit(lambda u: ive(1, 4 * (u + 1)))
_FAR_0, _FAR_1 = _fit_far(0), _fit_far(1)


@scalar_kernel
def _polynomial(u, c):
    low = c[0] + u * (c[1] + u * (c[2] + u * (c[3] + u * (c[4] + u * (c[5] + u * (c[6] + u * c[7]))))))
    high = c[8] + u * (c[9] + u * (c[10] + u * (c[11] + u * (c[12] + u * (c[13] + u * (c[14] + u * c[15]))))))
    square = u * u
    fourth = square * square
    return low + fourth * fourth * high


@scalar_kernel
def _bessel_near(x):
    u = 0.25 * x - 1.0
    return _polynomial(u, _NEAR_0), _polynomial(u, _NEAR_1)


@scalar_kernel
def _bessel_far(x):
    u = 16.0 / x - 1.0
    root = 1.0 / np.sqrt(x)
    return root * _polynomial(u, _FAR_0), root * _polynomial(u, _FAR_1)


@scalar_kernel
def scaled_bessel(x):
    """Return ``exp(-x) I0(x)`` and ``exp(-x) I1(x)`` for ``x >= 0``, to 1e-7."""
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


@kernel
def _enter(F, moments, basis, species):
    """Set the frame of a state ``F (6, 4)`` and its species in it; returns total density, ``int G`` and ``|int G n|``.

    The last is zero where it is too small to have a direction.

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
        # 2 Z/(1 - exp(-2 Z))
        peak = 1.0 + LN2 * length
        if length > 1e-4:
            peak = 2.0 * LN2 * length / (1.0 - pow2(-min(2.0 * length, 1000.0)))
        species[s, 4] = N * peak / FOUR_PI
    return total, net, net_flux


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
@kernel
def _gather(L, G, where, L_large, G_large):
    """Put the nodes of the larger side together; returns how many there are, ``where`` says which."""
    count = 0
    for j in range(L.shape[0]):
        L_large[count], G_large[count], where[count] = L[j], G[j], j
        count += G[j] > 0.0
    return count


@scalar_kernel
def _raised(y):
    """Return ``log2(1 + 2^y)`` and ``2^y/(1 + 2^y)`` for any y."""
    t = pow2(-min(abs(y), 1000.0))
    inverse = 1.0 / (1.0 + t)
    return max(y, 0.0) + log2(1.0 + t), inverse if y > 0.0 else t * inverse


@kernel
def _mixing(L, G, log_s, p, a, h):
    """Fill ``h`` of nodes on the larger side; return ``int h G`` and its derivative by ``log2 s``."""
    simd_function()
    total = slope = 0.0
    for j in range(L.shape[0]):
        raised, part = _raised(a * (L[j] - log_s))
        h[j] = pow2(max(-p * raised, -1000.0))
        weighted = h[j] * G[j]
        total += weighted
        slope += weighted * part
    return total, p * a * LN2 * slope


@kernel
def _solve(L, G, large, small, p, a, tolerance, h):
    """Return ``log2 s`` with ``int h G = small`` over the larger side: Newton on the logarithms, in a bracket.

    The start is exact where G >> s everywhere: there ``int h G ~ s^(a p)``.
    """
    # Wide enough for a and p of 0.01: there s^(a p) ~ small/large >= NOISE; s is large where both sides are alike.
    low, high = -1e6, 1e4
    goal = log2(small)
    log_s = log2(max(large, _TINY) / FOUR_PI) + (goal - log2(max(large, _TINY))) / (a * p)
    log_s = min(max(log_s, low), high)
    for _ in range(100):
        total, slope = _mixing(L, G, log_s, p, a, h)
        error = log2(max(total, _TINY)) - goal
        if abs(error) < tolerance:
            break
        if error > 0.0:
            high = log_s
        else:
            low = log_s
        # A steep fall-off has no slope left to go by where every h is at its least.
        step = log_s - error * LN2 * total / slope if slope > 1e-200 else low
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
def _derivatives(L, G, h, log_s, p, a, by_p, by_a):
    """Derivatives of h by log p and log a, with s moving along: ``d log2 s = -(dH/dtheta)/(dH/dlog2 s) dtheta``."""
    simd_function()
    slope_p = slope_a = slope_s = 0.0
    for j in range(L.shape[0]):
        above = L[j] - log_s
        raised, part = _raised(a * above)
        by_s = LN2 * p * a * h[j] * part
        by_p[j] = -LN2 * p * h[j] * raised
        by_a[j] = -by_s * above
        slope_s += G[j] * by_s
        slope_p += G[j] * by_p[j]
        slope_a += G[j] * by_a[j]
    inverse = 1.0 / max(slope_s, _TINY)
    slope_p *= inverse
    slope_a *= inverse
    for j in range(L.shape[0]):
        by_s = LN2 * p * a * h[j] * _raised(a * (L[j] - log_s))[1]
        by_p[j] -= slope_p * by_s
        by_a[j] -= slope_a * by_s


@kernel
def _spread(values, where, count, elsewhere, out):
    """Put the values of the larger side back in their places."""
    for j in range(out.shape[0]):
        out[j] = elsewhere
    for j in range(count):
        out[where[j]] = values[j]


@kernel
def _component(terms, G, L, large, small, p, a, tolerance, with_derivatives, where, work, sums):
    """Eight sums into ``sums[0]``, their derivatives by log p and log a into ``sums[1:3]``; returns ``log2 s``.

    ``where (m)`` and ``work (6, m)`` are scratch.
    """
    for i in range(3):
        for k in range(8):
            sums[i, k] = 0.0
    if not small > NOISE:
        return np.nan
    nodes = L.shape[0]
    count = _gather(L, G, where, work[0], work[1])
    L_large, G_large, h = work[0, :count], work[1, :count], work[2, :count]
    log_s = _solve(L_large, G_large, large, small, p, a, tolerance, h)
    everywhere = work[5, :nodes]
    _spread(h, where, count, 1.0, everywhere)
    _sums(terms, everywhere, sums[0])
    if with_derivatives:
        by_p, by_a = work[3, :count], work[4, :count]
        _derivatives(L_large, G_large, h, log_s, p, a, by_p, by_a)
        _spread(by_p, where, count, 0.0, everywhere)
        _sums(terms, everywhere, sums[1])
        _spread(by_a, where, count, 0.0, everywhere)
        _sums(terms, everywhere, sums[2])
    fade = 1.0 - pow2(-min(LOG2_E * small / FADE, 1000.0))
    for i in range(3):
        for k in range(8):
            sums[i, k] *= fade
    return log_s


@kernel
def _trust(net_flux, both):
    """How far the axis is to be trusted, 0 to 1."""
    ratio = net_flux / (AXIS * both) if both > 0.0 else 0.0
    return 1.0 - pow2(-min(LOG2_E * ratio * ratio, 1000.0))


@driver
def power_rows(F, theta, sphere, axial, tolerance, with_derivatives, D, J, scales, start, stop):
    """Continuous mixing of rows ``start:stop`` of ``F (n, 6, 4)``.

    ``theta (n, 6)`` -> ``D (n, 8)``, what nu_e and nubar_e lose, each ``(x, y, z, t)``, over the total density;
    ``J (n, 6, 8)``, its derivatives by theta, if asked for (else any 3d array); ``scales (n, 2)``, log2 of s on the
    sphere and on the axis over the total density, NaN where there is no crossing or no such component.
    """
    m = max(sphere.shape[1], axial.shape[1])
    K, M = sphere.shape[1], axial.shape[1]
    moments, basis, species = np.empty((4, 4)), np.empty((3, 3)), np.empty((4, 5))
    terms_s, terms_a, even = np.empty((8, K)), np.empty((8, M)), np.empty((4, M))
    G, L, where, work = np.empty(m), np.empty(m), np.empty(m, np.int64), np.empty((6, m))
    on_sphere, on_axis, change = np.empty((3, 8)), np.empty((3, 8)), np.empty(8)
    for i in range(start, stop):
        _, net, net_flux = _enter(F[i], moments, basis, species)
        sign = 1.0 if net >= 0.0 else -1.0
        b = theta[i, 3]
        for k in range(3):
            on_sphere[k] = 0.0
            on_axis[k] = 0.0
        scales[i, 0] = scales[i, 1] = np.nan
        if b != 0.0 or with_derivatives:
            large, small = _on_axis(species, axial, sign, terms_a, G[:M], L[:M], even)
            trust = _trust(net_flux, large + small)
            scales[i, 1] = _component(
                terms_a, G[:M], L[:M], large, small, np.exp(theta[i, 4]), np.exp(theta[i, 5]), tolerance,
                with_derivatives, where, work, on_axis,
            )  # fmt: skip
            for k in range(3):
                _turn_odd(species, on_axis[k])
        else:
            trust = 1.0
        b *= trust
        if b != 1.0 or with_derivatives:
            large, small = _on_sphere(species, sphere, sign, terms_s, G[:K], L[:K])
            scales[i, 0] = _component(
                terms_s, G[:K], L[:K], large, small, np.exp(theta[i, 1]), np.exp(theta[i, 2]), tolerance,
                with_derivatives, where, work, on_sphere,
            )  # fmt: skip
        two_thirds = 2.0 / 3.0 * np.exp(theta[i, 0])
        for k in range(8):
            change[k] = two_thirds * ((1.0 - b) * on_sphere[0, k] + b * on_axis[0, k])
        _leave(change, basis, D[i])
        if with_derivatives:
            J[i, 0] = D[i]
            for q, scale, sums in (
                (1, (1.0 - b) * two_thirds, on_sphere[1]), (2, (1.0 - b) * two_thirds, on_sphere[2]),
                (4, b * two_thirds, on_axis[1]), (5, b * two_thirds, on_axis[2]),
            ):  # fmt: skip
                for k in range(8):
                    change[k] = scale * sums[k]
                _leave(change, basis, J[i, q])
            for k in range(8):
                change[k] = trust * two_thirds * (on_axis[0, k] - on_sphere[0, k])
            _leave(change, basis, J[i, 3])


@kernel
def _leave(change, basis, out):
    """Turn a change out of the frame; both densities, equal up to the tolerance of s, become exactly equal."""
    for k in range(3):
        out[k] = change[0] * basis[0, k] + change[1] * basis[1, k] + change[2] * basis[2, k]
        out[4 + k] = change[4] * basis[0, k] + change[5] * basis[1, k] + change[6] * basis[2, k]
    out[3] = out[7] = 0.5 * (change[3] + change[7])


@driver
def power_features(F, sphere, axial, out, start, stop):
    """Five invariants of G of rows ``start:stop`` of ``F (n, 6, 4)`` into ``out (n, 5)``.

    Depth of the crossing on the axis and on the sphere, ``log(I_small/I_large + 1e-3)``; net number and net flux over
    ``A = int |Gbar|``; ``|int G| / A`` times ``int Gbar P2(zeta) / A``, P2 the Legendre polynomial.
    """
    m = max(sphere.shape[1], axial.shape[1])
    K, M = sphere.shape[1], axial.shape[1]
    moments, basis, species = np.empty((4, 4)), np.empty((3, 3)), np.empty((4, 5))
    terms, even, G, L = np.empty((8, m)), np.empty((4, M)), np.empty(m), np.empty(m)
    for i in range(start, stop):
        _, net, net_flux = _enter(F[i], moments, basis, species)
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
