"""Numba kernels of Box3D: sharp crossing. No validation here; see the public function beside it.

Interface
---------
Nodes are given as antipodal pairs: ``nodes (7, m)`` has rows ``x, y, z, w, w x, w y, w z`` of one node of each pair
``n, -n`` of an inversion-symmetric rule; ``w`` is the weight of each of the two. `antipodal_pairs` makes it, padded
with ``w = 0`` to a multiple of 16 so that no remainder loop runs.

sharp_rows(F, nodes, out, start, stop)
    rows ``start:stop`` of ``F (n, 6, 4)`` (float64 or float32) -> ``out``. Releases the GIL; rows are independent, so
    ranges can run in threads and the result does not depend on how they are cut.
sharp_rows_diagnosed(F, nodes, out, crossing, start, stop)
    the same, and ``crossing (n, 4)`` = ``(I_plus, I_minus, P_plus, P_minus)``; P = 1 on both sides without crossing.
sharp_flux(F, nodes, out) -> (I_plus, I_minus, P_plus, P_minus)
    one sample, ``F`` and ``out`` ``(6, 4)``; for user ``@njit`` code.
divide_heavy(F, out, mu_fraction, start, stop)
    afterwards: mu takes that fraction of the heavy total, tau the rest, where there is a crossing.
"""

from __future__ import annotations

import numpy as np

from rheidae.mixing._closure_kernels import LOG2_E, langevin_ratio, pow2, pow2_pair, z_over_sinh
from rheidae.system.numba import driver, inlined_kernel, kernel, scalar_kernel, simd_function

FOUR_PI = 12.566370614359172
#: Above this Z the pair trick nears the range of a double.
BEAM_Z = 300.0
#: I+ or I- below this fraction of the total density is rounding noise of G, not a crossing.
NOISE = 1e-14


def antipodal_pairs(nodes, weights, multiple=16):
    """Return the ``(7, m)`` array of antipodal pairs of a rule: nodes ``(3, points)`` and weights."""
    x, y, z = nodes
    upper = (z > 0) | ((z == 0) & ((y > 0) | ((y == 0) & (x > 0))))
    if 2 * np.count_nonzero(upper) != weights.size:
        raise ValueError("the rule is not symmetric under inversion")
    pad = -np.count_nonzero(upper) % multiple
    rows = (x, y, z, weights, weights * x, weights * y, weights * z)
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


# The node loop
# -------------
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
@scalar_kernel
def _peak(Z):
    """Return the Minerbo distribution at its peak, times ``4 pi/N``: ``2 Z/(1 - exp(-2 Z))``."""
    if Z < 1e-4:
        return 1.0 + Z * (1.0 + Z * (1.0 / 3.0))
    return 2.0 * Z / (1.0 - pow2(-min(2.0 * LOG2_E * Z, 1000.0)))


@kernel
def _sum_beams(ax, ay, az, bx, by, bz, cx, cy, cz, dx, dy, dz, Ne, Nb, Nx, Ny, Za, Zb, Zc, Zd, nodes):
    """As `_sum_pairs`, from densities and Z instead of amplitudes, for any exponent."""
    simd_function()
    x, y, z, w = nodes[0], nodes[1], nodes[2], nodes[3]
    A, B = Ne * (_peak(Za) / FOUR_PI), Nb * (_peak(Zb) / FOUR_PI)
    C, D = Nx * (_peak(Zc) / FOUR_PI), Ny * (_peak(Zd) / FOUR_PI)
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
def _sharp(F, ax, ay, az, A, bx, by, bz, B, cx, cy, cz, C, dx, dy, dz, D, Ne, Nb, Nx, Ny, Za, Zb, Zc, Zd, nodes, out):
    """Box3D of one sample from exponents, amplitudes, densities and Z of e, ebar, x, xbar."""
    if max(max(Za, Zb), max(Zc, Zd)) > BEAM_Z:
        sums = _sum_beams(
            ax, ay, az, bx, by, bz, cx, cy, cz, dx, dy, dz, Ne, Nb, Nx, Ny, Za, Zb, Zc, Zd, nodes
        )  # fmt: skip
    else:
        sums = _sum_pairs(ax, ay, az, bx, by, bz, cx, cy, cz, dx, dy, dz, A, B, C, D, nodes)
    (tdx, tdy, tdz, tdt, tbx, tby, tbz, tbt, pdx, pdy, pdz, pdt, pbx, pby, pbz, pbt) = sums
    I_plus = pdt - pbt
    I_minus = I_plus - (tdt - tbt)
    plus, minus = _loss(I_plus, I_minus, NOISE * (Ne + Nb + Nx + Ny))
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
def sharp_flux(F, nodes, out):
    """Box3D of one sample ``F (6, 4)`` into ``out``; returns ``I_plus, I_minus, P_plus, P_minus``."""
    ax, ay, az, Ne = _species(F, 0, 0)
    bx, by, bz, Nb = _species(F, 3, 3)
    cx, cy, cz, Nx = _species(F, 1, 2)
    dx, dy, dz, Ny = _species(F, 4, 5)
    ax, ay, az, A, Za = exponent(ax, ay, az, Ne)
    bx, by, bz, B, Zb = exponent(bx, by, bz, Nb)
    cx, cy, cz, C, Zc = exponent(cx, cy, cz, Nx)
    dx, dy, dz, D, Zd = exponent(dx, dy, dz, Ny)
    return _sharp(
        F, ax, ay, az, A, bx, by, bz, B, cx, cy, cz, C, dx, dy, dz, D, Ne, Nb, Nx, Ny, Za, Zb, Zc, Zd, nodes, out
    )  # fmt: skip


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


@inlined_kernel
def _sharp_from_block(F, work, k, nodes, out):
    a, b, c, d = k, k + 1, k + 2, k + 3
    return _sharp(
        F,
        work[0, a], work[1, a], work[2, a], work[3, a], work[0, b], work[1, b], work[2, b], work[3, b],
        work[0, c], work[1, c], work[2, c], work[3, c], work[0, d], work[1, d], work[2, d], work[3, d],
        work[4, a], work[4, b], work[4, c], work[4, d],
        work[5, a], work[5, b], work[5, c], work[5, d], nodes, out,
    )  # fmt: skip


@driver
def sharp_rows(F, nodes, out, start, stop):
    """`sharp_flux` for rows ``start:stop`` of ``F (n, 6, 4)``."""
    work = np.empty((6, 4 * BLOCK))
    for begin in range(start, stop, BLOCK):
        end = min(begin + BLOCK, stop)
        prepare_block(F, begin, end, work)
        for i in range(begin, end):
            _sharp_from_block(F[i], work, 4 * (i - begin), nodes, out[i])


@driver
def sharp_rows_diagnosed(F, nodes, out, crossing, start, stop):
    """As `sharp_rows`; ``crossing (n, 4)`` takes ``I_plus, I_minus, P_plus, P_minus``."""
    work = np.empty((6, 4 * BLOCK))
    for begin in range(start, stop, BLOCK):
        end = min(begin + BLOCK, stop)
        prepare_block(F, begin, end, work)
        for i in range(begin, end):
            I_plus, I_minus, P_plus, P_minus = _sharp_from_block(F[i], work, 4 * (i - begin), nodes, out[i])
            crossing[i, 0] = I_plus
            crossing[i, 1] = I_minus
            crossing[i, 2] = P_plus
            crossing[i, 3] = P_minus


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
