"""Numba kernels of `rheidae.estimator.networks.mixing`: a row's answer in one pass, without torch's calls.

What the networks see and what they set is of the same functions on the same nodes, so these are filled once.
"""

from __future__ import annotations

import numpy as np

from rheidae.mixing._closure_kernels import LOG2_E, pow2
from rheidae.mixing._nodes_kernels import alike
from rheidae.mixing._survival_kernels import (
    describe_sides,
    enter_row,
    fill_axis,
    fill_sphere,
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


@driver
def answer_rows(
    F, mean, deviation, cut, width, weights, biases, bounds, sphere, axial, tolerance, slack, D, calm, unlike
):  # fmt: skip
    """What nu_e and nubar_e of ``F (n, 6, 4)`` lose, over the total density, into ``D (n, 8)``; beams fade out.

    ``calm (n)``: how far that is to be trusted, as `calm_rows` has it. ``unlike (n)``: whether mu and tau differ by
    more than `slack`. The rest as of `take_theta` and `survival_rows`.
    """
    K, M = sphere.shape[1], axial.shape[1]
    moments, basis, species = np.empty((4, 4)), np.empty((3, 3)), np.empty((7, 6))
    terms, moved, even = np.empty((8, M)), np.empty((2, K)), np.empty((4, M))
    G, Gbar, work, axial_work = np.empty(K), np.empty(M), np.empty((12, K)), np.empty((12, M))
    on_sphere, on_axis, change = np.empty((1, 8)), np.empty((1, 8)), np.empty(8)
    widest = 0
    for weight in weights:
        widest = max(widest, weight.shape[2])
    features, theta, x, y = np.empty(mean.shape[0]), np.empty(bounds.shape[1]), np.empty(widest), np.empty(widest)
    for i in range(F.shape[0]):
        net, net_flux, calm[i] = enter_row(F[i], moments, basis, species)
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
        take_mean(q0, beta, on_sphere[0], on_axis[0], moments, basis, change, D[i])
