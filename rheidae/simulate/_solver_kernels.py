"""Numba kernels of the pseudo-spectral solver; no validation here.

The matrices
------------
Along direction n_j the density matrices of neutrinos and (conjugated) antineutrinos obey, with c = 1,

    (d_t + n_j.grad) rho_j = -i [H_j, rho_j],    H_j = mu sum_k (1 - n_j.n_k) (rho_k - rhobar_k).

Everything that starts as flavor a in direction k is turned by the same unitary matrix, so that rho_k = sum_a N_ak Q_ak
and rhobar_k = sum_a Nbar_ak Q_ak with one projector Q_ak, |a><a| at first, for both. The three add up to 1; what is
left of H are Q_e and Q_mu with the weights

    G_e = mu (N_e - Nbar_e - N_tau + Nbar_tau),    G_mu likewise;

where mu and tau start alike G_mu = 0, and Q_e alone is followed (one matrix a direction in the place of two). A term of
H proportional to 1 turns nothing. The isotropic initial potential, diag(sum G_e, sum G_mu, 0), is diagonal and the
same everywhere: it is left out of H, which is the frame that turns with it.

A Hermitian matrix of trace 1 is kept as 8 numbers: 00, 11, re 01, im 01, re 02, im 02, re 12, im 12. Memory:
``q[pair, matrix, side, number, cell]`` in float32; the two sides of a pair are opposite directions n and -n.

The step
--------
Strang splitting: half a step of advection, a step of turning, half a step of advection; the halves of two steps
that follow each other are one. Advection is exact for the waves of the box: a Fourier shift, which is a product of
shifts along x, y and z, each of them multiplication with a circulant matrix of cells x cells. For up to 128 cells a
side these dense products (`shift`, BLAS) are quicker than transforms there and back: 2.8 times for 16 cells, 2.0 times
for 32 (scipy.fft, float32, one thread).

Turning is local: fourth-order Runge-Kutta in blocks of `BLOCK` cells, whose matrices of all directions stay in the
second cache. Each stage goes through the directions once: it forms H_j = H_0 - n_j.H from the moments H_0 = sum G Q,
H = sum G n Q of the stage before, turns Q_j, and adds what comes out to the moments of the next stage. Opposite
directions share n.H and the products with n.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg.cython_blas  # noqa: F401 - Numba's np.dot: loaded now, so that its threads can be limited

from rheidae.system.numba import driver, inlined_kernel, kernel, simd_function

BLOCK = 64
"""Cells that are turned together."""

NUMBERS = 8
"""Real numbers of a matrix."""

_B = BLOCK
_SIDE = NUMBERS * _B
_PAIR = 2 * _SIDE
_ONE, _TWO, _THREE, _SIX = np.float32(1), np.float32(2), np.float32(3), np.float32(6)


@inlined_kernel
def _along(H, i, nx, ny, nz):
    """A number of n.H."""
    return nx * H[8 * _B + i] + ny * H[16 * _B + i] + nz * H[24 * _B + i]


@inlined_kernel
def _turn_one(h, trace, y, y0, total, i, weight, reach):
    """One stage of the matrix at ``i``, turned by ``h``, seven numbers of whose trace is `trace`; returns the new one.

    ``-i [h, q]``: the diagonal from Im(h_ab conj(q_ab)), the rest written out; q_ba = conj(q_ab).
    """
    a0, a1, ar, ai, br, bi, cr, ci = h
    a2 = trace - a0 - a1
    q0, q1, xr, xi = y[i], y[_B + i], y[2 * _B + i], y[3 * _B + i]
    yr, yi, zr, zi = y[4 * _B + i], y[5 * _B + i], y[6 * _B + i], y[7 * _B + i]
    q2 = _ONE - q0 - q1
    i01, i02, i12 = ai * xr - ar * xi, bi * yr - br * yi, ci * zr - cr * zi
    k = (
        _TWO * (i01 + i02), _TWO * (i12 - i01),
        (a0 - a1) * xi + ai * (q1 - q0) + (bi * zr - br * zi) - (yi * cr - yr * ci),
        -((a0 - a1) * xr + ar * (q1 - q0) + (br * zr + bi * zi) - (yr * cr + yi * ci)),
        (a0 - a2) * yi + bi * (q2 - q0) + (ar * zi + ai * zr) - (xr * ci + xi * cr),
        -((a0 - a2) * yr + br * (q2 - q0) + (ar * zr - ai * zi) - (xr * cr - xi * ci)),
        (a1 - a2) * zi + ci * (q2 - q1) + (ar * yi - ai * yr) - (xr * bi - xi * br),
        -((a1 - a2) * zr + cr * (q2 - q1) + (ar * yr + ai * yi) - (xr * br + xi * bi)),
    )  # fmt: skip
    for c in range(8):
        total[c * _B + i] += weight * k[c]
        y[c * _B + i] = y0[c * _B + i] + reach * k[c]


@kernel
def _stage(y, y0, total, H, H_next, trace, nx, ny, nz, g_plus, g_minus, weight, reach):
    """One stage for a pair of opposite directions in one block.

    ``y, y0, total (2 * 8 * BLOCK)``: matrices of this stage (in: where H acts; out: those of the next), at the
    beginning of the step, and the sum that becomes its end. ``H (4 * 8 * BLOCK)``: moments 1, x, y, z of this stage.
    """
    simd_function()
    for i in range(_B):
        # H_0 - n.H for n, H_0 + n.H for -n.
        p0, p1 = _along(H, i, nx, ny, nz), _along(H, _B + i, nx, ny, nz)
        p2, p3 = _along(H, 2 * _B + i, nx, ny, nz), _along(H, 3 * _B + i, nx, ny, nz)
        p4, p5 = _along(H, 4 * _B + i, nx, ny, nz), _along(H, 5 * _B + i, nx, ny, nz)
        p6, p7 = _along(H, 6 * _B + i, nx, ny, nz), _along(H, 7 * _B + i, nx, ny, nz)
        h0, h1, h2, h3 = H[i], H[_B + i], H[2 * _B + i], H[3 * _B + i]
        h4, h5, h6, h7 = H[4 * _B + i], H[5 * _B + i], H[6 * _B + i], H[7 * _B + i]
        h = h0 - p0, h1 - p1, h2 - p2, h3 - p3, h4 - p4, h5 - p5, h6 - p6, h7 - p7
        _turn_one(h, trace, y, y0, total, i, weight, reach)
        h = h0 + p0, h1 + p1, h2 + p2, h3 + p3, h4 + p4, h5 + p5, h6 + p6, h7 + p7
        _turn_one(h, -trace, y, y0, total, 8 * _B + i, weight, reach)
        # Moments: the sum of both sides counts for 1, their difference for n.
        for c in range(8):
            u, v = g_plus * y[c * _B + i], g_minus * y[(8 + c) * _B + i]
            H_next[c * _B + i] += u + v
            H_next[(8 + c) * _B + i] += nx * (u - v)
            H_next[(16 + c) * _B + i] += ny * (u - v)
            H_next[(24 + c) * _B + i] += nz * (u - v)


@kernel
def _load(q, start, width, y, y0, total, H, g, nx, ny, nz):
    """Cells ``start`` to ``start + width`` of one matrix of one direction, ``q (8, cells)``, into the work arrays."""
    simd_function()
    for c in range(NUMBERS):
        for i in range(width):
            # Unsigned: an index that might be negative would be looked at, and the loop not be vectorised.
            v = q[c, np.uintp(start + i)]
            y[c * _B + i] = v
            y0[c * _B + i] = v
            total[c * _B + i] = v
            v *= g
            H[c * _B + i] += v
            H[(8 + c) * _B + i] += nx * v
            H[(16 + c) * _B + i] += ny * v
            H[(24 + c) * _B + i] += nz * v


@kernel
def turn(q, directions, G, trace, potential, time, y, y0, total, H):
    """Turn all matrices of all cells by one step.

    ``q (pairs, matrices, 2, 8, cells)``; ``directions (pairs, 3)``; ``G (pairs, matrices, 2)``, 1/length; ``trace
    (pairs)`` of H along the first direction of each pair; ``potential (2)``: the diagonal that is left out; work arrays
    ``y, y0, total (pairs * matrices * 2 * 8 * BLOCK)``, ``H (2, 4 * 8 * BLOCK)``. All float32.
    """
    pairs, matrices, cells = q.shape[0], q.shape[1], q.shape[4]
    for b in range(0, cells, _B):
        width = min(_B, cells - b)
        for i in range(4 * _SIDE):
            H[0, i] = 0
        for p in range(pairs):
            nx, ny, nz = directions[p, 0], directions[p, 1], directions[p, 2]
            for s in range(matrices):
                o = (p * matrices + s) * _PAIR
                e = o + _SIDE
                _load(q[p, s, 0], b, width, y[o:e], y0[o:e], total[o:e], H[0], G[p, s, 0], nx, ny, nz)
                o, e = e, e + _SIDE
                _load(q[p, s, 1], b, width, y[o:e], y0[o:e], total[o:e], H[0], G[p, s, 1], -nx, -ny, -nz)
        for stage in range(4):
            now, after = H[stage % 2], H[1 - stage % 2]
            for i in range(4 * _SIDE):
                after[i] = 0
            for i in range(_B):
                now[i] -= potential[0]
                now[_B + i] -= potential[1]
            weight = time / _SIX if stage == 0 or stage == 3 else time / _THREE
            reach = time if stage == 2 else time / _TWO
            for p in range(pairs):
                nx, ny, nz = directions[p, 0], directions[p, 1], directions[p, 2]
                for s in range(matrices):
                    o = (p * matrices + s) * _PAIR
                    e = o + _PAIR
                    _stage(
                        y[o:e], y0[o:e], total[o:e], now, after, trace[p], nx, ny, nz, G[p, s, 0], G[p, s, 1],
                        weight, reach,
                    )  # fmt: skip
        o = 0
        for p in range(pairs):
            for s in range(matrices):
                for side in range(2):
                    for c in range(NUMBERS):
                        for i in range(width):
                            q[p, s, side, c, np.uintp(b + i)] = total[np.uintp(o + i)]
                        o += _B


@driver
def shift(q, C, cells, dimensions):
    """Advect each direction by its Fourier shift.

    ``q (directions, numbers, cells**dimensions)``; ``C (directions, dimensions, cells, cells)``: circulant matrices
    along x, y, z (x runs fastest among the cells); float32.
    """
    rows = q.shape[2] // cells
    a = np.empty((cells, rows), dtype=np.float32)
    b = np.empty((cells, rows), dtype=np.float32)
    for j in range(q.shape[0]):
        for c in range(q.shape[1]):
            # Each product takes the last axis to the front: after as many as there are axes all are back in place.
            target = q[j, c].reshape(cells, rows)
            source = q[j, c].reshape(rows, cells)
            if dimensions == 1:
                np.dot(C[j, 0], source.T, a)
                for i in range(cells):
                    target[i, 0] = a[i, 0]
            elif dimensions == 2:
                np.dot(C[j, 0], source.T, a)
                np.dot(C[j, 1], a.reshape(rows, cells).T, target)
            else:
                np.dot(C[j, 0], source.T, a)
                np.dot(C[j, 1], a.reshape(rows, cells).T, b)
                np.dot(C[j, 2], b.reshape(rows, cells).T, target)


@kernel
def means(q, out):
    """Mean diagonals: ``q (pairs, matrices, 2, 8, cells)`` to ``out (pairs, matrices, 2, 2)``, float64 sums."""
    for p in range(q.shape[0]):
        for s in range(q.shape[1]):
            for side in range(2):
                for c in range(2):
                    total = 0.0
                    for i in range(q.shape[4]):
                        total += np.float64(q[p, s, side, c, i])
                    out[p, s, side, c] = total / q.shape[4]
