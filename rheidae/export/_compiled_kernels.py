"""Numba kernels of compiled models: from a caller's cells to states over their total density, and back."""

from __future__ import annotations

import numpy as np

from rheidae.estimator._uncertainty_kernels import deviation_rows, part_rows, term_rows
from rheidae.linear._beams_kernels import has_beam
from rheidae.linear._regression_kernels import FEATURES, features, features_of_beams, rates
from rheidae.mixing._asymptotic_kernels import asymptotic_rows, crossing_rows
from rheidae.mixing._nodes_kernels import total_of
from rheidae.mixing._physical_kernels import limit_row
from rheidae.mixing._variation_kernels import KINDS
from rheidae.system.numba import driver, exact_kernel, kernel

#: Cells at a time, of which there are copies.
BLOCK = 64


@kernel
def _has_answer(F):
    """Whether a cell has neutrinos, and numbers alone."""
    for s in range(6):
        for k in range(4):
            if not np.isfinite(F[s, k]):
                return False
    return total_of(F) > 0.0


@kernel
def _rest(F):
    """0, NaN where a number of the cell is none."""
    rest = 0.0
    for s in range(6):
        for k in range(4):
            rest += 0.0 * F[s, k]
    return rest


# Beams take every digit, and what does not change has none in doubt: not by a reciprocal.
@exact_kernel
def _over(number, total):
    return number / total


@kernel
def enter_block(F, states, relative):
    """Cells ``F (n, 6, 4)``, over their total density if `relative`, into ``states``; isotropic where none answers."""
    for i in range(F.shape[0]):
        answers = _has_answer(F[i])
        total = total_of(F[i]) if relative else 1.0
        for s in range(6):
            for k in range(4):
                states[i, s, k] = _over(F[i, s, k], total) if answers else np.float64(k == 3)


@kernel
def leave_block(F, change, matrices, out, relative):
    """Final states from ``change``, which is lost: physical, as they were in vacuum, NaN where a number is none.

    Where that shortens a change, ``matrices (n, 2, 6, 6)``, or None, follow. `out` may be `F`.
    """
    for i in range(F.shape[0]):
        total = total_of(F[i]) if relative else 1.0
        for s in range(6):
            for k in range(4):
                change[i, s, k] = F[i, s, k] + total * change[i, s, k]
        factor = limit_row(F[i], change[i])
        if matrices is not None and factor < 1.0:
            for kind in range(2):
                for a in range(6):
                    for b in range(6):
                        matrices[i, kind, a, b] *= factor
                    matrices[i, kind, a, a] += 1.0 - factor
        answers, rest = _has_answer(F[i]), _rest(F[i])
        for s in range(6):
            for k in range(4):
                out[i, s, k] = change[i, s, k] if answers else F[i, s, k] + rest


@driver
def describe_block(F, states, rule, network, unit, nodes, rate, crosses):
    """Growth rates ``rate (n)`` and crossings ``crosses (n, 3)`` of cells and of what `enter_block` made of them.

    Zero without an answer; `copy_block` puts NaN. ``rule`` and ``network``: of
    `rheidae.linear.regression.constants`, whose rates are times ``unit``; ``nodes``: of `crossing_rows`.
    """
    found = np.empty((F.shape[0], 3), dtype=np.bool_)
    x, scale = np.empty((F.shape[0], 3, FEATURES)), np.empty((F.shape[0], 3))
    half, weights, table, narrow = rule
    features(states, half, weights, x, scale)
    for i in range(F.shape[0]):
        if has_beam(states[i]):
            features_of_beams(states[i : i + 1], table, narrow, x[i : i + 1], scale[i : i + 1])
    rates(x, scale, *network, rate)
    crossing_rows(states, *nodes, found, np.int64(0), F.shape[0])
    for i in range(F.shape[0]):
        answers = _has_answer(F[i])
        rate[i] = unit * total_of(F[i]) * rate[i] if answers else 0.0
        for pair in range(3):
            crosses[i, pair] = np.float64(answers and found[i, pair])


@driver
def judge_block(F, states, final, scheme, learned, std, outside):
    """Standard deviations ``std (n, 6, 4)``, and ``outside (n)``, 1 or 0; see `rheidae.estimator.uncertainty`.

    Zero without an answer; `copy_block` puts NaN. ``scheme``: what `term_rows` has before its answers; ``learned``:
    what `part_rows` has.
    """
    n = F.shape[0]
    terms, far, predicted = np.empty((n, 6, 2, KINDS + 1)), np.empty((n, 6, 4)), np.empty((n, 6, 4))
    share, near, apart, beyond = np.empty(n), np.empty((n, 6, 2)), np.empty((n, 6, 2)), np.empty(n)
    for i in range(n):
        answers, total = _has_answer(F[i]), total_of(F[i])
        for s in range(6):
            for k in range(4):
                predicted[i, s, k] = _over(final[i, s, k], total) if answers else states[i, s, k]
    term_rows(states, *scheme, True, terms, far)
    part_rows(states, predicted, far, terms, *learned, share, near, apart, beyond)
    deviation_rows(states, predicted, share, near, apart, std)
    for i in range(n):
        answers, total = _has_answer(F[i]), total_of(F[i])
        outside[i] = np.float64(answers and beyond[i] > 0.0)
        for s in range(6):
            for k in range(4):
                std[i, s, k] = total * std[i, s, k] if answers else 0.0


@kernel
def copy_block(F, block, out):
    """What was found of cells ``F (n, 6, 4)``, ``block (n, ...)``, into ``out``; NaN where a number is none."""
    each = block.size // block.shape[0]
    for i in range(F.shape[0]):
        rest = _rest(F[i])
        for k in range(i * each, i * each + each):
            out.flat[k] = block.flat[k] + rest


@driver
def asymptotic_change(F, change, matrices, spheres, narrow, levels):
    """The change of ``F (n, 6, 4)`` by `asymptotic_rows` into ``change``."""
    asymptotic_rows(F, spheres, narrow, levels, True, change, np.int64(0), F.shape[0])
    for i in range(F.shape[0]):
        for s in range(6):
            for k in range(4):
                change[i, s, k] -= F[i, s, k]
