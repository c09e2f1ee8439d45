"""Numba kernels of Box3D. No validation here; see the public function beside it.

Interface
---------
Nodes are given as antipodal pairs: ``nodes (8, m)`` has rows ``x, y, z, w, w x, w y, w z`` of one node of each pair
``n, -n`` of an inversion-symmetric rule; ``w`` is the weight of each of the two; the last row is ``w**-0.5``.
`antipodal_pairs` makes it, padded with ``w = 0`` to a multiple of 8 so that no remainder loop runs.

box3d_rows(F, nodes, shared, out, sides, start, stop)
    rows ``start:stop`` of ``F (n, 6, 4)`` (float64 or float32) -> ``out``; the crossing is shared or, ``shared=False``,
    sharp. ``sides (n, 4)``, or of no rows where nobody wants it, takes ``(I_plus, I_minus, P_plus, P_minus)``; P = 1 on
    both sides without crossing. Releases the GIL; rows are independent, so ranges can run in threads and the result
    does not depend on how they are cut. Callable from user ``@njit`` code.
divide_heavy(F, out, mu_fraction, start, stop)
    afterwards: mu takes that fraction of the heavy total, tau the rest, where there is a crossing.
"""

from __future__ import annotations

import numpy as np

from rheidae.mixing._closure_kernels import LOG2_E, langevin_ratio, peak, pow2, pow2_pair, z_over_sinh
from rheidae.mixing.quadrature import upper_half
from rheidae.system.numba import driver, inlined_kernel, kernel, scalar_kernel, simd_function

FOUR_PI = 12.566370614359172
#: Above this Z the pair trick nears the range of a double.
BEAM_Z = 300.0
#: With a shared crossing, a beam with more than this Z (flux factor 0.9975) is replaced by one of this Z.
SHARED_Z = 400.0
#: Part of a node's weight beside the crossing: coefficients of (s - 1/2)/t, powers of t^2.
SHARE = (45.0 / 32.0, -50.0 / 32.0, 21.0 / 32.0)
#: Squares of the slope of G below this are its rounding, in units of the total density.
FLAT = 1e-30
#: I+ or I- below this fraction of the total density is rounding noise of G, not a crossing.
NOISE = 1e-14
#: I_small, over the total density, on which a closing crossing fades where it is shared.
FADE = 1e-7
#: Squares of fluxes below this, in units of the total density, do not fix an axis of the frame.
AXIS = 1e-20


def antipodal_pairs(nodes, weights, multiple=8):
    """Return the ``(8, m)`` array of antipodal pairs of a rule: nodes ``(3, points)`` and weights."""
    (x, y, z), upper = nodes, upper_half(nodes, weights)
    pad = -np.count_nonzero(upper) % multiple
    rows = (x, y, z, weights, weights * x, weights * y, weights * z, 1.0 / np.sqrt(np.abs(weights)))
    return np.ascontiguousarray([np.pad(np.asarray(a, dtype=np.float64)[upper], (0, pad)) for a in rows])


# Per species: exponent vector and amplitude
# ------------------------------------------
# g(n) = N/(4 pi) Z/sinh(Z) exp(Z Fhat.n) = A 2**(a.n) with a = log2(e) Z Fhat. With u = F/N, f = |u| and the ratio
# Z/f, a = log2(e) (Z/f) u needs no unit vector and is smooth at F = 0.
@scalar_kernel
def exponent(Fx, Fy, Fz, N):
    """Return ``a`` (3 numbers), the amplitude ``A`` and ``Z`` of one species; ``A`` holds for ``Z <= BEAM_Z``."""
    inverse = 1.0 / N if N > 0.0 else 0.0
    ux, uy, uz = Fx * inverse, Fy * inverse, Fz * inverse
    f = np.sqrt(ux * ux + uy * uy + uz * uz)
    ratio = langevin_ratio(f)
    Z = f * ratio
    ratio *= LOG2_E
    A = N * (z_over_sinh(BEAM_Z if Z > BEAM_Z else Z) / FOUR_PI)
    return ux * ratio, uy * ratio, uz * ratio, A, Z


# The node loop, sharp crossing
# -----------------------------
# Let d = g_e - g_x and b = gbar_e - gbar_x, so G = d - b. Whatever P is on the two sides, 1 - P is constant on each,
#     D = (1-P+) int_{G>0} d (n,1) + (1-P-) int_{G<0} d (n,1),       Dbar alike with b,
# so one pass that sums d (n,1) and b (n,1) over all nodes and over the nodes with G > 0 is enough: no value is stored
# per node and nothing is evaluated twice. I+ = sum over G > 0 of d - b, and I- = I+ - sum of (d - b).
# For a pair n, -n the density takes w (d1 + d2) and the flux w n (d1 - d2).
@kernel
def _sum_pairs(ax, ay, az, bx, by, bz, cx, cy, cz, dx, dy, dz, A, B, C, D, nodes):
    """Sums of ``d`` and ``b`` over the sphere (8) and over ``G > 0`` (8), each ``(x, y, z, t)``.

    a, b, c, d stand for e, ebar, x, xbar.
    """
    simd_function()
    x, y, z, w, wx, wy, wz = nodes[0], nodes[1], nodes[2], nodes[3], nodes[4], nodes[5], nodes[6]
    dt = bt = Dx = Dy = Dz = Bx = By = Bz = 0.0
    pdt = pbt = pdx = pdy = pdz = pbx = pby = pbz = 0.0
    for i in range(x.shape[0]):
        X, Y, Z = x[i], y[i], z[i]
        W, wX, wY, wZ = w[i], wx[i], wy[i], wz[i]
        e1, e2 = pow2_pair(ax * X + ay * Y + az * Z)
        f1, f2 = pow2_pair(bx * X + by * Y + bz * Z)
        g1, g2 = pow2_pair(cx * X + cy * Y + cz * Z)
        h1, h2 = pow2_pair(dx * X + dy * Y + dz * Z)
        d1, d2 = A * e1 - C * g1, A * e2 - C * g2
        b1, b2 = B * f1 - D * h1, B * f2 - D * h2
        dt += W * (d1 + d2)
        odd = d1 - d2
        Dx += wX * odd
        Dy += wY * odd
        Dz += wZ * odd
        bt += W * (b1 + b2)
        odd = b1 - b2
        Bx += wX * odd
        By += wY * odd
        Bz += wZ * odd
        plus = d1 > b1
        d1 = d1 if plus else 0.0
        b1 = b1 if plus else 0.0
        plus = d2 > b2
        d2 = d2 if plus else 0.0
        b2 = b2 if plus else 0.0
        pdt += W * (d1 + d2)
        odd = d1 - d2
        pdx += wX * odd
        pdy += wY * odd
        pdz += wZ * odd
        pbt += W * (b1 + b2)
        odd = b1 - b2
        pbx += wX * odd
        pby += wY * odd
        pbz += wZ * odd
    return Dx, Dy, Dz, dt, Bx, By, Bz, bt, pdx, pdy, pdz, pdt, pbx, pby, pbz, pbt


# Beams
# -----
# For Z > BEAM_Z the pair trick would overflow, so the exponent is taken relative to Z, its largest value, and
# the amplitude goes with it: g(n) = N/(4 pi) 2 Z/(1 - exp(-2 Z)) 2**(a.n - |a|). A rule that does not resolve the beam
# misses it or counts it several times over; that is what plain quadrature gives, and the two branches agree where
# they meet.
@kernel
def _sum_beams(ax, ay, az, bx, by, bz, cx, cy, cz, dx, dy, dz, Ne, Nb, Nx, Ny, Za, Zb, Zc, Zd, nodes):
    """As `_sum_pairs`, from densities and Z instead of amplitudes, for any exponent."""
    simd_function()
    x, y, z, w = nodes[0], nodes[1], nodes[2], nodes[3]
    A, B = Ne * (peak(Za) / FOUR_PI), Nb * (peak(Zb) / FOUR_PI)
    C, D = Nx * (peak(Zc) / FOUR_PI), Ny * (peak(Zd) / FOUR_PI)
    ta, tb, tc, td = LOG2_E * Za, LOG2_E * Zb, LOG2_E * Zc, LOG2_E * Zd
    dt = bt = Dx = Dy = Dz = Bx = By = Bz = 0.0
    pdt = pbt = pdx = pdy = pdz = pbx = pby = pbz = 0.0
    for i in range(x.shape[0]):
        for sign in (1.0, -1.0):
            X, Y, Z, W = sign * x[i], sign * y[i], sign * z[i], w[i]
            d = A * pow2(max(ax * X + ay * Y + az * Z - ta, -1000.0))
            d -= C * pow2(max(cx * X + cy * Y + cz * Z - tc, -1000.0))
            b = B * pow2(max(bx * X + by * Y + bz * Z - tb, -1000.0))
            b -= D * pow2(max(dx * X + dy * Y + dz * Z - td, -1000.0))
            plus = d > b
            d *= W
            b *= W
            dt += d
            Dx += X * d
            Dy += Y * d
            Dz += Z * d
            bt += b
            Bx += X * b
            By += Y * b
            Bz += Z * b
            if plus:
                pdt += d
                pdx += X * d
                pdy += Y * d
                pdz += Z * d
                pbt += b
                pbx += X * b
                pby += Y * b
                pbz += Z * b
    return Dx, Dy, Dz, dt, Bx, By, Bz, bt, pdx, pdy, pdz, pdt, pbx, pby, pbz, pbt


@inlined_kernel
def _loss(I_plus, I_minus, noise):
    """Return ``1 - P`` on the plus and on the minus side."""
    small = min(I_plus, I_minus)
    # A NaN is not below the noise: it goes on into every species instead of passing for a stable state.
    if small <= noise:
        return 0.0, 0.0
    third = 2.0 / 3.0
    if I_plus < I_minus:
        return third, third * (I_plus / I_minus)
    if I_plus > I_minus:
        return third * (I_minus / I_plus), third
    return third + 0.0 * small, third + 0.0 * small


@inlined_kernel
def _sharp(F, work, k, nodes, out):
    """Box3D of one sample, columns ``k:k + 4`` of `work`, by the published formula; returns its sides."""
    x, y, z, A, N, Z = work[0], work[1], work[2], work[3], work[4], work[5]
    a, b, c, d = k, k + 1, k + 2, k + 3
    if max(max(Z[a], Z[b]), max(Z[c], Z[d])) > BEAM_Z:
        sums = _sum_beams(
            x[a], y[a], z[a], x[b], y[b], z[b], x[c], y[c], z[c], x[d], y[d], z[d],
            N[a], N[b], N[c], N[d], Z[a], Z[b], Z[c], Z[d], nodes,
        )  # fmt: skip
    else:
        sums = _sum_pairs(
            x[a], y[a], z[a], x[b], y[b], z[b], x[c], y[c], z[c], x[d], y[d], z[d], A[a], A[b], A[c], A[d], nodes
        )
    (tdx, tdy, tdz, tdt, tbx, tby, tbz, tbt, pdx, pdy, pdz, pdt, pbx, pby, pbz, pbt) = sums
    I_plus = pdt - pbt
    I_minus = I_plus - (tdt - tbt)
    plus, minus = _loss(I_plus, I_minus, NOISE * (N[a] + N[b] + N[c] + N[d]))
    _convert(
        F,
        minus * (tdx - pdx) + plus * pdx,
        minus * (tdy - pdy) + plus * pdy,
        minus * (tdz - pdz) + plus * pdz,
        minus * (tdt - pdt) + plus * pdt,
        minus * (tbx - pbx) + plus * pbx,
        minus * (tby - pby) + plus * pby,
        minus * (tbz - pbz) + plus * pbz,
        minus * (tbt - pbt) + plus * pbt,
        out,
    )
    return I_plus, I_minus, 1.0 - plus, 1.0 - minus


# The node loop, shared crossing
# ------------------------------
# A node beside the crossing stands for a cell that lies on both sides of it. At the signed distance t, G/|grad G| over
# the root of the node's weight, it gets the part s(t) of that weight on the side G > 0,
#     s = 1/2 + t (45 - 50 t^2 + 21 t^4)/32 for abs(t) < 1, else 0 or 1.
# ds/dt is continuous and has the moments of a delta function up to the third, so what is a parabola across the crossing
# is integrated as with a sharp one (Tornberg and Engquist, J. Comput. Phys. 200, 462, 2004): four times nearer to the
# converged answer than counting each node to the side on which it lies.
# The gradient is the tangential one: grad exp(a.n) = ln 2 (a - (a.n) n) 2**(a.n).
@inlined_kernel
def _share(G, e, f, g, h, ax, ay, az, bx, by, bz, cx, cy, cz, dx, dy, dz, ta, tb, tc, td, per_cell):
    """Part of a node's weight on the side ``G > 0``; ``ta .. td`` are the exponents up to a common sign."""
    vx = e * ax - f * bx - g * cx + h * dx
    vy = e * ay - f * by - g * cy + h * dy
    vz = e * az - f * bz - g * cz + h * dz
    along = e * ta - f * tb - g * tc + h * td
    slope = vx * vx + vy * vy + vz * vz - along * along
    t = G * (per_cell * LOG2_E) / np.sqrt(slope if slope > FLAT else FLAT)
    t = t if t > -1.0 else -1.0
    t = t if t < 1.0 else 1.0
    square = t * t
    return 0.5 + t * (SHARE[0] + square * (SHARE[1] + square * SHARE[2]))


@kernel
def _sum_shared(ax, ay, az, bx, by, bz, cx, cy, cz, dx, dy, dz, A, B, C, D, nodes):
    """Sums of ``d`` and ``b`` over ``G > 0``, weights shared, each ``(x, y, z, t)``, and of G on nodes where it is."""
    simd_function()
    x, y, z, w, wx, wy, wz, per_cell = nodes[0], nodes[1], nodes[2], nodes[3], nodes[4], nodes[5], nodes[6], nodes[7]
    dt = bt = Dx = Dy = Dz = Bx = By = Bz = inside = 0.0
    for i in range(x.shape[0]):
        X, Y, Z, p = x[i], y[i], z[i], per_cell[i]
        ta, tb = ax * X + ay * Y + az * Z, bx * X + by * Y + bz * Z
        tc, td = cx * X + cy * Y + cz * Z, dx * X + dy * Y + dz * Z
        e1, e2 = pow2_pair(ta)
        f1, f2 = pow2_pair(tb)
        g1, g2 = pow2_pair(tc)
        h1, h2 = pow2_pair(td)
        e1, e2, f1, f2, g1, g2, h1, h2 = A * e1, A * e2, B * f1, B * f2, C * g1, C * g2, D * h1, D * h2
        d1, d2, b1, b2 = e1 - g1, e2 - g2, f1 - h1, f2 - h2
        G1, G2 = d1 - b1, d2 - b2
        inside += w[i] * (max(G1, 0.0) + max(G2, 0.0))
        s1 = _share(G1, e1, f1, g1, h1, ax, ay, az, bx, by, bz, cx, cy, cz, dx, dy, dz, ta, tb, tc, td, p)
        s2 = _share(G2, e2, f2, g2, h2, ax, ay, az, bx, by, bz, cx, cy, cz, dx, dy, dz, ta, tb, tc, td, p)
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
    return Dx, Dy, Dz, dt, Bx, By, Bz, bt, inside


# The nodes turn with the state: z lies along int G n and, across it, x along the sum of what e and ebar have more than
# x and xbar. The rule is as symmetric as a cube: signs of axes do not matter, nor x where all fluxes lie on a line.
@inlined_kernel
def _turn(F, work, k, axes):
    """Bring columns ``k:k + 4`` of `work` into the frame, and beams to `SHARED_Z`.

    Amplitudes are brought to units of the total density, in which squares of slopes neither over- nor underflow.
    """
    N = work[4]
    total = N[k] + N[k + 1] + N[k + 2] + N[k + 3]
    unit = 1.0 / total if total > 0.0 else 0.0
    mx, my, mz, _ = _mean_difference(F, np.int64(0))
    nx, ny, nz, _ = _mean_difference(F, np.int64(3))
    x = y = z = 0.0
    for vx, vy, vz in (
        (unit * (mx - nx), unit * (my - ny), unit * (mz - nz)),
        (unit * (mx + nx), unit * (my + ny), unit * (mz + nz)),
        (unit * F[0, 0], unit * F[0, 1], unit * F[0, 2]),
        (unit * F[3, 0], unit * F[3, 1], unit * F[3, 2]),
        (1.0, 0.0, 0.0),
        (0.0, 1.0, 0.0),
    ):
        first = x * x + y * y + z * z == 0.0
        cx, cy, cz = (vx, vy, vz) if first else (y * vz - z * vy, z * vx - x * vz, x * vy - y * vx)
        square = cx * cx + cy * cy + cz * cz
        if not square > AXIS:
            continue
        inverse = 1.0 / np.sqrt(square)
        cx, cy, cz = cx * inverse, cy * inverse, cz * inverse
        if not first:
            break
        x, y, z = cx, cy, cz
    axes[0, 0], axes[0, 1], axes[0, 2] = cy * z - cz * y, cz * x - cx * z, cx * y - cy * x
    axes[1, 0], axes[1, 1], axes[1, 2] = cx, cy, cz
    axes[2, 0], axes[2, 1], axes[2, 2] = x, y, z
    for i in range(k, k + 4):
        x, y, z, Z = work[0, i], work[1, i], work[2, i], work[5, i]
        work[3, i] *= unit
        if Z > BEAM_Z:
            scale = 1.0 if Z <= SHARED_Z else SHARED_Z / Z
            x, y, z, Z = scale * x, scale * y, scale * z, scale * Z
            # Beyond BEAM_Z, Z/sinh(Z) = 2 Z exp(-Z) to rounding.
            work[3, i] = N[i] * unit * (2.0 * Z / FOUR_PI) * pow2(-LOG2_E * Z)
        for row in range(3):
            work[row, i] = axes[row, 0] * x + axes[row, 1] * y + axes[row, 2] * z


# Every integral over the whole sphere is known exactly from the four-fluxes, and with
#     int G = L = (N_e - Nbar_e) - (N_x - Nbar_x),   int d (n, 1) = F_e - F_x
# so is the side that has the smaller integral, and I_large = I_small + abs(L). Only that side is summed. With
# 1 - P = 2/3 on it and q = (2/3) I_small / I_large on the other, D = q (F_e - F_x) + (2/3 - q) int_small d (n, 1):
# D_t - Dbar_t = 0 to rounding, whatever the quadrature error. If G > 0 is the larger side, e and ebar, x and xbar
# change places in the loop.
@inlined_kernel
def _shared(F, work, k, axes, nodes, out):
    """Box3D of one sample, columns ``k:k + 4`` of `work` as `_turn` leaves them; returns its sides."""
    N = work[4]
    total = N[k] + N[k + 1] + N[k + 2] + N[k + 3]
    L = (N[k] - N[k + 2]) - (N[k + 1] - N[k + 3])
    x, y, z, A = work[0], work[1], work[2], work[3]
    other = 1 if L > 0.0 else 0
    a, b, c, d = k + other, k + 1 - other, k + 2 + other, k + 3 - other
    dx, dy, dz, dt, bx, by, bz, bt, inside = _sum_shared(
        x[a], y[a], z[a], x[b], y[b], z[b], x[c], y[c], z[c], x[d], y[d], z[d], A[a], A[b], A[c], A[d], nodes
    )
    small = (dt - bt) * total
    large = small + abs(L)
    # Weights are shared, so a node leaves the smaller side with what it moves; nodes beside it make no crossing.
    seen = min(small, inside * total)
    near = 2.0 / 3.0 * (1.0 - pow2(-min(seen / (FADE * total), 1000.0)))
    away = near * (small / large)
    # A NaN is not below the noise: it goes on into every species instead of passing for a stable state.
    if seen <= NOISE * total:
        small, large, near, away = 0.0, abs(L), 0.0, 0.0
    kept = (near - away) * total
    if L > 0.0:
        dx, dy, dz, dt, bx, by, bz, bt = bx, by, bz, bt, dx, dy, dz, dt
    dx, dy, dz = _back(axes, dx, dy, dz)
    bx, by, bz = _back(axes, bx, by, bz)
    mx, my, mz, mt = _mean_difference(F, np.int64(0))
    nx, ny, nz, nt = _mean_difference(F, np.int64(3))
    _convert(
        F, away * mx + kept * dx, away * my + kept * dy, away * mz + kept * dz, away * mt + kept * dt,
        away * nx + kept * bx, away * ny + kept * by, away * nz + kept * bz, away * nt + kept * bt, out,
    )  # fmt: skip
    if L > 0.0:
        return large, small, 1.0 - away, 1.0 - near
    return small, large, 1.0 - near, 1.0 - away


@inlined_kernel
def _back(axes, x, y, z):
    """A vector from its components in the frame."""
    return (
        axes[0, 0] * x + axes[1, 0] * y + axes[2, 0] * z,
        axes[0, 1] * x + axes[1, 1] * y + axes[2, 1] * z,
        axes[0, 2] * x + axes[1, 2] * y + axes[2, 2] * z,
    )


@inlined_kernel
def _mean_difference(F, e):
    """The e minus the heavy four-flux, ``e`` 0 or 3: integrals over the sphere, known exactly."""
    x, y, z, t = _species(F, e + 1, e + 2)
    return np.float64(F[e, 0]) - x, np.float64(F[e, 1]) - y, np.float64(F[e, 2]) - z, np.float64(F[e, 3]) - t


@inlined_kernel
def _species(F, first, second):
    """Mean four-flux of two species as float64 scalars; ``first == second`` for one species."""
    return (
        0.5 * (np.float64(F[first, 0]) + np.float64(F[second, 0])),
        0.5 * (np.float64(F[first, 1]) + np.float64(F[second, 1])),
        0.5 * (np.float64(F[first, 2]) + np.float64(F[second, 2])),
        0.5 * (np.float64(F[first, 3]) + np.float64(F[second, 3])),
    )


@inlined_kernel
def _convert(F, Dx, Dy, Dz, Dt, Bx, By, Bz, Bt, out):
    """Move ``D`` from e to mu and tau in equal parts, and ``B`` likewise for antineutrinos."""
    for c, d, b in ((0, Dx, Bx), (1, Dy, By), (2, Dz, Bz), (3, Dt, Bt)):
        out[0, c] = F[0, c] - d
        out[1, c] = F[1, c] + 0.5 * d
        out[2, c] = F[2, c] + 0.5 * d
        out[3, c] = F[3, c] - b
        out[4, c] = F[4, c] + 0.5 * b
        out[5, c] = F[5, c] + 0.5 * b


# Blocks of samples
# -----------------
# The inverse Langevin function of one species is a chain of dependent operations; over the 4 * BLOCK species of a block
# the same operations fill SIMD lanes. `work` is allocated once per call: rows ax, ay, az, A, N, Z,
# columns 4 * sample + species.
BLOCK = 16


@inlined_kernel
def prepare_block(F, start, stop, work):
    """Fill ``work (6, 4 * BLOCK)`` for the samples ``start:stop``."""
    x, y, z, A, N, Z = work[0], work[1], work[2], work[3], work[4], work[5]
    for i in range(start, stop):
        k = 4 * (i - start)
        for s, first, second in ((0, 0, 0), (1, 3, 3), (2, 1, 2), (3, 4, 5)):
            x[k + s], y[k + s], z[k + s], N[k + s] = _species(F[i], first, second)
    for k in range(4 * (stop - start)):
        x[k], y[k], z[k], A[k], Z[k] = exponent(x[k], y[k], z[k], N[k])


@driver
def box3d_rows(F, nodes, shared, out, sides, start, stop):
    """Box3D of rows ``start:stop`` of ``F (n, 6, 4)``; see above."""
    work, axes = np.empty((6, 4 * BLOCK)), np.empty((BLOCK, 3, 3))
    for begin in range(start, stop, BLOCK):
        end = min(begin + BLOCK, stop)
        prepare_block(F, begin, end, work)
        if shared:
            # One after the other their roots and quotients overlap.
            for i in range(begin, end):
                _turn(F[i], work, 4 * (i - begin), axes[i - begin])
        for i in range(begin, end):
            k = 4 * (i - begin)
            if shared:
                I_plus, I_minus, P_plus, P_minus = _shared(F[i], work, k, axes[i - begin], nodes, out[i])
            else:
                I_plus, I_minus, P_plus, P_minus = _sharp(F[i], work, k, nodes, out[i])
            if sides.shape[0] > 0:
                sides[i, 0], sides[i, 1], sides[i, 2], sides[i, 3] = I_plus, I_minus, P_plus, P_minus


@kernel
def divide_heavy(F, out, mu_fraction, start, stop):
    """Divide the heavy total of rows ``start:stop`` of ``out``: that fraction to mu, the rest to tau.

    Rows that Box3D left as they were in ``F``, for want of a crossing, stay so.
    """
    for i in range(start, stop):
        changed = False
        for c in range(4):
            changed = changed or out[i, 0, c] != F[i, 0, c] or out[i, 3, c] != F[i, 3, c]
        if not changed:
            continue
        for mu in (1, 4):
            for c in range(4):
                total = out[i, mu, c] + out[i, mu + 1, c]
                out[i, mu, c] = mu_fraction * total
                out[i, mu + 1, c] = total - out[i, mu, c]
