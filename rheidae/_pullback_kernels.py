"""Kernels of `rheidae.pullback`: an activation and the batch norm before it, for the cotangents of all tasks.

Of a batch norm ``y = weight u + bias`` with ``u = (x - mean) inverse``, mean and inverse deviation taken from the n
rows, the cotangent c of y becomes

    weight inverse (c - <c> - u <c u>),    < > the mean over the rows,

because mean and deviation move with x: the part of c that is constant over the rows and the part along u have no
effect. The gradients of bias and weight are n <c> and n <c u>. A torch operation for each of these steps would go
through memory ten times; here it is twice, and a task's cotangents stay in the cache in between.
"""

from __future__ import annotations

import numpy as np

from rheidae._numba import driver, kernel, simd_function

#: Rows that are summed in single precision before the sum joins the total.
BLOCK = 64


@kernel
def _scale_and_sum(c, slope, x, mean, out, constant, along):
    simd_function()
    for row in range(c.shape[0]):
        for k in range(c.shape[1]):
            value = c[row, k] * slope[row, k]
            out[row, k] = value
            constant[k] += value
            along[k] += value * (x[row, k] - mean[k])


@kernel
def _subtract(out, x, mean, constant, along, factor):
    simd_function()
    for row in range(out.shape[0]):
        for k in range(out.shape[1]):
            out[row, k] = factor[k] * (out[row, k] - constant[k] - along[k] * (x[row, k] - mean[k]))


@driver
def pull_normalised(c, slope, x, mean, inverse, weight, moving, out, bias_gradient, weight_gradient):
    """Take cotangents ``c (T, n, m)`` of ``activation(norm(x))`` to those of `x (n, m)`, which go to `out`.

    `slope (n, m)` is the derivative of the activation, `mean` and `inverse (m)` what the norm used, `moving` whether it
    took them from the batch. The gradients ``(T, m)`` are written too.
    """
    n = c.shape[1]
    constant, along, factor = np.empty_like(weight), np.empty_like(weight), weight * inverse
    for task in range(c.shape[0]):
        bias_gradient[task] = 0
        weight_gradient[task] = 0
        for start in range(0, n, BLOCK):
            rows = slice(start, min(start + BLOCK, n))
            constant[:] = 0
            along[:] = 0
            _scale_and_sum(c[task, rows], slope[rows], x[rows], mean, out[task, rows], constant, along)
            for k in range(c.shape[2]):
                bias_gradient[task, k] += constant[k]
                weight_gradient[task, k] += along[k]
        for k in range(c.shape[2]):
            weight_gradient[task, k] *= inverse[k]
            constant[k] = bias_gradient[task, k] / n if moving else 0
            along[k] = weight_gradient[task, k] * inverse[k] / n if moving else 0
        _subtract(out[task], x, mean, constant, along, factor)
