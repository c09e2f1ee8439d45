"""Numba kernels of `rheidae.estimator.networks.mixing`: a row's answer in one pass, without torch's calls.

What the networks see and what they set is of the same functions on the same nodes, so these are filled once.

Interface
---------
answer_rows(F, change, trust, unlike, ...)
    the change of states over their total density by the networks, and where that is not all.
mend_rows(F, change, trust, unlike, ...)
    what counts there beside the networks, which know too little of beams and of unlike mu and tau.
change_rows(F, change, ...)
    both, as `MixingModel.export_kernel` offers it.
"""

from __future__ import annotations

import numpy as np

from rheidae.mixing._asymptotic_kernels import asymptotic_rows, matrix_rows
from rheidae.mixing._box3d_kernels import NOISE
from rheidae.mixing._closure_kernels import LOG2_E, pow2, pow2_pair
from rheidae.mixing._nodes_kernels import alike, average_heavy
from rheidae.mixing._physical_kernels import limit_rows
from rheidae.mixing._survival_kernels import (
    describe_sides,
    enter_row,
    fill_axis,
    fill_matrices,
    fill_sphere,
    likeness_rows,
    mix_axis,
    mix_sphere,
    take_mean,
    take_shapes,
    trust_in_axis,
)
from rheidae.system.numba import driver, kernel, simd_function


@kernel
def _layer(x, weight, bias, y):
    simd_function()
    for j in range(np.uint64(y.shape[0])):
        y[j] = bias[j]
    for i in range(x.shape[0]):
        for j in range(np.uint64(y.shape[0])):
            y[j] += x[i] * weight[i, j]


@kernel
def _silu(y, x):
    simd_function()
    for j in range(np.uint64(y.shape[0])):
        x[j] = y[j] / (1.0 + pow2(min(max(-LOG2_E * y[j], -1000.0), 1000.0)))


@kernel
def _bounded(y, near, bounds, share, theta):
    """Add ``share max(near reach tanh(steepness y), least)``."""
    simd_function()
    for k in range(np.uint64(y.shape[0])):
        power = pow2(min(max(2.0 * LOG2_E * bounds[1, k] * y[k], -1000.0), 1000.0))
        theta[k] += share * max(near * bounds[0, k] * (1.0 - 2.0 / (1.0 + power)), np.float64(bounds[2, k]))


@kernel
def take_theta(features, mean, deviation, cut, width, weights, biases, bounds, x, y, theta):
    """Parameters ``theta (8)`` of a row, as `MixingModel` makes them of ``features (5)`` by perceptrons with SiLU.

    The features become standardised ones. ``weights`` and ``biases``: by layer, ``(members, inputs, outputs)`` and
    ``(members, 1, outputs)``. ``bounds (5, 8)``: reach, steepness, least value, offset and sign of each parameter.
    ``x``, ``y``: as long as the widest layer.
    """
    beyond = 0.0
    for k in range(features.shape[0]):
        z = (features[k] - mean[k]) / deviation[k]
        features[k] = min(max(z, -cut), cut)
        beyond += ((z - features[k]) / width) ** 2
    near, members = np.exp(-0.5 * beyond), weights[0].shape[0]
    for k in range(theta.shape[0]):
        theta[k] = 0.0
    for member in range(members):
        n = weights[0].shape[2]
        _layer(features, weights[0][member], biases[0][member, 0], y[:n])
        for layer in range(1, len(weights)):
            _silu(y[:n], x[:n])
            m = weights[layer].shape[2]
            _layer(x[:n], weights[layer][member], biases[layer][member, 0], y[:m])
            n = m
        _bounded(y[:n], near, bounds, 1.0 / members, theta)
    for k in range(theta.shape[0]):
        theta[k] = bounds[3, k] + bounds[4, k] * theta[k]


@kernel
def _of_species(D, change):
    """Change ``(6, 4)`` of all species from what nu_e and nubar_e lose, ``(8)``."""
    for nu in range(2):
        for k in range(4):
            lost = D[4 * nu + k]
            change[3 * nu, k] = -lost
            change[3 * nu + 1, k] = change[3 * nu + 2, k] = 0.5 * lost


@kernel
def _loss(own, sphere, h, axial, even, odd, axial_h, shares, loss):
    """Averages of 1 - P over one species, by its number and along its flux, into ``loss (2)``.

    ``shares``: factors to ``h`` on the nodes of the sphere and to ``axial_h`` on those of the axis. An empty species
    loses nothing.
    """
    loss[0] = loss[1] = 0.0
    if not own[4] > 0.0:
        return
    inverse = 1.0 / own[3] if own[3] > 0.0 else 0.0
    x, y, z = inverse * own[0], inverse * own[1], inverse * own[2]
    across = np.sqrt(x * x + y * y)
    N = lost = F = flux = 0.0
    half = sphere.shape[1] // 2
    for j in range(half):
        p, q, r, w = sphere[0, j], sphere[1, j], sphere[2, j], sphere[3, j]
        up, down = pow2_pair(own[0] * p + own[1] * q + own[2] * r)
        up, down, along = w * up, w * down, p * x + q * y + r * z
        N, lost = N + up + down, lost + up * h[j] + down * h[half + j]
        F, flux = F + along * (up - down), flux + along * (up * h[j] - down * h[half + j])
    # Where a share is 0, nothing has been put on its nodes.
    there = shares[0] != 0.0
    has_flux = abs(F) > 1e-6 * N
    loss[0] = shares[0] * lost / N if there else 0.0
    loss[1] = shares[0] * flux / F if there and has_flux else 0.0
    if shares[1] != 0.0:
        N = lost = F = flux = 0.0
        for j in range(axial.shape[1]):
            along = axial[0, j] * z * even[j] + across * odd[j]
            N, lost, F, flux = N + even[j], lost + even[j] * axial_h[j], F + along, flux + along * axial_h[j]
        loss[0] += shares[1] * lost / N if N > 0.0 else 0.0
        loss[1] += shares[1] * flux / F if F != 0.0 else 0.0
    if not has_flux:
        loss[1] = loss[0]


@driver
def answer_rows(
    F, change, trust, unlike, matrices, mean, deviation, cut, width, weights, biases, bounds, sphere, axial, tolerance,
    slack,
):  # fmt: skip
    """What becomes of ``F (n, 6, 4)``, over the total density, by the networks, into ``change (n, 6, 4)``.

    ``trust (n)``: how far that is to be trusted, as `calm_rows` has it; ``unlike (n)``: whether mu and tau differ by
    more than `slack`. ``matrices (n, 2, 6, 6)``: also the transition matrices of densities and of fluxes, species out
    and in; or None. The rest as of `take_theta` and `survival_rows`.
    """
    K, M = sphere.shape[1], axial.shape[1]
    moments, basis, species = np.empty((4, 4)), np.empty((3, 3)), np.empty((7, 6))
    terms, moved, even = np.empty((8, M)), np.empty((2, K)), np.empty((4, M))
    G, Gbar, work, axial_work = np.empty(K), np.empty(M), np.empty((12, K)), np.empty((12, M))
    on_sphere, on_axis, in_frame, D = np.empty((1, 8)), np.empty((1, 8)), np.empty(8), np.empty(8)
    losses = np.empty((4, 2))
    widest = 0
    for weight in weights:
        widest = max(widest, weight.shape[2])
    features, theta, x, y = np.empty(mean.shape[0]), np.empty(bounds.shape[1]), np.empty(widest), np.empty(widest)
    for i in range(F.shape[0]):
        net, net_flux, trust[i] = enter_row(F[i], moments, basis, species)
        unlike[i] = not alike(F[i], slack)
        on_sphere[:] = 0.0
        on_axis[:] = 0.0
        sign = 1.0 if net >= 0.0 else -1.0
        large, small = fill_sphere(species, sphere, sign, moved, G, work[5])
        axial_large, axial_small = fill_axis(species, axial, sign, terms, Gbar, axial_work[5], even)
        describe_sides(net, net_flux, (large, small), (axial_large, axial_small), Gbar, axial, features)
        take_theta(features, mean, deviation, cut, width, weights, biases, bounds, x, y, theta)
        q0, shape, axial_shape = take_shapes(theta)
        beta = theta[5] * trust_in_axis(net_flux, axial_large + axial_small)
        if beta != 0.0:
            mix_axis(
                species, Gbar, axial_large, axial_small, axial_shape, True, tolerance, False, terms, axial_work, on_axis
            )
        if beta != 1.0:
            mix_sphere(sphere, G, large, small, shape, True, tolerance, False, moved, work, on_sphere)
        take_mean(q0, beta, on_sphere[0], on_axis[0], moments, basis, in_frame, D)
        _of_species(D, change[i])
        if matrices is not None:
            shares = (
                q0 * (1.0 - beta) if small > NOISE and beta != 1.0 else 0.0,
                q0 * beta if axial_small > NOISE and beta != 0.0 else 0.0,
            )
            # Parts across the axis as `fill_axis` leaves them.
            for kind, row in ((0, 0), (1, 4), (2, 1), (3, 5)):
                _loss(
                    species[kind], sphere, work[6], axial, even[kind], terms[row], axial_work[6], shares, losses[kind]
                )
            fill_matrices(losses, matrices[i])


@driver
def mend_rows(F, change, trust, unlike, matrices, three, rule, spheres, narrow, levels):
    """Put the scheme's answer, and what the networks change of it, where they know too little, into ``change``.

    That is the scheme's change of ``F (n, 6, 4)``, and a share of what the networks' differs by from the scheme's on
    the mean heavy flavor. It is ``trust (n)``, and where mu and tau are ``unlike (n)``, times how alike they are on
    ``rule``; ``trust`` becomes it. Likewise ``matrices``, or None. The rest, and ``three``, as of `asymptotic_rows`.
    """
    first, last = np.int64(0), np.int64(1)
    mean, on_mean, own = np.empty((1, 6, 4)), np.empty((1, 6, 4)), np.empty((1, 6, 4))
    losses, likeness, by_mean, by_own = np.empty((4, 2)), np.empty(1), np.empty((1, 2, 6, 6)), np.empty((1, 2, 6, 6))
    for i in range(F.shape[0]):
        if not (unlike[i] or trust[i] < 1.0):
            continue
        here = F[i : i + 1]
        average_heavy(here[0], mean[0])
        asymptotic_rows(mean, spheres, narrow, levels, three, on_mean, first, last)
        limit_rows(mean, on_mean, first, last)
        if unlike[i]:
            asymptotic_rows(here, spheres, narrow, levels, three, own, first, last)
            limit_rows(here, own, first, last)
            likeness_rows(here, rule, likeness)
            trust[i] *= likeness[0]
        for s in range(6):
            for k in range(4):
                settled = on_mean[0, s, k] - mean[0, s, k]
                moved = own[0, s, k] - here[0, s, k] if unlike[i] else settled
                change[i, s, k] = moved + trust[i] * (change[i, s, k] - settled)
        # Numba compiles nothing where it knows that there is None.
        if matrices is not None:
            matrix_rows(mean, spheres[0], narrow[0], by_mean, first, last)
            for kind in range(2):
                for nu in range(2):
                    e = by_mean[0, kind, 3 * nu]
                    losses[nu, kind], losses[2 + nu, kind] = 1.0 - e[3 * nu], 2.0 * e[3 * nu + 1]
            fill_matrices(losses, by_mean[0])
            if unlike[i]:
                matrix_rows(here, spheres[0], narrow[0], by_own, first, last)
            for kind in range(2):
                for s in range(6):
                    for k in range(6):
                        settled = by_mean[0, kind, s, k]
                        moved = by_own[0, kind, s, k] if unlike[i] else settled
                        matrices[i, kind, s, k] = moved + trust[i] * (matrices[i, kind, s, k] - settled)


@driver
def change_rows(F, change, matrices, network, scheme):
    """Both in one; ``network`` and ``scheme``: what they have behind the matrices."""
    trust, unlike = np.empty(F.shape[0]), np.empty(F.shape[0], dtype=np.bool_)
    answer_rows(F, change, trust, unlike, matrices, *network)
    mend_rows(F, change, trust, unlike, matrices, True, *scheme)
