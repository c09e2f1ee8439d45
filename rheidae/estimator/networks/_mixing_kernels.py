"""Numba kernel of `rheidae.estimator.networks.mixing`: the networks' answers, without torch's calls."""

from __future__ import annotations

import numpy as np

from rheidae.mixing._closure_kernels import LOG2_E, pow2
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
def _silu(x):
    simd_function()
    for j in range(np.uint64(x.shape[0])):
        x[j] /= 1.0 + pow2(min(max(-LOG2_E * x[j], -1000.0), 1000.0))


@driver
def theta_rows(features, mean, deviation, cut, width, weights, biases, bounds, theta):
    """Parameters ``theta (n, 8)`` of ``features (n, 5)``, as `MixingModel` makes them by perceptrons with SiLU.

    ``weights`` and ``biases``: by layer, ``(members, inputs, outputs)`` and ``(members, 1, outputs)``. ``bounds (5,
    8)``: reach, steepness, least value, offset and sign of each parameter.
    """
    reach, steepness, least, offset, sign = bounds[0], bounds[1], bounds[2], bounds[3], bounds[4]
    members, widest = weights[0].shape[0], 0
    for weight in weights:
        widest = max(widest, weight.shape[1], weight.shape[2])
    inside, x, y = np.empty(features.shape[1]), np.empty(widest), np.empty(widest)
    for i in range(features.shape[0]):
        beyond = 0.0
        for k in range(inside.shape[0]):
            z = (features[i, k] - mean[k]) / deviation[k]
            inside[k] = min(max(z, -cut), cut)
            beyond += ((z - inside[k]) / width) ** 2
        near = np.exp(-0.5 * beyond)
        theta[i] = 0.0
        for member in range(members):
            n = inside.shape[0]
            x[:n] = inside
            for layer in range(len(weights)):
                m = weights[layer].shape[2]
                _layer(x[:n], weights[layer][member], biases[layer][member, 0], y[:m])
                if layer + 1 < len(weights):
                    _silu(y[:m])
                x[:m] = y[:m]
                n = m
            for k in range(n):
                theta[i, k] += max(near * reach[k] * np.tanh(steepness[k] * x[k]), least[k]) / members
        for k in range(theta.shape[1]):
            theta[i, k] = offset[k] + sign[k] * theta[i, k]
