"""Numba kernels of Box3D: sharp crossing. No validation here; see the public function beside it.

Interface
---------
Nodes are given as *antipodal pairs*: arrays ``x, y, z, w`` hold one node of each pair ``n, -n`` of an
inversion-symmetric rule; ``w`` is the weight of each of the two. Pad with ``w = 0`` to a multiple of 16
(`antipodal_pairs` does both).

sharp_rows(F, x, y, z, w, out, start, stop)
    rows ``start:stop`` of ``F (n, 6, 4)`` (float64 or float32) -> ``out``. Releases the GIL; rows are independent, so
    ranges can run in threads and the result does not depend on how they are cut.
sharp_rows_diagnosed(F, x, y, z, w, out, crossing, start, stop)
    the same, and ``crossing (n, 4)`` = ``(I_plus, I_minus, P_plus, P_minus)``; P = 1 on both sides without crossing.
sharp_flux(F, x, y, z, w, out) -> (I_plus, I_minus, P_plus, P_minus)
    one sample, ``F`` and ``out`` ``(6, 4)``; for user ``@njit`` code.
divide_heavy(F, out, mu_fraction, start, stop)
    afterwards: mu takes that fraction of the heavy total, tau the rest, where there is a crossing.
"""

from __future__ import annotations

import numpy as np

from rheidae._minerbo_kernels import LOG2_E, langevin_ratio, pow2, pow2_pair, z_over_sinh
from rheidae._numba import kernel, scalar_kernel

FOUR_PI = 12.566370614359172
#: Above this Z the pair trick nears the range of a double.
BEAM_Z = 300.0
#: I+ or I- below this fraction of the total density is rounding noise of G, not a crossing.
NOISE = 1e-14


def antipodal_pairs(nodes, weights, multiple=16):
    """Return contiguous ``x, y, z, w`` with one node of each antipodal pair, padded with zero weights.

    ``nodes (3, m)`` and ``weights (m)`` as `scipy.integrate.lebedev_rule` returns them.
    """
    x, y, z = nodes
    upper = (z > 0) | ((z == 0) & ((y > 0) | ((y == 0) & (x > 0))))
    if 2 * np.count_nonzero(upper) != weights.size:
        raise ValueError("the rule is not symmetric under inversion")
    pad = -np.count_nonzero(upper) % multiple
    return tuple(np.pad(np.asarray(a, dtype=np.float64)[upper], (0, pad)) for a in (x, y, z, weights))


# Per species: exponent vector and amplitude
# ------------------------------------------
# g(n) = N/(4 pi) Z/sinh(Z) exp(Z Fhat.n) = A 2**(a.n) with a = log2(e) Z Fhat. With u = F/N, f = |u| and the ratio
# Z/f, a = log2(e) (Z/f) u needs no unit vector and is smooth at F = 0.
@scalar_kernel
def exponent(Fx, Fy, Fz, N):
    """Return ``a`` (3 numbers) and ``Z`` of one species."""
    inverse = 1.0 / N if N > 0.0 else 0.0
    ux, uy, uz = Fx * inverse, Fy * inverse, Fz * inverse
    f = np.sqrt(ux * ux + uy * uy + uz * uz)
    ratio = langevin_ratio(f)
    Z = f * ratio
    ratio *= LOG2_E
    return ux * ratio, uy * ratio, uz * ratio, Z


# The node loop
# -------------
# Let d = g_e - g_x and b = gbar_e - gbar_x, so G = d - b. Whatever P is on the two sides, 1 - P is constant on each,
#     D = (1-P+) int_{G>0} d (n,1) + (1-P-) int_{G<0} d (n,1),       Dbar alike with b,
# so one pass that sums d (n,1) and b (n,1) over all nodes and over the nodes with G > 0 is enough: no value is stored
# per node and nothing is evaluated twice. I+ = sum over G > 0 of d - b, and I- = I+ - sum of (d - b).
# For a pair n, -n the density takes w (d1 + d2) and the flux w n (d1 - d2).
@kernel
def _sum_pairs(ax, ay, az, bx, by, bz, cx, cy, cz, dx, dy, dz, A, B, C, D, x, y, z, w):
    """Sums of ``d`` and ``b`` over the sphere (8) and over ``G > 0`` (8), each ``(x, y, z, t)``.

    a, b, c, d stand for e, ebar, x, xbar.
    """
    dt = bt = Dx = Dy = Dz = Bx = By = Bz = 0.0
    pdt = pbt = pdx = pdy = pdz = pbx = pby = pbz = 0.0
    for i in range(x.shape[0]):
        X, Y, Z, W = x[i], y[i], z[i], w[i]
        e1, e2 = pow2_pair(ax * X + ay * Y + az * Z)
        f1, f2 = pow2_pair(bx * X + by * Y + bz * Z)
        g1, g2 = pow2_pair(cx * X + cy * Y + cz * Z)
        h1, h2 = pow2_pair(dx * X + dy * Y + dz * Z)
        d1, d2 = A * e1 - C * g1, A * e2 - C * g2
        b1, b2 = B * f1 - D * h1, B * f2 - D * h2
        dt += W * (d1 + d2)
        odd = W * (d1 - d2)
        Dx += X * odd
        Dy += Y * odd
        Dz += Z * odd
        bt += W * (b1 + b2)
        odd = W * (b1 - b2)
        Bx += X * odd
        By += Y * odd
        Bz += Z * odd
        plus = d1 > b1
        d1 = d1 if plus else 0.0
        b1 = b1 if plus else 0.0
        plus = d2 > b2
        d2 = d2 if plus else 0.0
        b2 = b2 if plus else 0.0
        pdt += W * (d1 + d2)
        odd = W * (d1 - d2)
        pdx += X * odd
        pdy += Y * odd
        pdz += Z * odd
        pbt += W * (b1 + b2)
        odd = W * (b1 - b2)
        pbx += X * odd
        pby += Y * odd
        pbz += Z * odd
    return Dx, Dy, Dz, dt, Bx, By, Bz, bt, pdx, pdy, pdz, pdt, pbx, pby, pbz, pbt


# Beams
# -----
# For Z > BEAM_Z the pair trick would overflow, so the exponent is taken relative to Z, its largest value, and
# the amplitude goes with it: g(n) = N/(4 pi) 2 Z/(1 - exp(-2 Z)) 2**(a.n - |a|). A rule that does not resolve the beam
# misses it or counts it several times over; that is what plain quadrature gives, and the two branches agree where
# they meet.
@kernel
def _sum_beams(ax, ay, az, bx, by, bz, cx, cy, cz, dx, dy, dz, A, B, C, D, ta, tb, tc, td, x, y, z, w):
    """As `_sum_pairs`, for any exponent; ``ta .. td`` are the largest exponents, the amplitudes those at the peak."""
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


@scalar_kernel
def _peak(Z):
    """Return the Minerbo distribution at its peak, times ``4 pi/N``: ``2 Z/(1 - exp(-2 Z))``."""
    return 2.0 * Z / (1.0 - pow2(-min(2.0 * LOG2_E * Z, 1000.0))) if Z > 0.0 else 1.0


@kernel
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


@kernel
def sharp_flux(F, x, y, z, w, out):
    """Box3D of one sample ``F (6, 4)`` into ``out``; returns ``I_plus, I_minus, P_plus, P_minus``."""
    Ne, Nb = np.float64(F[0, 3]), np.float64(F[3, 3])
    Nx = 0.5 * (np.float64(F[1, 3]) + np.float64(F[2, 3]))
    Ny = 0.5 * (np.float64(F[4, 3]) + np.float64(F[5, 3]))
    ax, ay, az, Za = exponent(np.float64(F[0, 0]), np.float64(F[0, 1]), np.float64(F[0, 2]), Ne)
    bx, by, bz, Zb = exponent(np.float64(F[3, 0]), np.float64(F[3, 1]), np.float64(F[3, 2]), Nb)
    cx, cy, cz, Zc = exponent(
        0.5 * (np.float64(F[1, 0]) + np.float64(F[2, 0])),
        0.5 * (np.float64(F[1, 1]) + np.float64(F[2, 1])),
        0.5 * (np.float64(F[1, 2]) + np.float64(F[2, 2])),
        Nx,
    )
    dx, dy, dz, Zd = exponent(
        0.5 * (np.float64(F[4, 0]) + np.float64(F[5, 0])),
        0.5 * (np.float64(F[4, 1]) + np.float64(F[5, 1])),
        0.5 * (np.float64(F[4, 2]) + np.float64(F[5, 2])),
        Ny,
    )
    if max(max(Za, Zb), max(Zc, Zd)) > BEAM_Z:
        A = Ne * (_peak(Za) / FOUR_PI)
        B = Nb * (_peak(Zb) / FOUR_PI)
        C = Nx * (_peak(Zc) / FOUR_PI)
        D = Ny * (_peak(Zd) / FOUR_PI)
        ta, tb, tc, td = LOG2_E * Za, LOG2_E * Zb, LOG2_E * Zc, LOG2_E * Zd
        sums = _sum_beams(ax, ay, az, bx, by, bz, cx, cy, cz, dx, dy, dz, A, B, C, D, ta, tb, tc, td, x, y, z, w)
    else:
        A = Ne * (z_over_sinh(Za) / FOUR_PI)
        B = Nb * (z_over_sinh(Zb) / FOUR_PI)
        C = Nx * (z_over_sinh(Zc) / FOUR_PI)
        D = Ny * (z_over_sinh(Zd) / FOUR_PI)
        sums = _sum_pairs(ax, ay, az, bx, by, bz, cx, cy, cz, dx, dy, dz, A, B, C, D, x, y, z, w)
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


@kernel
def _convert(F, Dx, Dy, Dz, Dt, Bx, By, Bz, Bt, out):
    """Move ``D`` from e to mu and tau in equal parts, and ``B`` likewise for antineutrinos."""
    for c, d, b in ((0, Dx, Bx), (1, Dy, By), (2, Dz, Bz), (3, Dt, Bt)):
        out[0, c] = F[0, c] - d
        out[1, c] = F[1, c] + 0.5 * d
        out[2, c] = F[2, c] + 0.5 * d
        out[3, c] = F[3, c] - b
        out[4, c] = F[4, c] + 0.5 * b
        out[5, c] = F[5, c] + 0.5 * b


@kernel
def sharp_rows(F, x, y, z, w, out, start, stop):
    """`sharp_flux` for rows ``start:stop`` of ``F (n, 6, 4)``."""
    for i in range(start, stop):
        sharp_flux(F[i], x, y, z, w, out[i])


@kernel
def sharp_rows_diagnosed(F, x, y, z, w, out, crossing, start, stop):
    """As `sharp_rows`; ``crossing (n, 4)`` takes ``I_plus, I_minus, P_plus, P_minus``."""
    for i in range(start, stop):
        I_plus, I_minus, P_plus, P_minus = sharp_flux(F[i], x, y, z, w, out[i])
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
