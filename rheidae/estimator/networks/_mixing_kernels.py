"""Numba kernel of `rheidae.estimator.networks.mixing`: the networks' answers, without torch's calls."""

from __future__ import annotations

import numpy as np

from rheidae.mixing._closure_kernels import LOG2_E, pow2
from rheidae.system.numba import driver, kernel, simd_function

#: Rows at a time: loops over them are vectors, and what is in between stays in the first cache.
BLOCK = 64


@kernel
def _layer(x, weight, bias, count, y):
    """``y (outputs, rows)`` from ``x (inputs, rows)``, the first `count` rows."""
    simd_function()
    for j in range(weight.shape[1]):
        for r in range(np.uint64(count)):
            y[j, r] = bias[j]
        for i in range(weight.shape[0]):
            factor = np.float64(weight[i, j])
            for r in range(np.uint64(count)):
                y[j, r] += factor * x[i, r]


@kernel
def _silu(y, outputs, count, x):
    simd_function()
    for j in range(outputs):
        for r in range(np.uint64(count)):
            x[j, r] = y[j, r] / (1.0 + pow2(min(max(-LOG2_E * y[j, r], -1000.0), 1000.0)))


@kernel
def _bounded(y, near, steepness, reach, least, share, count, total):
    """Add ``share max(near reach tanh(steepness y), least)`` of one parameter."""
    simd_function()
    for r in range(np.uint64(count)):
        power = pow2(min(max(2.0 * LOG2_E * steepness * y[r], -1000.0), 1000.0))
        total[r] += share * max(near[r] * reach * (1.0 - 2.0 / (1.0 + power)), least)


@driver
def theta_rows(features, mean, deviation, cut, width, weights, biases, bounds, theta):
    """Parameters ``theta (n, 8)`` of ``features (n, 5)``, as `MixingModel` makes them by perceptrons with SiLU.

    ``weights`` and ``biases``: by layer, ``(members, inputs, outputs)`` and ``(members, 1, outputs)``. ``bounds (5,
    8)``: reach, steepness, least value, offset and sign of each parameter.
    """
    reach, steepness, least, offset, sign = bounds[0], bounds[1], bounds[2], bounds[3], bounds[4]
    members, last = weights[0].shape[0], len(weights) - 1
    widest = 0
    for weight in weights:
        widest = max(widest, weight.shape[1], weight.shape[2])
    inside, near = np.empty((features.shape[1], BLOCK)), np.empty(BLOCK)
    total = np.empty((theta.shape[1], BLOCK))
    x, y = np.empty((widest, BLOCK)), np.empty((widest, BLOCK))
    for start in range(0, features.shape[0], BLOCK):
        count = min(BLOCK, features.shape[0] - start)
        for r in range(count):
            beyond = 0.0
            for k in range(inside.shape[0]):
                z = (features[start + r, k] - mean[k]) / deviation[k]
                inside[k, r] = min(max(z, -cut), cut)
                beyond += ((z - inside[k, r]) / width) ** 2
            near[r] = np.exp(-0.5 * beyond)
        total[:] = 0.0
        for member in range(members):
            _layer(inside, weights[0][member], biases[0][member, 0], count, y)
            for layer in range(1, last + 1):
                _silu(y, weights[layer].shape[1], count, x)
                _layer(x, weights[layer][member], biases[layer][member, 0], count, y)
            for k in range(theta.shape[1]):
                _bounded(
                    y[k], near, np.float64(steepness[k]), np.float64(reach[k]), np.float64(least[k]), 1.0 / members,
                    count, total[k],
                )  # fmt: skip
        for r in range(count):
            for k in range(theta.shape[1]):
                theta[start + r, k] = offset[k] + sign[k] * total[k, r]
