"""Numba kernels of a quadrature that follows the state: nodes, and the distributions on them. No validation here.

Everything is in units of the row's total density. Species are those of a state, neutrinos first: e, mu, tau and their
antineutrinos, or e, x and theirs where mu and tau are alike (`enter` decides), x then counting twice.

The frame
---------
The axes of ``Q = sum_k F_k F_k^T + sum_ab J_ab J_ab^T`` over species k and pairs of flavors a, b, with ``J_ab`` the
difference of their lepton fluxes. Q turns and reflects with the state and does not change when flavors, or neutrinos
and antineutrinos, are exchanged. It fixes its axes up to their signs, which do not matter: the rule is a Lebedev rule
turned by 45 degrees about y, symmetric under reflection in each of the three planes, whose nodes avoid the axes. What
it buys: answers turn with the state to rounding, where a rule at rest leaves up to 1e-3. The frame is singular where
two eigenvalues coincide (two conditions); where all fluxes lie on one line the integrand is symmetric about it, and so
is the rule's answer.

Beams
-----
A species narrower than the rule brings a rule of its own: the same nodes, aberrated towards its flux by

    1 - mu = c (1 - zeta)/(1 + (1 - c) zeta),    c = min(KAPPA/Z, 1),    density  p_k = c (2 - c)/(c + (1 - c)(1 -
    mu))^2

(over 4 pi), with the share ``a_k = smoothstep(f_k in BEAM) N_k/(N_k + VANISHING)``. Each node of rule k has the weight
``w a_k/p``, ``p = 1 + sum_k a_k p_k``: the balance heuristic of multiple importance sampling (Veach and Guibas 1995), a
partition of unity over the rules. Weights are positive and continuous in the state; without a beam the first rule is
left as it is. Distances are ``1 - mu = |n - h|^2/2``, which keeps its digits up to Z = 1e13. What it buys: with all
species along z at f = 0.99 and more a plain rule gives the wrong sign of the change.

Moments
-------
With rules for beams the moments of a distribution are off by up to 1e-2. It is multiplied by ``1 + b.(1, u, v, 1 -
mu)``, u and v across the flux, such that they are (N, F). Where that factor is negative (narrow species of a tiny part
of the total) it is 0, and only theta of the species is represented, the largest theta <= 1 with ``F - theta M``
physical, M what its moments are then; the rest stays as it is. The equations for b are regularised by `RIDGE`, and
refined once, so that nothing jumps where they become singular. So final distributions are convex mixtures of positive
measures on the nodes, plus a physical rest: rows are physical and what is known exactly, int G, is exact, at every flux
factor.
"""

from __future__ import annotations

import numpy as np

from rheidae.mixing._box3d_kernels import FOUR_PI
from rheidae.mixing._closure_kernels import LOG2_E, langevin_ratio, peak, pow2
from rheidae.mixing.quadrature import upper_half
from rheidae.system.numba import exact_kernel, kernel, simd_function

#: Circles of latitude, of four nodes each, of a beam's own rule.
LATITUDES = 128
#: Width of a beam's own rule over that of its distribution.
KAPPA = 1.5
#: Flux factors between which a species comes to have a rule of its own.
BEAM = (0.8, 0.95)
#: Largest flux factor of all: nearer to 1, the widths of beams, by which they mix, would be rounding of the fluxes.
CLOSEST = 1.0 - 1e-13
#: Densities, over the total, below which it does so less and less.
VANISHING = 1e-5
#: Differences of mu and tau, over the total density, that are rounding.
ALIKE = 1e-12
#: Square of the size of a node's cell over its weight, for the doubt.
CELL = 0.5
#: Weight of a node of a sphere's rule times their number, at most.
LARGEST = 5 * np.pi
#: Of the trace, off the diagonal of Q: where Jacobi's rotations end. Of its largest eigenvalue: where the middle one
#: is found again.
TURNED, NARROW = 1e-11, 1e-4
#: Of the trace: what is added to the diagonal of the equations for the moments; moments off by this are right.
RIDGE, RIGHT = 1e-9, 1e-9
#: Columns of `species`: direction (3), Z, density, value at the peak, share of its own rule, c, flux factor.
COLUMNS = 9
#: Rows of `work` that `fill_nodes` fills: nodes, distances of six species (scratch), distributions of six species.
X, Y, Z, WEIGHT, DENSITY, DISTANCE, VALUES, NODE_ROWS = 0, 1, 2, 3, 4, 5, 11, 17


def sphere_rule(nodes, weights):
    """Return the ``(4, m)`` table ``x, y, z, w`` of a rule with antipodes, which are its second half.

    Padded with empty nodes, so that a half is a multiple of 8.
    """
    half = upper_half(nodes, weights)
    table = np.pad(np.vstack([nodes, weights])[:, half], ((0, 0), (0, -int(half.sum()) % 8)))
    return np.ascontiguousarray(np.hstack([table, [[-1.0], [-1.0], [-1.0], [1.0]] * table]))


def symmetric_rule(nodes, weights):
    """Return the ``(4, m)`` table ``x, y, z, w`` of a Lebedev rule turned by 45 degrees about y.

    As of `sphere_rule`.
    """
    x, y, z = nodes
    turned = np.array([(x - z) * np.sqrt(0.5), y, (x + z) * np.sqrt(0.5)])
    turned[np.abs(turned) < 1e-12] = 0.0
    return sphere_rule(turned / np.linalg.norm(turned, axis=0), weights)


def spiral_rule(latitudes):
    """Return the ``(4, 4 latitudes)`` table ``x, y, z, w`` of a beam's rule, symmetric under reflection of x and of y.

    Gauss nodes in z, four at each, turned from one to the next by the golden ratio of a right angle.
    """
    z, w = np.polynomial.legendre.leggauss(latitudes)
    angle = 0.5 * np.pi * (np.arange(latitudes) * (np.sqrt(1.25) - 0.5) % 1.0)
    x, y = np.sqrt(1.0 - z * z) * [np.cos(angle), np.sin(angle)]
    quarters = [[a * x, b * y, z, 0.5 * np.pi * w] for a in (1.0, -1.0) for b in (1.0, -1.0)]
    return np.ascontiguousarray(np.hstack(quarters))


# The frame
# ---------
@kernel
def principal_axes(Q, axes):
    """Turn Q to diagonal form in place; rows of `axes` are the axes, by growing eigenvalue. Jacobi's rotations.

    They converge quadratically; what the last leaves turns the rule by 1e-9, and its error of 1e-4 with it. Eigenvalues
    below `NARROW` of the trace have to be found again, by `turn_plane`.
    """
    for i in range(3):
        for j in range(3):
            axes[i, j] = 1.0 if i == j else 0.0
    for _ in range(8):
        trace = Q[0, 0] + Q[1, 1] + Q[2, 2]
        if not abs(Q[0, 1]) + abs(Q[0, 2]) + abs(Q[1, 2]) > TURNED * trace:
            break
        for p, q in ((0, 1), (0, 2), (1, 2)):
            b = Q[p, q]
            if not abs(b) > 1e-15 * trace:
                continue
            half = 0.5 * (Q[q, q] - Q[p, p])
            t = b / (half + np.copysign(np.sqrt(half * half + b * b), half))
            c = 1.0 / np.sqrt(1.0 + t * t)
            s = t * c
            r = 3 - p - q
            Q[p, p] -= t * b
            Q[q, q] += t * b
            Q[p, q] = Q[q, p] = 0.0
            x, y = Q[r, p], Q[r, q]
            Q[r, p] = Q[p, r] = c * x - s * y
            Q[r, q] = Q[q, r] = s * x + c * y
            for k in range(3):
                x, y = axes[p, k], axes[q, k]
                axes[p, k], axes[q, k] = c * x - s * y, s * x + c * y
    for i, j in ((0, 1), (1, 2), (0, 1)):
        if Q[i, i] > Q[j, j]:
            Q[i, i], Q[j, j] = Q[j, j], Q[i, i]
            for k in range(3):
                axes[i, k], axes[j, k] = axes[j, k], axes[i, k]


@kernel
def turn_plane(flavors, moments, Q, axes):
    """Turn the two lesser axes, and ``moments`` that are in the frame already, by the moments across the third.

    With all fluxes nearly on one line, Q of any other frame has lost what is across it to what is along it.
    """
    fill_tensor(flavors, moments, Q)
    half, b = 0.5 * (Q[1, 1] - Q[0, 0]), Q[0, 1]
    c, s = 1.0, 0.0
    if b != 0.0:
        t = b / (half + np.copysign(np.sqrt(half * half + b * b), half))
        c = 1.0 / np.sqrt(1.0 + t * t)
        s = t * c
        Q[0, 0] -= t * b
        Q[1, 1] += t * b
    for i in range(2 * flavors):
        x, y = moments[i, 0], moments[i, 1]
        moments[i, 0], moments[i, 1] = c * x - s * y, s * x + c * y
    for k in range(3):
        x, y = axes[0, k], axes[1, k]
        axes[0, k], axes[1, k] = c * x - s * y, s * x + c * y
    if Q[0, 0] > Q[1, 1]:
        Q[0, 0], Q[1, 1] = Q[1, 1], Q[0, 0]
        for i in range(2 * flavors):
            moments[i, 0], moments[i, 1] = moments[i, 1], moments[i, 0]
        for k in range(3):
            axes[0, k], axes[1, k] = axes[1, k], axes[0, k]


@kernel
def alike(F, slack):
    """Whether mu equals tau but for rounding."""
    for s in (1, 4):
        for k in range(4):
            if abs(F[s, k] - F[s + 1, k]) > slack:
                return False
    return True


@kernel
def average_heavy(F, out):
    """A state ``F (6, 4)`` with the mean of mu and tau in the place of both."""
    for s in range(6):
        other = s if s % 3 == 0 else s // 3 * 3 + 3 - s % 3
        for k in range(4):
            out[s, k] = 0.5 * (F[s, k] + F[other, k])


@kernel
def take_moments(F, flavors, total, moments):
    """Four-fluxes over the total of the species of a state ``F (6, 4)`` of 2 or 3 flavors."""
    inverse = 1.0 / total if total > 0.0 else 0.0
    for s in range(2 * flavors):
        first = s + s // flavors if flavors == 2 else s
        second = first + (1 if flavors == 2 and s % 2 == 1 else 0)
        for k in range(4):
            moments[s, k] = 0.5 * inverse * (np.float64(F[first, k]) + np.float64(F[second, k]))


@kernel
def fill_tensor(flavors, moments, Q):
    """Q of a state, x counting twice."""
    for i in range(3):
        for j in range(i, 3):
            own = product = sum_i = sum_j = 0.0
            for s in range(2 * flavors):
                twice = 2.0 if flavors == 2 and s % 2 == 1 else 1.0
                own += twice * moments[s, i] * moments[s, j]
            for s in range(flavors):
                twice = 2.0 if flavors == 2 and s == 1 else 1.0
                x, y = moments[s, i] - moments[s + flavors, i], moments[s, j] - moments[s + flavors, j]
                product += twice * x * y
                sum_i += twice * x
                sum_j += twice * y
            Q[i, j] = Q[j, i] = own + 3.0 * product - sum_i * sum_j


# The width of a beam is what its flux leaves of its density: graphs have to have the same last digits.
@exact_kernel
def _length(x, y, z):
    return np.sqrt(x * x + y * y + z * z)


@exact_kernel
def total_of(F):
    """Total density of a state, in the order of `rheidae.fourflux.total_density`."""
    return (
        np.float64(F[0, 3]) + np.float64(F[1, 3]) + np.float64(F[2, 3]) + np.float64(F[3, 3]) + np.float64(F[4, 3])
        + np.float64(F[5, 3])
    )  # fmt: skip


@kernel
def _fill_species(flavors, moments, Q, axes, species):
    """Turn the moments into the frame and describe the species ``(6, COLUMNS)`` there; returns how many are beams."""
    for s in range(2 * flavors):
        m = moments[s]
        x, y, z = m[0], m[1], m[2]
        species[s, 0] = _length(x, y, z)
        for k in range(3):
            m[k] = axes[k, 0] * x + axes[k, 1] * y + axes[k, 2] * z
    if Q[1, 1] < NARROW * Q[2, 2]:
        turn_plane(flavors, moments, Q, axes)
    Q[0, 1] = Q[1, 0] = Q[0, 2] = Q[2, 0] = Q[1, 2] = Q[2, 1] = 0.0
    for s in range(2 * flavors):
        m, own = moments[s], species[s]
        flux, N = own[0], m[3]
        f = min(flux / N, CLOSEST) if N > 0.0 else 0.0
        inverse = 1.0 / flux if flux > 0.0 else 0.0
        own[0], own[1], own[2] = m[0] * inverse, m[1] * inverse, m[2] * inverse
        if flux == 0.0:
            own[2] = 1.0
        Z = f * langevin_ratio(f)
        own[3], own[4], own[5], own[8] = Z, N, N / FOUR_PI * peak(Z), f
    return give_rules(flavors, species, BEAM[0], BEAM[1])


@kernel
def give_rules(flavors, species, low, high):
    """Share and width of each species' own rule, from the flux factors `low` to `high`; returns how many have one."""
    beams = 0
    for s in range(2 * flavors):
        own = species[s]
        own[6], own[7] = 0.0, 1.0
        if own[8] > low:
            x = min((own[8] - low) / (high - low), 1.0)
            own[6] = x * x * (3.0 - 2.0 * x) * own[4] / (own[4] + VANISHING)
            if flavors == 2 and s % 2 == 1:
                own[6] *= 2.0
            own[7] = min(KAPPA / own[3], 1.0)
            beams += 1
    return beams


@kernel
def enter(F, flavors, moments, Q, axes, species):
    """Frame and species of a state ``F (6, 4)``; returns total density, number of flavors, 2 or 3, and of beams.

    `flavors`: 2 or 3, or 0 to decide by the state. ``moments (6, 4)``: the four-fluxes of the species in the frame,
    over the total.
    """
    total = total_of(F)
    if not total > 0.0:
        return 0.0, 2, 0
    if flavors == 0:
        flavors = 2 if alike(F, ALIKE * total) else 3
    take_moments(F, flavors, total, moments)
    fill_tensor(flavors, moments, Q)
    principal_axes(Q, axes)
    return total, flavors, _fill_species(flavors, moments, Q, axes, species)


# Nodes
# -----
@kernel
def _across(own, Q, out):
    """Two axes across the direction of a species, in which the part of Q across it is diagonal."""
    x, y, z = own[0], own[1], own[2]
    # Any pair of axes (Duff et al. 2017), then a rotation by half an angle.
    sign = 1.0 if z >= 0.0 else -1.0
    a = -1.0 / (sign + z)
    b = x * y * a
    ux, uy, uz = 1.0 + sign * x * x * a, sign * b, -sign * x
    vx, vy, vz = b, sign + y * y * a, -y
    half = uv = 0.0
    for k, u, v in ((0, ux, vx), (1, uy, vy), (2, uz, vz)):
        along = Q[k, 0] * ux + Q[k, 1] * uy + Q[k, 2] * uz
        half += 0.5 * (u * along - v * (Q[k, 0] * vx + Q[k, 1] * vy + Q[k, 2] * vz))
        uv += v * along
    norm = np.sqrt(half * half + uv * uv)
    c = s = np.sqrt(0.5)
    if norm > 0.0:
        if half >= 0.0:
            c = np.sqrt(0.5 * (1.0 + half / norm))
            s = 0.5 * uv / norm / c
        else:
            s = np.copysign(np.sqrt(0.5 * (1.0 - half / norm)), uv)
            c = 0.5 * uv / norm / s
    out[0, 0], out[0, 1], out[0, 2] = c * ux + s * vx, c * uy + s * vy, c * uz + s * vz
    out[1, 0], out[1, 1], out[1, 2] = c * vx - s * ux, c * vy - s * uy, c * vz - s * uz


@kernel
def _aberrate(own, axes, x, y, z, w, nx, ny, nz, weight):
    """The rule of one species: nodes about its direction, before the division by p."""
    simd_function()
    c, share = own[7], own[6]
    ux, uy, uz, vx, vy, vz = axes[0, 0], axes[0, 1], axes[0, 2], axes[1, 0], axes[1, 1], axes[1, 2]
    hx, hy, hz = own[0], own[1], own[2]
    # sin(theta) = across/(1 + (1 - c) zeta) sin(theta')
    b, across = 1.0 - c, np.sqrt(c * (2.0 - c))
    for i in range(np.uint64(x.shape[0])):
        inverse = 1.0 / (1.0 + b * z[i])
        t = c * (1.0 - z[i]) * inverse
        p, q = across * inverse * x[i], across * inverse * y[i]
        nx[i] = p * ux + q * vx - t * hx + hx
        ny[i] = p * uy + q * vy - t * hy + hy
        nz[i] = p * uz + q * vz - t * hz + hz
        weight[i] = w[i] * share


@kernel
def _distance(own, x, y, z, t, density):
    """``t = 1 - mu`` to a species' direction; adds the density of its rule to ``density``."""
    simd_function()
    hx, hy, hz = own[0], own[1], own[2]
    c, b = own[7], 1.0 - own[7]
    share = own[6] * c * (2.0 - c)
    for i in range(np.uint64(x.shape[0])):
        p, q, r = x[i] - hx, y[i] - hy, z[i] - hz
        t[i] = 0.5 * (p * p + q * q + r * r)
        inverse = 1.0 / (c + b * t[i])
        density[i] += share * inverse * inverse


@kernel
def _divide(weight, density):
    simd_function()
    for i in range(np.uint64(weight.shape[0])):
        weight[i] /= density[i]


# Doubt
# -----
@kernel
def fill_slope(species, a, b, c, d, n, work, slope):
    """Squares of what ``g_a - g_b - g_c + g_d`` may change by over the cell of a node, from what `fill_nodes` left."""
    _slope(
        species[a], species[b], species[c], species[d], work[X, :n], work[Y, :n], work[Z, :n], work[WEIGHT, :n],
        work[DISTANCE + a, :n], work[DISTANCE + b, :n], work[DISTANCE + c, :n], work[DISTANCE + d, :n],
        work[VALUES + a, :n], work[VALUES + b, :n], work[VALUES + c, :n], work[VALUES + d, :n], slope[:n],
    )  # fmt: skip


@kernel
def _slope(a, b, c, d, x, y, z, w, ta, tb, tc, td, ga, gb, gc, gd, slope):
    """The gradient by the vectors from a node to the directions of species, which keep their digits near a beam."""
    simd_function()
    ax, ay, az, ak, bx, by, bz, bk = a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]
    cx, cy, cz, ck, dx, dy, dz, dk = c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]
    for i in range(np.uint64(x.shape[0])):
        p, q, r, cell = x[i], y[i], z[i], CELL * w[i]
        ea, eb, ec, ed = ak * ga[i], -bk * gb[i], -ck * gc[i], dk * gd[i]
        u = ea * (ax - p) + eb * (bx - p) + ec * (cx - p) + ed * (dx - p)
        v = ea * (ay - q) + eb * (by - q) + ec * (cy - q) + ed * (dy - q)
        t = ea * (az - r) + eb * (bz - r) + ec * (cz - r) + ed * (dz - r)
        along = ea * ta[i] + eb * tb[i] + ec * tc[i] + ed * td[i]
        all_of_it = ea + eb + ec + ed
        # Across the node's direction; then the whole vector, for extrema.
        u, v, t = u + along * p, v + along * q, t + along * r
        square = u * u + v * v + t * t
        along = all_of_it - along
        slope[i] = cell * (square + cell * (square + along * along))


# Distributions
# -------------
@kernel
def _evaluate(own, t, g):
    simd_function()
    exponent = -LOG2_E * own[3]
    for i in range(np.uint64(t.shape[0])):
        g[i] = own[5] * pow2(max(exponent * t[i], -1000.0))


@kernel
def _gram(own, axes, x, y, z, weight, t, g, sums):
    """Gram matrix (10 numbers) of ``(1, u, v, 1 - mu)`` under the measure ``weight g``, lengths scaled to its width."""
    simd_function()
    scale = 1.0 + own[3]
    root = np.sqrt(scale)
    ux, uy, uz, vx, vy, vz = axes[0, 0], axes[0, 1], axes[0, 2], axes[1, 0], axes[1, 1], axes[1, 2]
    ux, uy, uz, vx, vy, vz = root * ux, root * uy, root * uz, root * vx, root * vy, root * vz
    hx, hy, hz = own[0], own[1], own[2]
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = s8 = s9 = 0.0
    for i in range(np.uint64(x.shape[0])):
        value = weight[i] * g[i]
        a, b, c = x[i] - hx, y[i] - hy, z[i] - hz
        u, v, r = a * ux + b * uy + c * uz, a * vx + b * vy + c * vz, scale * t[i]
        s0 += value
        s1 += value * u
        s2 += value * v
        s3 += value * r
        s4 += value * u * u
        s5 += value * u * v
        s6 += value * u * r
        s7 += value * v * v
        s8 += value * v * r
        s9 += value * r * r
    sums[0], sums[1], sums[2], sums[3], sums[4] = s0, s1, s2, s3, s4
    sums[5], sums[6], sums[7], sums[8], sums[9] = s5, s6, s7, s8, s9


@kernel
def _correct(own, axes, x, y, z, weight, t, b, g, sums):
    """Multiply ``g`` by ``max(1 + b.(1, u, v, 1 - mu), 0)``; its moments, as `_gram` has them, into ``sums[:4]``."""
    simd_function()
    scale = 1.0 + own[3]
    root = np.sqrt(scale)
    ux, uy, uz, vx, vy, vz = axes[0, 0], axes[0, 1], axes[0, 2], axes[1, 0], axes[1, 1], axes[1, 2]
    ux, uy, uz, vx, vy, vz = root * ux, root * uy, root * uz, root * vx, root * vy, root * vz
    hx, hy, hz = own[0], own[1], own[2]
    constant, p, q, m = 1.0 + b[0], b[1], b[2], b[3]
    s0 = s1 = s2 = s3 = 0.0
    for i in range(np.uint64(x.shape[0])):
        a, e, c = x[i] - hx, y[i] - hy, z[i] - hz
        u, v, r = a * ux + e * uy + c * uz, a * vx + e * vy + c * vz, scale * t[i]
        value = max(g[i] * (constant + (p * u + q * v + m * r)), 0.0)
        g[i] = value
        value *= weight[i]
        s0 += value
        s1 += value * u
        s2 += value * v
        s3 += value * r
    sums[0], sums[1], sums[2], sums[3] = s0, s1, s2, s3


@kernel
def _solve_gram(s, goal, b):
    """Solve the 4x4 system of the Gram matrix (10 numbers), regularised, by Cholesky's method, and refine it once."""
    ridge = RIDGE * (s[0] + s[4] + s[7] + s[9])
    l00 = np.sqrt(s[0] + ridge)
    l10, l20, l30 = s[1] / l00, s[2] / l00, s[3] / l00
    l11 = np.sqrt(max(s[4] - l10 * l10, 0.0) + ridge)
    l21, l31 = (s[5] - l20 * l10) / l11, (s[6] - l30 * l10) / l11
    l22 = np.sqrt(max(s[7] - l20 * l20 - l21 * l21, 0.0) + ridge)
    l32 = (s[8] - l30 * l20 - l31 * l21) / l22
    l33 = np.sqrt(max(s[9] - l30 * l30 - l31 * l31 - l32 * l32, 0.0) + ridge)
    r0, r1, r2, r3 = goal[0], goal[1], goal[2], goal[3]
    b0 = b1 = b2 = b3 = 0.0
    for _ in range(2):
        y0 = r0 / l00
        y1 = (r1 - l10 * y0) / l11
        y2 = (r2 - l20 * y0 - l21 * y1) / l22
        y3 = (r3 - l30 * y0 - l31 * y1 - l32 * y2) / l33
        y3 /= l33
        y2 = (y2 - l32 * y3) / l22
        y1 = (y1 - l21 * y2 - l31 * y3) / l11
        y0 = (y0 - l10 * y1 - l20 * y2 - l30 * y3) / l00
        b0, b1, b2, b3 = b0 + y0, b1 + y1, b2 + y2, b3 + y3
        r0 = goal[0] - (s[0] * b0 + s[1] * b1 + s[2] * b2 + s[3] * b3)
        r1 = goal[1] - (s[1] * b0 + s[4] * b1 + s[5] * b2 + s[6] * b3)
        r2 = goal[2] - (s[2] * b0 + s[5] * b1 + s[7] * b2 + s[8] * b3)
        r3 = goal[3] - (s[3] * b0 + s[6] * b1 + s[8] * b2 + s[9] * b3)
    b[0], b[1], b[2], b[3] = b0, b1, b2, b3


@kernel
def _represented(own, sums, deficit):
    """Largest theta <= 1 for which what is left of a species beside theta times its moments is physical.

    ``sums[:4]``: those moments as `_gram` has them. In (N, u, v, t) the flux along the direction is N - t, so
    ``N^2 - F^2 = 2 N t - t^2 - u^2 - v^2``.
    """
    scale = 1.0 + own[3]
    root = np.sqrt(scale)
    density, u, v, t = sums[0], sums[1] / root, sums[2] / root, sums[3] / scale
    inside, across = deficit * (2.0 * own[4] - deficit), u * u + v * v
    half, square = deficit * (density - t) + t * own[4], t * (2.0 * density - t) - across
    # The smaller root of inside - 2 half theta + square theta^2.
    bottom = half + np.sqrt(max(half * half - square * inside, 0.0))
    return min(inside / bottom, 1.0) if bottom > 0.0 else 1.0


@kernel
def _represent(own, m, Q, weight, t, g, scratch, work, n):
    """Give ``g`` of one species its moments."""
    x, y, z = work[X, :n], work[Y, :n], work[Z, :n]
    axes, b, sums, goal = scratch[0:2], scratch[2], scratch[3], scratch[4]
    _across(own, Q, axes)
    _gram(own, axes, x, y, z, weight, t, g, sums)
    deficit = own[4] * (1.0 - own[8])
    goal[0], goal[1], goal[2], goal[3] = own[4] - sums[0], -sums[1], -sums[2], (1.0 + own[3]) * deficit - sums[3]
    if not sums[0] > 1e-30:
        return
    _solve_gram(sums, goal, b)
    _correct(own, axes, x, y, z, weight, t, b, g, sums)
    off = abs(own[4] - sums[0]) + abs(sums[1]) + abs(sums[2]) + abs((1.0 + own[3]) * deficit - sums[3])
    if off > RIGHT * own[4]:
        factor = _represented(own, sums, deficit)
        for i in range(n):
            g[i] *= factor


@kernel
def fill_nodes(count, beams, species, moments, Q, table, narrow, scratch, work):
    """Nodes and distributions of a row into `work`, one rule more for each beam; returns the number of nodes."""
    x, y, z, w = table[0], table[1], table[2], table[3]
    size = x.shape[0]
    n = size
    for k in range(4):
        for i in range(size):
            work[k, i] = table[k, i]
    if beams > 0:
        x, y, z, w = narrow[0], narrow[1], narrow[2], narrow[3]
        size = x.shape[0]
        for s in range(count):
            if species[s, 6] > 0.0:
                _across(species[s], Q, scratch[0:2])
                _aberrate(
                    species[s], scratch[0:2], x, y, z, w, work[X, n : n + size], work[Y, n : n + size],
                    work[Z, n : n + size], work[WEIGHT, n : n + size],
                )  # fmt: skip
                n += size
    weight, density = work[WEIGHT, :n], work[DENSITY, :n]
    for i in range(n):
        density[i] = 1.0
    for s in range(count):
        _distance(species[s], work[X, :n], work[Y, :n], work[Z, :n], work[DISTANCE + s, :n], density)
    if beams > 0:
        _divide(weight, density)
    for s in range(count):
        own, t, g = species[s], work[DISTANCE + s, :n], work[VALUES + s, :n]
        _evaluate(own, t, g)
        if beams > 0 and own[4] > 0.0:
            _represent(own, moments[s], Q, weight, t, g, scratch, work, n)
    return n


@kernel
def sums_on_nodes(x, y, z, nu, nubar, h, out):
    """Moments of ``h nu`` and of ``h nubar`` into ``out (8)``, fluxes before the density."""
    simd_function()
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = 0.0
    for j in range(np.uint64(h.shape[0])):
        d, b = nu[j] * h[j], nubar[j] * h[j]
        a0 += d * x[j]
        a1 += d * y[j]
        a2 += d * z[j]
        a3 += d
        b0 += b * x[j]
        b1 += b * y[j]
        b2 += b * z[j]
        b3 += b
    out[0], out[1], out[2], out[3], out[4], out[5], out[6], out[7] = a0, a1, a2, a3, b0, b1, b2, b3
