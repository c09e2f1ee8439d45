"""Loss terms and violations with their derivatives by the predictions, in one pass over the species.

The formulas are those of `FourFluxLoss.formulas` and `Multipliers.violations`; the derivatives follow from them by the
chain rule. Sums are taken in double precision, and one term after the other into ``values (T,)``. The arrays are
``(n, 6, 4)``, predicted and true final four-fluxes in units of the row's total density; ``gradients (T, n, 6, 4)``.
"""

from __future__ import annotations

import numpy as np

from rheidae.system.numba import kernel

# Place of each term in `rheidae.estimator.losses.TERMS`.
DENSITY, MAGNITUDE, DIRECTION, UNPHYSICAL, RESIDUAL_L1, DISTANCE = range(6)


@kernel
def _number_of_directions(true, weight, eps, floor):
    count = 0.0
    for row in range(true.shape[0]):
        for species in range(6):
            x, y, z = float(true[row, species, 0]), float(true[row, species, 1]), float(true[row, species, 2])
            count += weight[row] if np.sqrt(x * x + y * y + z * z + eps) > floor else 0.0
    return count


@kernel
def _write(out, x, y, z, t):
    out[0], out[1], out[2], out[3] = x, y, z, t


@kernel
def _superluminal(length, N, floor, light, share, p, gradient):
    """``relu(length / max(N, floor) - light)``; its derivative by `p` times `share` is written to `gradient`."""
    inverse_N = 1.0 / max(N, floor)
    excess = length * inverse_N - light
    # Written so that a NaN stays one.
    if excess <= 0.0:
        _write(gradient, 0.0, 0.0, 0.0, 0.0)
        return 0.0
    slope = inverse_N * share
    by_N = -slope * length * inverse_N if floor <= N else 0.0
    slope /= length
    _write(gradient, slope * p[0], slope * p[1], slope * p[2], by_N)
    return excess


@kernel
def four_flux_terms(pred, true, weight, places, eps, floor, light, values, gradients):
    """Each row counts by its ``weight (n,)``; ``places[term]`` is a term's place among the T wanted ones, or -1."""
    count = pred.shape[0] * 6
    directions = max(1.0, _number_of_directions(true, weight, eps, floor)) if places[DIRECTION] >= 0 else 1.0
    values[:] = 0.0
    for row in range(pred.shape[0]):
        share = weight[row] / count
        share_of_directions = weight[row] / directions
        for species in range(6):
            p, q = pred[row, species], true[row, species]
            x, y, z, t = float(p[0]), float(p[1]), float(p[2]), float(p[3])
            X, Y, Z = float(q[0]), float(q[1]), float(q[2])
            dx, dy, dz, dt = x - X, y - Y, z - Z, t - float(q[3])
            length = np.sqrt(x * x + y * y + z * z + eps)
            length_true = np.sqrt(X * X + Y * Y + Z * Z + eps)
            inverse = 1.0 / length
            place = places[DENSITY]
            if place >= 0:
                values[place] += dt * dt * share
                _write(gradients[place, row, species], 0.0, 0.0, 0.0, 2.0 * share * dt)
            place = places[MAGNITUDE]
            if place >= 0:
                error = length - length_true
                values[place] += error * error * share
                slope = 2.0 * share * error * inverse
                _write(gradients[place, row, species], slope * x, slope * y, slope * z, 0.0)
            place = places[DIRECTION]
            if place >= 0:
                slope = 0.0
                inverse_true = 1.0 / length_true
                cos = (x * X + y * Y + z * Z) * inverse * inverse_true
                if length_true > floor:
                    values[place] += (1.0 - cos) * share_of_directions
                    slope = inverse * share_of_directions
                along, across = slope * cos * inverse, slope * inverse_true
                _write(
                    gradients[place, row, species], along * x - across * X, along * y - across * Y,
                    along * z - across * Z, 0.0,
                )  # fmt: skip
            place = places[UNPHYSICAL]
            if place >= 0:
                values[place] += share * _superluminal(
                    length, t, floor, light, share, p, gradients[place, row, species]
                )
            place = places[RESIDUAL_L1]
            if place >= 0:
                values[place] += (abs(dx) + abs(dy) + abs(dz) + abs(dt)) * 0.25 * share
                step = 0.25 * share
                _write(
                    gradients[place, row, species], step * np.sign(dx), step * np.sign(dy), step * np.sign(dz),
                    step * np.sign(dt),
                )  # fmt: skip
            place = places[DISTANCE]
            if place >= 0:
                distance = np.sqrt(dx * dx + dy * dy + dz * dz + dt * dt + eps)
                values[place] += (distance - np.sqrt(eps)) * share
                slope = share / distance
                _write(gradients[place, row, species], slope * dx, slope * dy, slope * dz, slope * dt)


@kernel
def violations(pred, floor, values, gradients):
    """``mean relu(-N)`` and ``mean relu(|F|/max(N, floor) - 1)``; T = 2."""
    share = 1.0 / (pred.shape[0] * 6)
    values[:] = 0.0
    for row in range(pred.shape[0]):
        for species in range(6):
            p = pred[row, species]
            x, y, z, t = float(p[0]), float(p[1]), float(p[2]), float(p[3])
            values[0] += 0.0 if t >= 0.0 else -t * share
            _write(gradients[0, row, species], 0.0, 0.0, 0.0, 0.0 if t >= 0.0 else -share)
            length = np.sqrt(x * x + y * y + z * z)
            values[1] += share * _superluminal(length, t, floor, 1.0, share, p, gradients[1, row, species])
