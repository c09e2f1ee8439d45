"""Kernels of `rheidae.estimator.losses` and of the constraints: values and derivatives in one pass over the species.

The formulas are those of `FourFluxLoss.terms` and `Multipliers.violations`. Sums are taken in double precision. The
arrays are ``(n, 6, 4)``, predicted and true final four-fluxes in units of the row's total density.
"""

from __future__ import annotations

import numpy as np

from rheidae.system.numba import kernel

#: Position of each term in `rheidae.estimator.losses.TERMS`.
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
def four_flux_terms(pred, true, weight, places, eps, floor, light, values, gradients):
    """Terms ``values`` and their derivatives ``gradients (T, n, 6, 4)`` by `pred`.

    Each row counts with its ``weight (n)``. ``places[term]`` is the place of a term among the T that are wanted, -1 if
    it is not.
    """
    count = pred.shape[0] * 6
    directions = max(1.0, _number_of_directions(true, weight, eps, floor)) if places[DIRECTION] >= 0 else 1.0
    for place in range(values.shape[0]):
        values[place] = 0.0
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
                inverse_N = 1.0 / max(t, floor)
                excess = length * inverse_N - light
                slope = 0.0
                # Written so that a NaN stays one.
                if not excess <= 0.0:
                    values[place] += excess * share
                    slope = inverse_N * share
                by_N = -slope * length * inverse_N if t >= floor else 0.0
                slope *= inverse
                _write(gradients[place, row, species], slope * x, slope * y, slope * z, by_N)
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
def violations(pred, floor):
    """``mean relu(-N)`` and ``mean relu(|F|/max(N, floor) - 1)``."""
    negative = superluminal = 0.0
    for row in range(pred.shape[0]):
        for species in range(6):
            p = pred[row, species]
            x, y, z, t = float(p[0]), float(p[1]), float(p[2]), float(p[3])
            excess = np.sqrt(x * x + y * y + z * z) / max(t, floor) - 1.0
            negative += 0.0 if t >= 0.0 else -t
            superluminal += 0.0 if excess <= 0.0 else excess
    count = pred.shape[0] * 6
    return negative / count, superluminal / count


@kernel
def pull_violations(pred, floor, by_negative, by_superluminal, out):
    """Derivative ``out (n, 6, 4)`` of ``by_negative c0 + by_superluminal c1`` with the two `violations`."""
    count = pred.shape[0] * 6
    for row in range(pred.shape[0]):
        for species in range(6):
            p = pred[row, species]
            x, y, z, t = float(p[0]), float(p[1]), float(p[2]), float(p[3])
            length, inverse_N = np.sqrt(x * x + y * y + z * z), 1.0 / max(t, floor)
            slope = by_superluminal * inverse_N / count if length * inverse_N > 1.0 else 0.0
            by_N = -by_negative / count if t < 0.0 else 0.0
            if t >= floor:
                by_N -= slope * length * inverse_N
            # Where |F| = 0 there is no excess.
            slope = slope / length if slope != 0.0 else 0.0
            _write(out[row, species], slope * x, slope * y, slope * z, by_N)
