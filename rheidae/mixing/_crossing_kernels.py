"""Numba kernels of Box3D with the crossing G = 0 resolved. No validation here; see the public function beside it.

Interface
---------
plan = resolved_plan(max_meridians=16, tolerance=3e-3, order=31)
    constants of the method, made once. `max_meridians` (8, 16, 32, 64, 128) bounds the cost of a star-shaped region, a
    smaller `tolerance` spends more of them; `order` is that of the Lebedev rule for the other regions.
    ``resolved_plan(256, 0.0, None)`` gives a converged answer, in its time.
resolved_rows(F, *plan, out, start, stop)
    rows ``start:stop`` of ``F (n, 6, 4)`` (float64 or float32) -> ``out`` (``out`` may be ``F``). Releases the GIL; a
    sample's result depends on nothing but the sample. Callable from user ``@njit`` code.
resolved_rows_diagnosed(F, *plan, out, crossing, start, stop)
    the same, and ``crossing (n, 4)`` = ``(I_plus, I_minus, P_plus, P_minus)``; P = 1 on both sides without crossing.

Method
------
Every integral over the whole sphere is known exactly from the four-fluxes, and with
    int G = L = (N_e - Nbar_e) - (N_x - Nbar_x),   int (g_e - g_x)(n, 1) = F_e - F_x
so is the side of the crossing that has the smaller integral, and I_large = I_small + abs(L). What remains is eight
moments of the region where G has the sign of its smaller integral. It is integrated along meridians about an axis
inside it: on each meridian a scan brackets the roots of G, Newton steps refine them, and each segment of the region
takes one Gauss-Legendre rule. Where the region is star-shaped about the axis, its boundary is a smooth periodic
function of the azimuth, and equispaced meridians converge exponentially. Otherwise meridians that touch the boundary
leave an error of order M**-1.5: such a region goes to a Lebedev rule whose nodes share their weight between both
sides. The number of meridians doubles until the sums have settled. I and D use the same points, so D_t - Dbar_t = 0
holds to rounding (lepton number per flavor), whatever the quadrature error.

Samples are SIMD lanes, a block of them at a time: the usual sample, with one root on each meridian, takes no branch.
Samples that are not settled are packed into the front lanes for the next round; those with several roots on a meridian
go through a path of their own.
"""

from __future__ import annotations

import numpy as np

from rheidae.mixing._box3d_kernels import (
    BEAM_Z,
    FOUR_PI,
    NOISE,
    _convert,
    _species,
    antipodal_pairs,
    exponent,
)
from rheidae.mixing._closure_kernels import LOG2_E, pow2, pow2_pair, rough_pow2, rough_pow2_pair
from rheidae.mixing.quadrature import lebedev
from rheidae.system.numba import driver, inlined_kernel, kernel, scalar_kernel, simd_function

#: Scan intervals on a meridian, Gauss points on a segment, meridians that are processed together.
SCAN, FIRST = 8, 8
#: Samples in a block, and the rows of its table: see `_frames`.
BLOCK, ROWS = 64, 34
#: Counts of lanes are padded to a multiple of this, so that no scalar remainder runs: it would cost more than the loop.
LANES = 8
BATCH = 16
#: A beam with more than this Z (flux factor 0.9975) is replaced by one of this Z and the same density.
MAX_Z = 400.0
ROOTS = BATCH * SCAN * 8
PIECES = ROOTS + BATCH * 16
#: Samples with a larger Z, and those whose last Newton steps were longer than the root of this, leave the usual path.
USUAL_Z, MOVED = 10.0, 1e-6
#: Solid angle (of the nodes of the coarse rule in it) from which an unusual region goes to the shared rule.
LARGE_REGION = 2.0
#: Size of a node's cell: the square root of its weight over this.
CELL = 1.25
#: Below the square of any slope that matters, in units of the total density.
TINY = 1e-40
_PI = 3.141592653589793


def resolved_plan(max_meridians=16, tolerance=3e-3, order=31):
    """Return the constants that the kernels take after ``F``; ``order=None`` leaves everything to the meridians."""
    first = antipodal_pairs(*lebedev(7), multiple=1)
    # Azimuths in the order of use: 8 equispaced ones, then those that halve the spacing, and so on.
    turns = [np.arange(FIRST) / FIRST]
    while sum(map(len, turns)) < max_meridians:
        n = sum(map(len, turns))
        turns.append((np.arange(n) + 0.5) / n)
    azimuth = 2 * np.pi * np.concatenate(turns)
    theta = np.pi * np.arange(1, 8 * SCAN) / (8 * SCAN)
    return (
        first,
        np.array([np.cos(azimuth), np.sin(azimuth)]),
        np.array([np.cos(theta), np.sin(theta)]),
        float(tolerance),
        np.empty((8, 0)) if order is None else _shared_rule(*lebedev(order)),
    )


def _shared_rule(nodes, weights):
    """Return antipodal pairs as `antipodal_pairs` does, with a row 7: the inverse size of the node's cell."""
    pairs = antipodal_pairs(nodes, weights)
    size = np.sqrt(pairs[3])
    return np.vstack([pairs, np.divide(CELL, size, out=np.zeros_like(size), where=size > 0)])


@driver
def new_work():
    """Return the work of a call: block, coarse region, block sums, roots, segments, scan, sums, crossings."""
    z = np.zeros((18, BLOCK))
    r = np.empty((6, ROOTS))
    p = np.empty((5, PIECES))
    return (
        (np.zeros((7, 4 * BLOCK)), np.zeros(ROWS * BLOCK), np.zeros(28 * BLOCK), z[0], z[1], z[2], z[3], z[4]),
        (z[5], z[6], z[7], z[8]),
        (z[9], z[10], z[11], z[12], z[13], z[14], z[15], z[16], z[17]),
        (r[0], r[1], r[2], r[3], r[4], r[5]),
        (p[0], p[1], p[2], p[3], p[4]),
        np.empty(8 * SCAN * BATCH),
        np.zeros(9),
        np.zeros((BLOCK, 4)),
    )


@scalar_kernel
def cos_sin(theta):
    """Return cosine and sine of ``theta`` in [0, pi]; absolute error 2e-15. Chebyshev interpolation about pi/2."""
    x = theta - 0.5 * _PI
    s = x * x
    sine = 0.9999999999999999 + s * (
        -0.16666666666666072
        + s
        * (
            0.008333333333282726
            + s
            * (
                -0.00019841269824853736
                + s
                * (
                    2.7557316608034622e-06
                    + s * (-2.5051881879351066e-08 + s * (1.6048166167666442e-10 - s * 7.374360691567403e-13))
                )
            )
        )
    )
    cosine = 0.9999999999999981 + s * (
        -0.4999999999998993
        + s
        * (
            0.04166666666580922
            + s
            * (
                -0.0013888888861073366
                + s
                * (
                    2.4801582868613633e-05
                    + s * (-2.7556935317525997e-07 + s * (2.0858314381759396e-09 - s * 1.100791117624281e-11))
                )
            )
        )
    )
    return -x * sine, cosine


# Block
# -----
# Columns ``species * BLOCK + sample`` of `species_table`: exponent (rows 0-2), amplitude, density, Z, and in row 6
# the lepton excess L. If G > 0 is the larger side, e and ebar, x and xbar change places: everything below looks for G
# > 0.
@kernel
def _prepare(F, start, count, species):
    x, y, z, A, N, Z, excess = species[0], species[1], species[2], species[3], species[4], species[5], species[6]
    for i in range(count):
        f = F[start + i]
        ax, ay, az, Ne = _species(f, 0, 0)
        bx, by, bz, Nb = _species(f, 3, 3)
        cx, cy, cz, Nx = _species(f, 1, 2)
        dx, dy, dz, Ny = _species(f, 4, 5)
        L = (Ne - Nx) - (Nb - Ny)
        excess[i] = L
        first, second = (BLOCK, 0) if L > 0.0 else (0, BLOCK)
        x[first + i], y[first + i], z[first + i], N[first + i] = ax, ay, az, Ne
        x[second + i], y[second + i], z[second + i], N[second + i] = bx, by, bz, Nb
        first, second = first + 2 * BLOCK, second + 2 * BLOCK
        x[first + i], y[first + i], z[first + i], N[first + i] = cx, cy, cz, Nx
        x[second + i], y[second + i], z[second + i], N[second + i] = dx, dy, dz, Ny
    for s in range(4):
        k, m = s * BLOCK, s * BLOCK + -(-count // LANES) * LANES
        _exponents(x[k:m], y[k:m], z[k:m], N[k:m], A[k:m], Z[k:m])
        for k in range(s * BLOCK, s * BLOCK + count):
            if Z[k] > BEAM_Z:
                x[k], y[k], z[k], A[k] = _clamp(x[k], y[k], z[k], A[k], N[k], Z[k])


@kernel
def _exponents(x, y, z, N, A, Z):
    simd_function()
    for k in range(x.shape[0]):
        x[k], y[k], z[k], A[k], Z[k] = exponent(x[k], y[k], z[k], N[k])


@inlined_kernel
def _clamp(x, y, z, A, N, Z):
    """Replace a beam beyond `MAX_Z` by one of that Z and the same density."""
    scale = 1.0 if Z <= MAX_Z else MAX_Z / Z
    Z = min(Z, MAX_Z)
    # Beyond BEAM_Z, Z/sinh(Z) = 2 Z exp(-Z) to rounding.
    return x * scale, y * scale, z * scale, N * (2.0 * Z / FOUR_PI) * pow2(-LOG2_E * Z)


# Axis
# ----
# The mean direction of the nodes of a coarse rule with G > 0: of the axes tried (extremum of G, flux of G, moments of
# powers of G) it makes the most regions star-shaped. The converged answer does not depend on it.
@kernel
def _coarse_axes(species, count, nodes, solid, px, py, pz):
    """Solid angle and first moment of ``G > 0`` on the coarse rule."""
    simd_function()
    for i in range(count):
        solid[i] = px[i] = py[i] = pz[i] = 0.0
    ax, bx, cx, dx = species[0, :BLOCK], species[0, BLOCK:], species[0, 2 * BLOCK :], species[0, 3 * BLOCK :]
    ay, by, cy, dy = species[1, :BLOCK], species[1, BLOCK:], species[1, 2 * BLOCK :], species[1, 3 * BLOCK :]
    az, bz, cz, dz = species[2, :BLOCK], species[2, BLOCK:], species[2, 2 * BLOCK :], species[2, 3 * BLOCK :]
    A, B, C, D = species[3, :BLOCK], species[3, BLOCK:], species[3, 2 * BLOCK :], species[3, 3 * BLOCK :]
    for j in range(nodes.shape[1]):
        x, y, z, w = nodes[0, j], nodes[1, j], nodes[2, j], nodes[3, j]
        wx, wy, wz = w * x, w * y, w * z
        for i in range(count):
            e1, e2 = rough_pow2_pair(ax[i] * x + ay[i] * y + az[i] * z)
            f1, f2 = rough_pow2_pair(bx[i] * x + by[i] * y + bz[i] * z)
            g1, g2 = rough_pow2_pair(cx[i] * x + cy[i] * y + cz[i] * z)
            h1, h2 = rough_pow2_pair(dx[i] * x + dy[i] * y + dz[i] * z)
            p1 = 1.0 if A[i] * e1 + D[i] * h1 > B[i] * f1 + C[i] * g1 else 0.0
            p2 = 1.0 if A[i] * e2 + D[i] * h2 > B[i] * f2 + C[i] * g2 else 0.0
            odd = p1 - p2
            solid[i] += w * (p1 + p2)
            px[i] += wx * odd
            py[i] += wy * odd
            pz[i] += wz * odd


@inlined_kernel
def _difference(ax, ay, az, bx, by, bz, cx, cy, cz, dx, dy, dz, A, B, C, D, x, y, z):
    """``G`` at one direction."""
    return (
        A * pow2(ax * x + ay * y + az * z)
        - B * pow2(bx * x + by * y + bz * z)
        - C * pow2(cx * x + cy * y + cz * z)
        + D * pow2(dx * x + dy * y + dz * z)
    )


# A region that the coarse rule sees with a node or two, or not at all, is looked for by climbing G from the best of
# the nodes and the peaks of the two species that count positive (a narrow beam lies between the nodes): Newton steps
# on the sphere where the Hessian in the tangent plane is negative definite, otherwise along the gradient. The Hessian
# of a sum of exponentials on the sphere is  sum A (a.u)(a.v) e^{a.n} - (n.grad) delta_uv.
@kernel
def _climb(ax, ay, az, bx, by, bz, cx, cy, cz, dx, dy, dz, A, B, C, D, nodes):
    """Return the direction of a maximum of ``G`` and ``G`` there."""
    top = -np.inf
    px, py, pz = 0.0, 0.0, 1.0
    for i in range(nodes.shape[1]):
        for sign in (1.0, -1.0):
            x, y, z = sign * nodes[0, i], sign * nodes[1, i], sign * nodes[2, i]
            G = _difference(ax, ay, az, bx, by, bz, cx, cy, cz, dx, dy, dz, A, B, C, D, x, y, z)
            if top < G:
                top, px, py, pz = G, x, y, z
    for qx, qy, qz in ((ax, ay, az), (dx, dy, dz)):
        norm = np.sqrt(qx * qx + qy * qy + qz * qz)
        if norm > 0.0:
            x, y, z = qx / norm, qy / norm, qz / norm
            G = _difference(ax, ay, az, bx, by, bz, cx, cy, cz, dx, dy, dz, A, B, C, D, x, y, z)
            if top < G:
                top, px, py, pz = G, x, y, z
    reach = 0.4
    for _ in range(40):
        # Tangent frame and, per species, the derivatives along it (in units of ln 2 of the exponent).
        ux, uy, uz, vx, vy, vz = _frame(px, py, pz)
        gu = gv = gn = huu = huv = hvv = 0.0
        for qx, qy, qz, Q in ((ax, ay, az, A), (bx, by, bz, -B), (cx, cy, cz, -C), (dx, dy, dz, D)):
            qx, qy, qz = qx / LOG2_E, qy / LOG2_E, qz / LOG2_E
            e = Q * pow2(LOG2_E * (qx * px + qy * py + qz * pz))
            qu, qv = qx * ux + qy * uy + qz * uz, qx * vx + qy * vy + qz * vz
            gu += e * qu
            gv += e * qv
            gn += e * (qx * px + qy * py + qz * pz)
            huu += e * qu * qu
            huv += e * qu * qv
            hvv += e * qv * qv
        huu -= gn
        hvv -= gn
        det = huu * hvv - huv * huv
        if det > 0.0 and huu < 0.0:
            su, sv = (huv * gv - hvv * gu) / det, (huv * gu - huu * gv) / det
        else:
            su, sv = gu, gv
            norm = np.sqrt(su * su + sv * sv)
            if not norm > 0.0:
                break
            su, sv = su * (reach / norm), sv * (reach / norm)
        size = np.sqrt(su * su + sv * sv)
        if size > reach:
            su, sv = su * (reach / size), sv * (reach / size)
            size = reach
        x, y, z = px + su * ux + sv * vx, py + su * uy + sv * vy, pz + su * uz + sv * vz
        norm = 1.0 / np.sqrt(x * x + y * y + z * z)
        x, y, z = x * norm, y * norm, z * norm
        G = _difference(ax, ay, az, bx, by, bz, cx, cy, cz, dx, dy, dz, A, B, C, D, x, y, z)
        if top <= G:
            top, px, py, pz = G, x, y, z
            if size < 1e-7:
                break
        else:
            reach = 0.25 * size
            if reach < 1e-8:
                break
    return px, py, pz, top


@inlined_kernel
def _frame(px, py, pz):
    """Two unit vectors that complete ``p`` to an orthonormal frame."""
    # u is p x e with e the coordinate axis farthest from p; selected without branches.
    qx, qy, qz = abs(px), abs(py), abs(pz)
    first = qx <= qy and qx <= qz
    second = qy <= qz
    ux, uy, uz = (0.0 if second else py), (0.0 if second else -px), (px if second else 0.0)
    ux = -pz if second else ux
    ux, uy, uz = (0.0 if first else ux), (pz if first else uy), (-py if first else uz)
    norm = 1.0 / np.sqrt(ux * ux + uy * uy + uz * uz)
    ux, uy, uz = ux * norm, uy * norm, uz * norm
    return ux, uy, uz, py * uz - pz * uy, pz * ux - px * uz, px * uy - py * ux


# Meridians
# ---------
# On the meridian of azimuth phi the exponent of species k is  t_k = p_k cos(theta) + (u_k cos(phi) + v_k sin(phi))
# sin(theta) with p_k, u_k, v_k the components of its exponent vector along the axis and the two vectors of the frame.
_C1, _C2, _C3 = 0.9238795325112867, 0.7071067811865476, 0.38268343236508984
_S1, _S2, _S3 = 0.3826834323650898, 0.7071067811865475, 0.9238795325112867
_STEP = _PI / SCAN


_GAUSS = (0.04691007703066802, 0.23076534494715845, 0.5, 0.7692346550528415, 0.9530899229693319)
_WEIGHT = (0.11846344252809464, 0.23931433524968315, 0.28444444444444433, 0.23931433524968315, 0.11846344252809464)


# The usual sample
# ----------------
# One pass without a branch: the scan, the bracket of a single sign change, its start value and two Newton steps.
# Start value: the parabola of h (see below) in theta through three points, or the chord in theta**2 next to the axis.
@inlined_kernel
def _down(k, G, S, G1, S1, G2, S2, low, Gl, Sl, Gh, Sh, Gn, Sn, changes):
    """Keep interval ``k`` with the values at its ends and at one neighbor if ``G`` turns negative there.

    Count sign changes.
    """
    down = G > 0.0 and G1 <= 0.0
    up = G <= 0.0 and G1 > 0.0
    return (
        k * _STEP if down else low,
        G if down else Gl,
        S if down else Sl,
        G1 if down else Gh,
        S1 if down else Sh,
        G2 if down else Gn,
        S2 if down else Sn,
        changes + (1.0 if down else 0.0) + (2.0 if up else 0.0),
    )


# Newton steps on h = (p - q)/(p + q), p and q the positive and negative parts of G = p - q: h is close to tanh of
# half the log of p/q, nearly linear in theta where G itself grows exponentially. h/h' = (p - q)(p + q) / (2 (p' q -
# q' p)). A step out of the bracket is replaced by bisection.
@inlined_kernel
def _newton_step(x, low, high, pa, pb, pc, pd, ra, rb, rc, rd, A, B, C, D):
    """New theta and bracket; ``low`` and ``high`` are the ends where ``G > 0`` and ``G <= 0``, in either order."""
    c, s = cos_sin(x)
    ea, ed = A * pow2(pa * c + ra * s), D * pow2(pd * c + rd * s)
    eb, ec = B * pow2(pb * c + rb * s), C * pow2(pc * c + rc * s)
    p, q = ea + ed, eb + ec
    dp = ea * (ra * c - pa * s) + ed * (rd * c - pd * s)
    dq = eb * (rb * c - pb * s) + ec * (rc * c - pc * s)
    G = p - q
    low = x if G > 0.0 else low
    high = high if G > 0.0 else x
    new = x - G * (p + q) * (0.5 * LOG2_E) / (dp * q - dq * p)
    # A converged root sits on an end of its own bracket: a step of rounding size must not count as leaving it.
    inside = (new - low) * (new - high) <= 0.0 or abs(new - x) < 1e-9
    new = new if inside else 0.5 * (low + high)
    return x if G == 0.0 else new, low, high


@kernel
def _frames(species, solid, px, py, pz, count, table, usual):
    """Fill the table of a block, one column a sample; ``usual`` is 1 where G > 0 at the axis only, otherwise 0.

    Rows: exponents along axis (4), u (4) and v (4); amplitudes (4); difference and sum of the positive and the negative
    part of G at both ends of the axis (4); axis, u and v (9); total density; sample; the last round's sums (2).
    """
    simd_function()
    ax, bx, cx, dx = species[0, :BLOCK], species[0, BLOCK:], species[0, 2 * BLOCK :], species[0, 3 * BLOCK :]
    ay, by, cy, dy = species[1, :BLOCK], species[1, BLOCK:], species[1, 2 * BLOCK :], species[1, 3 * BLOCK :]
    az, bz, cz, dz = species[2, :BLOCK], species[2, BLOCK:], species[2, 2 * BLOCK :], species[2, 3 * BLOCK :]
    A, B, C, D = species[3, :BLOCK], species[3, BLOCK:], species[3, 2 * BLOCK :], species[3, 3 * BLOCK :]
    N1, N2, N3, N4 = species[4, :BLOCK], species[4, BLOCK:], species[4, 2 * BLOCK :], species[4, 3 * BLOCK :]
    Z1, Z2, Z3, Z4 = species[5, :BLOCK], species[5, BLOCK:], species[5, 2 * BLOCK :], species[5, 3 * BLOCK :]
    for i in range(count):
        norm = np.sqrt(px[i] * px[i] + py[i] * py[i] + pz[i] * pz[i])
        inverse = 1.0 / norm
        x, y, z = px[i] * inverse, py[i] * inverse, pz[i] * inverse
        ux, uy, uz, vx, vy, vz = _frame(x, y, z)
        pa, pb = ax[i] * x + ay[i] * y + az[i] * z, bx[i] * x + by[i] * y + bz[i] * z
        pc, pd = cx[i] * x + cy[i] * y + cz[i] * z, dx[i] * x + dy[i] * y + dz[i] * z
        ea, fa = pow2_pair(pa)
        eb, fb = pow2_pair(pb)
        ec, fc = pow2_pair(pc)
        ed, fd = pow2_pair(pd)
        p, q = A[i] * ea + D[i] * ed, B[i] * eb + C[i] * ec
        near, near_sum = p - q, p + q
        p, q = A[i] * fa + D[i] * fd, B[i] * fb + C[i] * fc
        far, far_sum = p - q, p + q
        Z = max(max(Z1[i], Z2[i]), max(Z3[i], Z4[i]))
        within = 1.0 if solid[i] > 1.0 else 0.0
        within = within if norm >= 0.1 else 0.0
        within = within if near > 0.0 else 0.0
        within = within if far <= 0.0 else 0.0
        usual[i] = within if Z < USUAL_Z else 0.0
        table[i] = pa
        table[BLOCK + i] = pb
        table[2 * BLOCK + i] = pc
        table[3 * BLOCK + i] = pd
        table[4 * BLOCK + i] = ax[i] * ux + ay[i] * uy + az[i] * uz
        table[5 * BLOCK + i] = bx[i] * ux + by[i] * uy + bz[i] * uz
        table[6 * BLOCK + i] = cx[i] * ux + cy[i] * uy + cz[i] * uz
        table[7 * BLOCK + i] = dx[i] * ux + dy[i] * uy + dz[i] * uz
        table[8 * BLOCK + i] = ax[i] * vx + ay[i] * vy + az[i] * vz
        table[9 * BLOCK + i] = bx[i] * vx + by[i] * vy + bz[i] * vz
        table[10 * BLOCK + i] = cx[i] * vx + cy[i] * vy + cz[i] * vz
        table[11 * BLOCK + i] = dx[i] * vx + dy[i] * vy + dz[i] * vz
        table[12 * BLOCK + i] = A[i]
        table[13 * BLOCK + i] = B[i]
        table[14 * BLOCK + i] = C[i]
        table[15 * BLOCK + i] = D[i]
        table[16 * BLOCK + i] = near
        table[17 * BLOCK + i] = near_sum
        table[18 * BLOCK + i] = far
        table[19 * BLOCK + i] = far_sum
        table[20 * BLOCK + i] = x
        table[21 * BLOCK + i] = y
        table[22 * BLOCK + i] = z
        table[23 * BLOCK + i] = ux
        table[24 * BLOCK + i] = uy
        table[25 * BLOCK + i] = uz
        table[26 * BLOCK + i] = vx
        table[27 * BLOCK + i] = vy
        table[28 * BLOCK + i] = vz
        table[29 * BLOCK + i] = N1[i] + N2[i] + N3[i] + N4[i]
        table[30 * BLOCK + i] = i


# In the scan, exp(p cos + r sin) is a product: the first factor is the same on all meridians, the second at theta and
# pi - theta, and its inverse belongs to the opposite meridian. Sixteen pairs of exponentials serve fourteen values of
# G.
@kernel
def _along_axis(table, count, along):
    """Row ``4 * (j - 1) + species`` of ``along``: amplitude times the exponential along the axis at angle ``j``."""
    simd_function()
    for s in range(4):
        for i in range(count):
            p, A = table[s * BLOCK + i], table[(12 + s) * BLOCK + i]
            e, f = rough_pow2_pair(p * _C1)
            along[s * BLOCK + i], along[(24 + s) * BLOCK + i] = A * e, A * f
            e, f = rough_pow2_pair(p * _C2)
            along[(4 + s) * BLOCK + i], along[(20 + s) * BLOCK + i] = A * e, A * f
            e, f = rough_pow2_pair(p * _C3)
            along[(8 + s) * BLOCK + i], along[(16 + s) * BLOCK + i] = A * e, A * f
            along[(12 + s) * BLOCK + i] = A


@inlined_kernel
def _parts(along, j, i, a, b, c, d):
    """Difference and sum of the positive and the negative part of ``G`` at scan angle ``j``."""
    p = along[(4 * j - 4) * BLOCK + i] * a + along[(4 * j - 1) * BLOCK + i] * d
    q = along[(4 * j - 3) * BLOCK + i] * b + along[(4 * j - 2) * BLOCK + i] * c
    return p - q, p + q


@inlined_kernel
def _single_root(
    G0, S0, G1, S1, G2, S2, G3, S3, G4, S4, G5, S5, G6, S6, G7, S7, G8, S8, pa, pb, pc, pd, ra, rb, rc, rd, A, B, C, D
):
    """Root on one meridian from its scan, the size of the last step, and 1 if there is not exactly one root."""
    lo, Gl, Sl, Gh, Sh, Gn, Sn, changes = 0.0, 1.0, 1.0, -1.0, 1.0, -1.0, 1.0, 0.0
    lo, Gl, Sl, Gh, Sh, Gn, Sn, changes = _down(0, G0, S0, G1, S1, G2, S2, lo, Gl, Sl, Gh, Sh, Gn, Sn, changes)
    lo, Gl, Sl, Gh, Sh, Gn, Sn, changes = _down(1, G1, S1, G2, S2, G3, S3, lo, Gl, Sl, Gh, Sh, Gn, Sn, changes)
    lo, Gl, Sl, Gh, Sh, Gn, Sn, changes = _down(2, G2, S2, G3, S3, G4, S4, lo, Gl, Sl, Gh, Sh, Gn, Sn, changes)
    lo, Gl, Sl, Gh, Sh, Gn, Sn, changes = _down(3, G3, S3, G4, S4, G5, S5, lo, Gl, Sl, Gh, Sh, Gn, Sn, changes)
    lo, Gl, Sl, Gh, Sh, Gn, Sn, changes = _down(4, G4, S4, G5, S5, G6, S6, lo, Gl, Sl, Gh, Sh, Gn, Sn, changes)
    lo, Gl, Sl, Gh, Sh, Gn, Sn, changes = _down(5, G5, S5, G6, S6, G7, S7, lo, Gl, Sl, Gh, Sh, Gn, Sn, changes)
    lo, Gl, Sl, Gh, Sh, Gn, Sn, changes = _down(6, G6, S6, G7, S7, G8, S8, lo, Gl, Sl, Gh, Sh, Gn, Sn, changes)
    lo, Gl, Sl, Gh, Sh, Gn, Sn, changes = _down(7, G7, S7, G8, S8, G6, S6, lo, Gl, Sl, Gh, Sh, Gn, Sn, changes)
    # h in units of the step, over a common denominator; `bend` is half its second difference.
    h0, h1, h2 = Gl * Sh * Sn, Gh * Sl * Sn, Gn * Sl * Sh
    bend = 0.5 * (h0 - 2.0 * h1 + h2)
    bend = 0.5 * (h1 - 2.0 * h0 + h2) if lo > 6.5 * _STEP else bend
    x = h0 / (h0 - h1)
    root = np.sqrt(x)
    better = x - bend * x * (x - 1.0) / (h1 - h0 + bend * (2.0 * x - 1.0))
    better = better if better * (better - 1.0) < 0.0 else x
    better = root if (lo == 0.0 and x < 0.2) else better
    x = lo + _STEP * better
    x, lo, hi = _newton_step(x, lo, lo + _STEP, pa, pb, pc, pd, ra, rb, rc, rd, A, B, C, D)
    new, _, _ = _newton_step(x, lo, hi, pa, pb, pc, pd, ra, rb, rc, rd, A, B, C, D)
    return new, (new - x) * (new - x), 0.0 if changes == 1.0 else 1.0


@kernel
def _single_roots(table, along, cp, sp, count, theta, opposite, several, moved):
    """Roots on the meridian of azimuth ``(cp, sp)`` and the opposite one, one lane a sample.

    ``several`` counts meridians without exactly one root, ``moved`` adds up the squares of the last steps.
    """
    simd_function()
    for i in range(count):
        pa, pb, pc, pd, A, B, C, D = (
            table[i],
            table[1 * BLOCK + i],
            table[2 * BLOCK + i],
            table[3 * BLOCK + i],
            table[12 * BLOCK + i],
            table[13 * BLOCK + i],
            table[14 * BLOCK + i],
            table[15 * BLOCK + i],
        )
        ra, rb = (
            table[4 * BLOCK + i] * cp + table[8 * BLOCK + i] * sp,
            table[5 * BLOCK + i] * cp + table[9 * BLOCK + i] * sp,
        )
        rc, rd = (
            table[6 * BLOCK + i] * cp + table[10 * BLOCK + i] * sp,
            table[7 * BLOCK + i] * cp + table[11 * BLOCK + i] * sp,
        )
        a, oa = rough_pow2_pair(ra * _S1)
        b, ob = rough_pow2_pair(rb * _S1)
        c, oc = rough_pow2_pair(rc * _S1)
        d, od = rough_pow2_pair(rd * _S1)
        G1, S1 = _parts(along, 1, i, a, b, c, d)
        H1, T1 = _parts(along, 1, i, oa, ob, oc, od)
        G7, S7 = _parts(along, 7, i, a, b, c, d)
        H7, T7 = _parts(along, 7, i, oa, ob, oc, od)
        a, oa = rough_pow2_pair(ra * _S2)
        b, ob = rough_pow2_pair(rb * _S2)
        c, oc = rough_pow2_pair(rc * _S2)
        d, od = rough_pow2_pair(rd * _S2)
        G2, S2 = _parts(along, 2, i, a, b, c, d)
        H2, T2 = _parts(along, 2, i, oa, ob, oc, od)
        G6, S6 = _parts(along, 6, i, a, b, c, d)
        H6, T6 = _parts(along, 6, i, oa, ob, oc, od)
        a, oa = rough_pow2_pair(ra * _S3)
        b, ob = rough_pow2_pair(rb * _S3)
        c, oc = rough_pow2_pair(rc * _S3)
        d, od = rough_pow2_pair(rd * _S3)
        G3, S3 = _parts(along, 3, i, a, b, c, d)
        H3, T3 = _parts(along, 3, i, oa, ob, oc, od)
        G5, S5 = _parts(along, 5, i, a, b, c, d)
        H5, T5 = _parts(along, 5, i, oa, ob, oc, od)
        a, oa = rough_pow2_pair(ra)
        b, ob = rough_pow2_pair(rb)
        c, oc = rough_pow2_pair(rc)
        d, od = rough_pow2_pair(rd)
        G4, S4 = _parts(along, 4, i, a, b, c, d)
        H4, T4 = _parts(along, 4, i, oa, ob, oc, od)
        n, ns = table[16 * BLOCK + i], table[17 * BLOCK + i]
        f, fs = table[18 * BLOCK + i], table[19 * BLOCK + i]
        x, step, failed = _single_root(
            n,
            ns,
            G1,
            S1,
            G2,
            S2,
            G3,
            S3,
            G4,
            S4,
            G5,
            S5,
            G6,
            S6,
            G7,
            S7,
            f,
            fs,
            pa,
            pb,
            pc,
            pd,
            ra,
            rb,
            rc,
            rd,
            A,
            B,
            C,
            D,
        )
        y, also_step, also_failed = _single_root(
            n,
            ns,
            H1,
            T1,
            H2,
            T2,
            H3,
            T3,
            H4,
            T4,
            H5,
            T5,
            H6,
            T6,
            H7,
            T7,
            f,
            fs,
            pa,
            pb,
            pc,
            pd,
            -ra,
            -rb,
            -rc,
            -rd,
            A,
            B,
            C,
            D,
        )
        theta[i] = x
        opposite[i] = y
        several[i] += failed + also_failed
        moved[i] += step + also_step


@inlined_kernel
def _point(theta, weight, cp, sp, pa, pb, pc, pd, ra, rb, rc, rd, A, B, C, D):
    """Contributions of one point: moments of ``d`` and ``b`` along axis, meridian and 1."""
    c, s = cos_sin(theta)
    w = weight * s
    d = w * (A * pow2(pa * c + ra * s) - C * pow2(pc * c + rc * s))
    b = w * (B * pow2(pb * c + rb * s) - D * pow2(pd * c + rd * s))
    return c * d, s * d, d, c * b, s * b, b


@kernel
def _add_single(table, cp, sp, sign, count, theta, dp, du, dv, dt, bp, bu, bv, bt, alternating):
    """Add the segments from the axis to ``theta`` on the meridian of azimuth ``(cp, sp)``, one lane a sample."""
    simd_function()
    for i in range(count):
        pa, pb, pc, pd, A, B, C, D = (
            table[i],
            table[1 * BLOCK + i],
            table[2 * BLOCK + i],
            table[3 * BLOCK + i],
            table[12 * BLOCK + i],
            table[13 * BLOCK + i],
            table[14 * BLOCK + i],
            table[15 * BLOCK + i],
        )
        length = theta[i]
        ra, rb = (
            table[4 * BLOCK + i] * cp + table[8 * BLOCK + i] * sp,
            table[5 * BLOCK + i] * cp + table[9 * BLOCK + i] * sp,
        )
        rc, rd = (
            table[6 * BLOCK + i] * cp + table[10 * BLOCK + i] * sp,
            table[7 * BLOCK + i] * cp + table[11 * BLOCK + i] * sp,
        )
        d0p, d0s, d0t, b0p, b0s, b0t = _point(
            _GAUSS[0] * length, _WEIGHT[0] * length, cp, sp, pa, pb, pc, pd, ra, rb, rc, rd, A, B, C, D
        )
        d1p, d1s, d1t, b1p, b1s, b1t = _point(
            _GAUSS[1] * length, _WEIGHT[1] * length, cp, sp, pa, pb, pc, pd, ra, rb, rc, rd, A, B, C, D
        )
        d2p, d2s, d2t, b2p, b2s, b2t = _point(
            _GAUSS[2] * length, _WEIGHT[2] * length, cp, sp, pa, pb, pc, pd, ra, rb, rc, rd, A, B, C, D
        )
        d3p, d3s, d3t, b3p, b3s, b3t = _point(
            _GAUSS[3] * length, _WEIGHT[3] * length, cp, sp, pa, pb, pc, pd, ra, rb, rc, rd, A, B, C, D
        )
        d4p, d4s, d4t, b4p, b4s, b4t = _point(
            _GAUSS[4] * length, _WEIGHT[4] * length, cp, sp, pa, pb, pc, pd, ra, rb, rc, rd, A, B, C, D
        )
        d = d0t + d1t + d2t + d3t + d4t
        b = b0t + b1t + b2t + b3t + b4t
        across_d = d0s + d1s + d2s + d3s + d4s
        across_b = b0s + b1s + b2s + b3s + b4s
        dp[i] += d0p + d1p + d2p + d3p + d4p
        bp[i] += b0p + b1p + b2p + b3p + b4p
        du[i] += cp * across_d
        dv[i] += sp * across_d
        dt[i] += d
        bu[i] += cp * across_b
        bv[i] += sp * across_b
        bt[i] += b
        alternating[i] += sign * d


# Any other sample
# ----------------
# Sixteen meridians at a time, one lane a root and then one lane a segment. The first round takes sixteen; the
# alternating sum compares their two halves.
@kernel
def _scan(pa, pb, pc, pd, ua, ub, uc, ud, va, vb, vc, vd, A, B, C, D, azimuth, begin, end, angles, stride, grid):
    """``work[16][j * BATCH + m] = G`` at scan angle ``j`` of meridian ``begin + m``."""
    simd_function()
    cosine, sine = azimuth[0], azimuth[1]
    for j in range(angles.shape[1] // stride):
        c, s = angles[0, stride * (j + 1) - 1], angles[1, stride * (j + 1) - 1]
        ta, tb, tc, td = pa * c, pb * c, pc * c, pd * c
        row = grid[j * BATCH : (j + 1) * BATCH]
        for m in range(end - begin):
            cp, sp = s * cosine[begin + m], s * sine[begin + m]
            row[m] = (
                A * rough_pow2(ta + ua * cp + va * sp)
                - B * rough_pow2(tb + ub * cp + vb * sp)
                - C * rough_pow2(tc + uc * cp + vc * sp)
                + D * rough_pow2(td + ud * cp + vd * sp)
            )


@kernel
def _newton(pa, pb, pc, pd, ua, ub, uc, ud, va, vb, vc, vd, A, B, C, D, cosine, sine, low, high, theta, count):
    """One step for ``count`` roots in place; returns the sum of squared steps."""
    simd_function()
    moved = 0.0
    for i in range(count):
        cp, sp, x = cosine[i], sine[i], theta[i]
        ra, rb = ua * cp + va * sp, ub * cp + vb * sp
        rc, rd = uc * cp + vc * sp, ud * cp + vd * sp
        new, lo, hi = _newton_step(x, low[i], high[i], pa, pb, pc, pd, ra, rb, rc, rd, A, B, C, D)
        low[i] = lo
        high[i] = hi
        theta[i] = new
        moved += (new - x) * (new - x)
    return moved


@kernel
def _integrate(pa, pb, pc, pd, ua, ub, uc, ud, va, vb, vc, vd, A, B, C, D, cosine, sine, low, high, sign, count, sums):
    """Add the moments of ``d`` and ``b`` along axis, u, v and 1, and the alternating sum of ``d``, to ``sums (9)``."""
    simd_function()
    dp = du = dv = dt = bp = bu = bv = bt = alternating = 0.0
    for i in range(count):
        cp, sp, start = cosine[i], sine[i], low[i]
        length = high[i] - start
        ra, rb = ua * cp + va * sp, ub * cp + vb * sp
        rc, rd = uc * cp + vc * sp, ud * cp + vd * sp
        d0p, d0s, d0t, b0p, b0s, b0t = _point(
            start + _GAUSS[0] * length, _WEIGHT[0] * length, cp, sp, pa, pb, pc, pd, ra, rb, rc, rd, A, B, C, D
        )
        d1p, d1s, d1t, b1p, b1s, b1t = _point(
            start + _GAUSS[1] * length, _WEIGHT[1] * length, cp, sp, pa, pb, pc, pd, ra, rb, rc, rd, A, B, C, D
        )
        d2p, d2s, d2t, b2p, b2s, b2t = _point(
            start + _GAUSS[2] * length, _WEIGHT[2] * length, cp, sp, pa, pb, pc, pd, ra, rb, rc, rd, A, B, C, D
        )
        d3p, d3s, d3t, b3p, b3s, b3t = _point(
            start + _GAUSS[3] * length, _WEIGHT[3] * length, cp, sp, pa, pb, pc, pd, ra, rb, rc, rd, A, B, C, D
        )
        d4p, d4s, d4t, b4p, b4s, b4t = _point(
            start + _GAUSS[4] * length, _WEIGHT[4] * length, cp, sp, pa, pb, pc, pd, ra, rb, rc, rd, A, B, C, D
        )
        d = d0t + d1t + d2t + d3t + d4t
        b = b0t + b1t + b2t + b3t + b4t
        across_d = d0s + d1s + d2s + d3s + d4s
        across_b = b0s + b1s + b2s + b3s + b4s
        dp += d0p + d1p + d2p + d3p + d4p
        bp += b0p + b1p + b2p + b3p + b4p
        du += cp * across_d
        dv += sp * across_d
        dt += d
        bu += cp * across_b
        bv += sp * across_b
        bt += b
        alternating += sign[i] * d
    sums[0] += dp
    sums[1] += du
    sums[2] += dv
    sums[3] += dt
    sums[4] += bp
    sums[5] += bu
    sums[6] += bv
    sums[7] += bt
    sums[8] += alternating


@inlined_kernel
def _bracket(azimuth, begin, end, angles, stride, near, far, grid, root_c, root_s, ends_in, ends_out, theta, owner):
    """Sign changes of the scan into the root lists; returns their number."""
    last = angles.shape[1] // stride
    step = _PI / (last + 1)
    count = 0
    for m in range(end - begin):
        previous = near
        for j in range(last + 1):
            G = grid[j * BATCH + m] if j < last else far
            if (G > 0.0) != (previous > 0.0):
                root_c[count] = azimuth[0, begin + m]
                root_s[count] = azimuth[1, begin + m]
                lower, upper = j * step, (j + 1) * step
                ends_in[count] = lower if previous > 0.0 else upper
                ends_out[count] = upper if previous > 0.0 else lower
                # Start: the chord in theta, except next to the axis, where G is nearly a function of theta**2.
                fraction = previous / (previous - G)
                fraction = np.sqrt(fraction) if j == 0 else fraction
                theta[count] = lower + fraction * step
                owner[count] = m
                count += 1
            previous = G
    for k in range(count, -(-count // LANES) * LANES):
        root_c[k], root_s[k], ends_in[k] = root_c[count - 1], root_s[count - 1], ends_in[count - 1]
        ends_out[k], theta[k] = ends_out[count - 1], theta[count - 1]
    return count


@inlined_kernel
def _cut(azimuth, begin, end, near, found, longest, theta, owner, piece_c, piece_s, starts, stops, signs):
    """Segments with ``G > 0`` between the roots, cut into pieces no longer than ``longest``; returns their number."""
    count = 0
    k = 0
    for m in range(end - begin):
        start = 0.0
        inside = near > 0.0
        while True:
            more = k < found and owner[k] == m
            stop = theta[k] if more else _PI
            if inside:
                pieces = 1 + int((stop - start) / longest)
                for i in range(pieces):
                    piece_c[count] = azimuth[0, begin + m]
                    piece_s[count] = azimuth[1, begin + m]
                    starts[count] = start + (stop - start) * (i / pieces)
                    stops[count] = start + (stop - start) * ((i + 1) / pieces)
                    signs[count] = 1.0 if m < FIRST else -1.0
                    count += 1
            if not more:
                break
            start = stop
            inside = not inside
            k += 1
    while count % LANES:
        piece_c[count] = piece_s[count] = starts[count] = stops[count] = signs[count] = 0.0
        count += 1
    return count


@kernel
def _any_region(species, i, coarse, nodes, azimuth, angles, tolerance, roots, pieces, grid, sums):
    """Moments ``(x, y, z, t)`` of ``d`` and ``b`` over ``G > 0`` of sample ``i`` into ``sums[:8]``."""
    root_c, root_s, ends_in, ends_out, theta, owner = roots
    piece_c, piece_s, starts, stops, signs = pieces
    a, b, c, d = i, BLOCK + i, 2 * BLOCK + i, 3 * BLOCK + i
    ax, ay, az, A = species[0, a], species[1, a], species[2, a], species[3, a]
    bx, by, bz, B = species[0, b], species[1, b], species[2, b], species[3, b]
    cx, cy, cz, C = species[0, c], species[1, c], species[2, c], species[3, c]
    dx, dy, dz, D = species[0, d], species[1, d], species[2, d], species[3, d]
    Z = min(max(max(species[5, a], species[5, b]), max(species[5, c], species[5, d])), MAX_Z)
    total = species[4, a] + species[4, b] + species[4, c] + species[4, d]
    for k in range(9):
        sums[k] = 0.0
    solid, px, py, pz = coarse[0][i], coarse[1][i], coarse[2][i], coarse[3][i]
    norm = np.sqrt(px * px + py * py + pz * pz)
    climb = solid <= 1.0 or norm < 0.1
    if not climb:
        px, py, pz = px / norm, py / norm, pz / norm
        near = _difference(ax, ay, az, bx, by, bz, cx, cy, cz, dx, dy, dz, A, B, C, D, px, py, pz)
        # The mean direction of a small bent or double region may lie outside it.
        climb = near <= 0.0 and solid <= 2.0
    if climb:
        px, py, pz, near = _climb(ax, ay, az, bx, by, bz, cx, cy, cz, dx, dy, dz, A, B, C, D, nodes)
        if near <= 0.0:
            return
    far = _difference(ax, ay, az, bx, by, bz, cx, cy, cz, dx, dy, dz, A, B, C, D, -px, -py, -pz)
    ux, uy, uz, vx, vy, vz = _frame(px, py, pz)
    pa, ua, va = ax * px + ay * py + az * pz, ax * ux + ay * uy + az * uz, ax * vx + ay * vy + az * vz
    pb, ub, vb = bx * px + by * py + bz * pz, bx * ux + by * uy + bz * uz, bx * vx + by * vy + bz * vz
    pc, uc, vc = cx * px + cy * py + cz * pz, cx * ux + cy * uy + cz * uz, cx * vx + cy * vy + cz * vz
    pd, ud, vd = dx * px + dy * py + dz * pz, dx * ux + dy * uy + dz * uz, dx * vx + dy * vy + dz * vz
    # Beams narrow as 1/sqrt(Z), and the scan and the Gauss rule follow.
    stride = 8 if Z < 30.0 else (4 if Z < 120.0 else 2)
    longest = 2.0 * _PI if Z < USUAL_Z else 7.0 / np.sqrt(Z)
    begin, end = 0, min(BATCH, azimuth.shape[1])
    last_d = last_b = 0.0
    while True:
        for batch in range(begin, end, BATCH):
            upto = min(batch + BATCH, end)
            _scan(
                pa, pb, pc, pd, ua, ub, uc, ud, va, vb, vc, vd, A, B, C, D, azimuth, batch, upto, angles, stride, grid
            )
            found = _bracket(
                azimuth, batch, upto, angles, stride, near, far, grid, root_c, root_s, ends_in, ends_out, theta, owner
            )
            padded = -(-found // LANES) * LANES
            for _ in range(5):
                moved = _newton(
                    pa, pb, pc, pd, ua, ub, uc, ud, va, vb, vc, vd, A, B, C, D,
                    root_c, root_s, ends_in, ends_out, theta, padded,
                )  # fmt: skip
                if moved < 3e-5:
                    break
            count = _cut(
                azimuth, batch, upto, near, found, longest, theta, owner, piece_c, piece_s, starts, stops, signs
            )
            _integrate(
                pa, pb, pc, pd, ua, ub, uc, ud, va, vb, vc, vd, A, B, C, D,
                piece_c, piece_s, starts, stops, signs, count, sums,
            )  # fmt: skip
        weight = 2.0 * _PI / end
        if begin == 0:
            change = abs(sums[8]) * weight
        else:
            change = abs(sums[3] * weight - last_d) + abs(sums[7] * weight - last_b)
        last_d, last_b = sums[3] * weight, sums[7] * weight
        if change < tolerance * total or 2 * end > azimuth.shape[1]:
            break
        begin, end = end, 2 * end
    dp, du, dv = weight * sums[0], weight * sums[1], weight * sums[2]
    bp, bu, bv = weight * sums[4], weight * sums[5], weight * sums[6]
    sums[0], sums[1], sums[2] = dp * px + du * ux + dv * vx, dp * py + du * uy + dv * vy, dp * pz + du * uz + dv * vz
    sums[4], sums[5], sums[6] = bp * px + bu * ux + bv * vx, bp * py + bu * uy + bv * vy, bp * pz + bu * uz + bv * vz
    sums[3] *= weight
    sums[7] *= weight


# The unusual sample
# ------------------
# Where the region is not star-shaped, or its boundary too bent for the meridians at hand, a Lebedev rule that shares
# the weight of a node between the two sides is as good and quicker. A node at the signed distance G/|grad G| from the
# crossing has the part s = 1/2 + (distance / size of its cell) of its weight on the side G > 0, within [0, 1].
# The gradient is the tangential one: grad exp(a.n) = ln 2 (a - (a.n) n) 2**(a.n).
@kernel
def _sum_shared(ax, ay, az, bx, by, bz, cx, cy, cz, dx, dy, dz, A, B, C, D, rule):
    """Moments ``(x, y, z, t)`` of ``d`` and ``b`` over ``G > 0``, weights shared; a, b, c, d = e, ebar, x, xbar."""
    simd_function()
    x, y, z, w, wx, wy, wz, inverse = rule[0], rule[1], rule[2], rule[3], rule[4], rule[5], rule[6], rule[7]
    dt = bt = Dx = Dy = Dz = Bx = By = Bz = 0.0
    for i in range(x.shape[0]):
        X, Y, Z = x[i], y[i], z[i]
        per_cell = inverse[i]
        ta, tb = ax * X + ay * Y + az * Z, bx * X + by * Y + bz * Z
        tc, td = cx * X + cy * Y + cz * Z, dx * X + dy * Y + dz * Z
        e1, e2 = pow2_pair(ta)
        f1, f2 = pow2_pair(tb)
        g1, g2 = pow2_pair(tc)
        h1, h2 = pow2_pair(td)
        e1, e2, f1, f2, g1, g2, h1, h2 = A * e1, A * e2, B * f1, B * f2, C * g1, C * g2, D * h1, D * h2
        d1, d2, b1, b2 = e1 - g1, e2 - g2, f1 - h1, f2 - h2
        s1 = _share(d1 - b1, e1, f1, g1, h1, ax, ay, az, bx, by, bz, cx, cy, cz, dx, dy, dz, ta, tb, tc, td, per_cell)
        s2 = _share(d2 - b2, e2, f2, g2, h2, ax, ay, az, bx, by, bz, cx, cy, cz, dx, dy, dz, ta, tb, tc, td, per_cell)
        d1, d2, b1, b2 = d1 * s1, d2 * s2, b1 * s1, b2 * s2
        dt += w[i] * (d1 + d2)
        bt += w[i] * (b1 + b2)
        d1, b1 = d1 - d2, b1 - b2
        Dx += wx[i] * d1
        Dy += wy[i] * d1
        Dz += wz[i] * d1
        Bx += wx[i] * b1
        By += wy[i] * b1
        Bz += wz[i] * b1
    return Dx, Dy, Dz, dt, Bx, By, Bz, bt


@scalar_kernel
def rough_inverse_sqrt(x):
    """Return ``1/sqrt(x)`` to 5e-6, for positive normal ``x``: half the exponent by a shift, then two Newton steps.

    A division and a square root in each lane would take longer than the four exponentials.
    """
    y = np.int64(0x5FE6EB50C7B537A9 - (np.float64(x).view(np.int64) >> 1)).view(np.float64)
    half = 0.5 * x
    y *= 1.5 - half * y * y
    y *= 1.5 - half * y * y
    return y


@inlined_kernel
def _share(G, e, f, g, h, ax, ay, az, bx, by, bz, cx, cy, cz, dx, dy, dz, ta, tb, tc, td, per_cell):
    """Part of a node's weight on the side ``G > 0``; ``ta .. td`` are the exponents up to a common sign."""
    vx = e * ax - f * bx - g * cx + h * dx
    vy = e * ay - f * by - g * cy + h * dy
    vz = e * az - f * bz - g * cz + h * dz
    along = e * ta - f * tb - g * tc + h * td
    slope = vx * vx + vy * vy + vz * vz - along * along
    s = 0.5 + G * rough_inverse_sqrt(slope if slope > TINY else TINY) * (per_cell * LOG2_E)
    s = s if s > 0.0 else 0.0
    return s if s < 1.0 else 1.0


@kernel
def _unusual(species, i, coarse, nodes, azimuth, angles, tolerance, rule, roots, pieces, grid, sums):
    """As `_any_region`, by the method that suits the region: small ones and beams need the meridians."""
    a, b, c, d = i, BLOCK + i, 2 * BLOCK + i, 3 * BLOCK + i
    Z = max(max(species[5, a], species[5, b]), max(species[5, c], species[5, d]))
    if rule.shape[1] == 0 or Z > USUAL_Z or coarse[0][i] < LARGE_REGION:
        _any_region(species, i, coarse, nodes, azimuth, angles, tolerance, roots, pieces, grid, sums)
        return
    # In units of the total density, so that the squares of the slopes neither over- nor underflow.
    total = species[4, a] + species[4, b] + species[4, c] + species[4, d]
    unit = 1.0 / total
    (sums[0], sums[1], sums[2], sums[3], sums[4], sums[5], sums[6], sums[7]) = _sum_shared(
        species[0, a], species[1, a], species[2, a], species[0, b], species[1, b], species[2, b],
        species[0, c], species[1, c], species[2, c], species[0, d], species[1, d], species[2, d],
        species[3, a] * unit, species[3, b] * unit, species[3, c] * unit, species[3, d] * unit, rule,
    )  # fmt: skip
    for k in range(8):
        sums[k] *= total


# From the region to the answer
# -----------------------------
# With 1 - P = 2/3 on the small side and q = (2/3) I_small / I_large on the other, D = q (F_e - F_x) + (2/3 - q)
# int_small d (n, 1).
@inlined_kernel
def _finish(F, species, i, dx, dy, dz, dt, bx, by, bz, bt, crossing, out):
    """Write ``out`` and ``crossing``; ``d`` and ``b`` are the moments of the small side, exchanged where ``L > 0``."""
    L = species[6, i]
    total = species[4, i] + species[4, BLOCK + i] + species[4, 2 * BLOCK + i] + species[4, 3 * BLOCK + i]
    small = dt - bt
    large = small + abs(L)
    near = 2.0 / 3.0
    away = near * (small / large)
    if small <= NOISE * total:
        small, large = 0.0, abs(L)
        near, away = 0.0, 0.0
    kept = near - away
    if L > 0.0:
        dx, dy, dz, dt, bx, by, bz, bt = bx, by, bz, bt, dx, dy, dz, dt
        crossing[0], crossing[1], crossing[2], crossing[3] = large, small, 1.0 - away, 1.0 - near
    else:
        crossing[0], crossing[1], crossing[2], crossing[3] = small, large, 1.0 - near, 1.0 - away
    _convert(
        F,
        away * _mean_difference(F, 0, 1, 2, 0) + kept * dx,
        away * _mean_difference(F, 0, 1, 2, 1) + kept * dy,
        away * _mean_difference(F, 0, 1, 2, 2) + kept * dz,
        away * _mean_difference(F, 0, 1, 2, 3) + kept * dt,
        away * _mean_difference(F, 3, 4, 5, 0) + kept * bx,
        away * _mean_difference(F, 3, 4, 5, 1) + kept * by,
        away * _mean_difference(F, 3, 4, 5, 2) + kept * bz,
        away * _mean_difference(F, 3, 4, 5, 3) + kept * bt,
        out,
    )


@inlined_kernel
def _mean_difference(F, e, mu, tau, c):
    """Component ``c`` of the e minus the heavy four-flux: an integral over the whole sphere, known exactly."""
    return np.float64(F[e, c]) - 0.5 * (np.float64(F[mu, c]) + np.float64(F[tau, c]))


@kernel
def _resolve_block(F, start, count, nodes, azimuth, angles, tolerance, rule, work, out):
    """Samples ``start:start + count`` of ``F`` into ``out``; their crossings into the last array of ``work``."""
    (
        (species, table, along, theta, opposite, several, moved, usual),
        coarse,
        acc,
        roots,
        pieces,
        grid,
        sums,
        crossing,
    ) = work
    dp, du, dv, dt, bp, bu, bv, bt, alternating = acc
    lanes = -(-count // LANES) * LANES
    _prepare(F, start, count, species)
    solid, px, py, pz = coarse
    _coarse_axes(species, lanes, nodes, solid, px, py, pz)
    _frames(species, solid, px, py, pz, lanes, table, usual)
    active = 0
    for i in range(count):
        if usual[i] > 0.0:
            if active < i:
                for row in range(31):
                    table[row * BLOCK + active] = table[row * BLOCK + i]
            active += 1
        else:
            _unusual(species, i, coarse, nodes, azimuth, angles, tolerance, rule, roots, pieces, grid, sums)
            _finish(
                F[start + i], species, i, sums[0], sums[1], sums[2], sums[3], sums[4], sums[5], sums[6], sums[7],
                crossing[i], out[start + i],
            )  # fmt: skip
    for k in range(BLOCK):
        several[k] = moved[k] = 0.0
        dp[k] = du[k] = dv[k] = dt[k] = bp[k] = bu[k] = bv[k] = bt[k] = alternating[k] = 0.0
    begin, end = 0, FIRST
    while active > 0:
        lanes = -(-active // LANES) * LANES
        _along_axis(table, lanes, along)
        for m in range(begin, (begin + end) // 2):
            cp, sp = azimuth[0, m], azimuth[1, m]
            sign = 1.0 if m % 2 == 0 else -1.0
            _single_roots(table, along, cp, sp, lanes, theta, opposite, several, moved)
            _add_single(table, cp, sp, sign, lanes, theta, dp, du, dv, dt, bp, bu, bv, bt, alternating)
            _add_single(table, -cp, -sp, sign, lanes, opposite, dp, du, dv, dt, bp, bu, bv, bt, alternating)
        weight = 2.0 * _PI / end
        final = 2 * end > azimuth.shape[1]
        kept = 0
        for k in range(active):
            i = int(table[30 * BLOCK + k])
            total = table[29 * BLOCK + k]
            if begin == 0:
                change = abs(alternating[k]) * weight
            else:
                change = abs(dt[k] * weight - table[31 * BLOCK + k]) + abs(bt[k] * weight - table[32 * BLOCK + k])
            settled = change < tolerance * total
            if several[k] > 0.0 or moved[k] > MOVED or (final and not settled and rule.shape[1] > 0):
                _unusual(species, i, coarse, nodes, azimuth, angles, tolerance, rule, roots, pieces, grid, sums)
                _finish(
                    F[start + i], species, i, sums[0], sums[1], sums[2], sums[3], sums[4], sums[5], sums[6], sums[7],
                    crossing[i], out[start + i],
                )  # fmt: skip
                continue
            if final or settled:
                ox, oy, oz = (
                    weight * table[20 * BLOCK + k],
                    weight * table[21 * BLOCK + k],
                    weight * table[22 * BLOCK + k],
                )
                ux, uy, uz = (
                    weight * table[23 * BLOCK + k],
                    weight * table[24 * BLOCK + k],
                    weight * table[25 * BLOCK + k],
                )
                vx, vy, vz = (
                    weight * table[26 * BLOCK + k],
                    weight * table[27 * BLOCK + k],
                    weight * table[28 * BLOCK + k],
                )
                _finish(
                    F[start + i], species, i,
                    dp[k] * ox + du[k] * ux + dv[k] * vx, dp[k] * oy + du[k] * uy + dv[k] * vy,
                    dp[k] * oz + du[k] * uz + dv[k] * vz, dt[k] * weight,
                    bp[k] * ox + bu[k] * ux + bv[k] * vx, bp[k] * oy + bu[k] * uy + bv[k] * vy,
                    bp[k] * oz + bu[k] * uz + bv[k] * vz, bt[k] * weight,
                    crossing[i], out[start + i],
                )  # fmt: skip
                continue
            if kept < k:
                for row in range(31):
                    table[row * BLOCK + kept] = table[row * BLOCK + k]
                dp[kept], du[kept], dv[kept], dt[kept] = dp[k], du[k], dv[k], dt[k]
                bp[kept], bu[kept], bv[kept], bt[kept] = bp[k], bu[k], bv[k], bt[k]
            table[31 * BLOCK + kept], table[32 * BLOCK + kept] = dt[k] * weight, bt[k] * weight
            kept += 1
        for k in range(kept, BLOCK):
            dp[k] = du[k] = dv[k] = dt[k] = bp[k] = bu[k] = bv[k] = bt[k] = 0.0
        for k in range(BLOCK):
            several[k] = moved[k] = 0.0
        active = kept
        begin, end = end, 2 * end


@kernel
def _resolve(F, nodes, azimuth, angles, tolerance, rule, work, out, start, stop):
    for begin in range(start, stop, BLOCK):
        _resolve_block(F, begin, min(BLOCK, stop - begin), nodes, azimuth, angles, tolerance, rule, work, out)


@kernel
def _resolve_diagnosed(F, nodes, azimuth, angles, tolerance, rule, work, out, crossing, start, stop):
    for begin in range(start, stop, BLOCK):
        count = min(BLOCK, stop - begin)
        _resolve_block(F, begin, count, nodes, azimuth, angles, tolerance, rule, work, out)
        for i in range(count):
            for k in range(4):
                crossing[begin + i, k] = work[7][i, k]


@driver
def resolved_rows(F, nodes, azimuth, angles, tolerance, rule, out, start, stop):
    """Box3D of rows ``start:stop`` of ``F (n, 6, 4)`` into ``out``."""
    _resolve(F, nodes, azimuth, angles, tolerance, rule, new_work(), out, start, stop)


@driver
def resolved_rows_diagnosed(F, nodes, azimuth, angles, tolerance, rule, out, crossing, start, stop):
    """As `resolved_rows`; ``crossing (n, 4)`` takes ``I_plus, I_minus, P_plus, P_minus``."""
    _resolve_diagnosed(F, nodes, azimuth, angles, tolerance, rule, new_work(), out, crossing, start, stop)
