"""Kernels of `rheidae.estimator.pullback`: an activation and the batch norm before it, for the cotangents of all tasks.

Of a batch norm ``y = weight u + bias`` with ``u = (x - mean) inverse``, mean and inverse deviation taken from the n
rows, the cotangent c of y becomes

    weight inverse (c - <c> - u <c u>),    < > the mean over the rows,

because mean and deviation move with x: the part of c that is constant over the rows and the part along u have no
effect. The gradients of bias and weight are n <c> and n <c u>. A torch operation for each of these steps would go
through memory ten times; here it is twice, and a task's cotangents stay in the cache in between.
"""

from __future__ import annotations

import numpy as np

from rheidae.system.numba import driver, kernel, simd_function

#: Rows that are summed in single precision before the sum joins the total.
BLOCK = 64


@kernel
def _scale_and_sum(c, slope, x, mean, out, constant, along):
    simd_function()
    for row in range(c.shape[0]):
        for task in range(c.shape[1]):
            for k in range(c.shape[2]):
                value = c[row, task, k] * slope[row, k]
                out[row, task, k] = value
                constant[task, k] += value
                along[task, k] += value * (x[row, k] - mean[k])


@kernel
def _subtract(out, x, mean, constant, along, factor):
    simd_function()
    for row in range(out.shape[0]):
        for task in range(out.shape[1]):
            for k in range(out.shape[2]):
                rest = out[row, task, k] - constant[task, k] - along[task, k] * (x[row, k] - mean[k])
                out[row, task, k] = factor[k] * rest


@driver
def pull_normalised(c, slope, x, mean, inverse, weight, moving, out, bias_gradient, weight_gradient):
    """Take cotangents ``c (n, T, m)`` of ``activation(norm(x))`` to those of `x (n, m)`, which go to `out`.

    `slope (n, m)` is the derivative of the activation, `mean` and `inverse (m)` what the norm used, `moving` whether it
    took them from the batch. The gradients ``(T, m)`` are added to what is there.
    """
    n = c.shape[0]
    constant, along = np.empty_like(bias_gradient), np.empty_like(bias_gradient)
    for start in range(0, n, BLOCK):
        rows = slice(start, min(start + BLOCK, n))
        constant[:] = 0
        along[:] = 0
        _scale_and_sum(c[rows], slope[rows], x[rows], mean, out[rows], constant, along)
        bias_gradient += constant
        weight_gradient += along
    weight_gradient *= inverse
    constant[:] = bias_gradient / n if moving else 0 * bias_gradient
    along[:] = weight_gradient * inverse / n if moving else 0 * weight_gradient
    _subtract(out, x, mean, constant, along, weight * inverse)
