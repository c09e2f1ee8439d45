"""Numba kernels of states with beams: nodes that follow them, as `rheidae.mixing._nodes_kernels` has them."""

from __future__ import annotations

import numpy as np

from rheidae.mixing._nodes_kernels import (
    BEAM,
    COLUMNS,
    NODE_ROWS,
    VALUES,
    VANISHING,
    WEIGHT,
    enter,
    fill_nodes,
    total_of,
)
from rheidae.system.numba import driver, kernel


@kernel
def has_beam(F):
    """Whether a species of ``F (6, 4)`` that counts is narrower than a rule at rest resolves."""
    total = total_of(F)
    for s in range(6):
        N = F[s, 3]
        if VANISHING * total < N and F[s, 0] ** 2 + F[s, 1] ** 2 + F[s, 2] ** 2 > BEAM[0] * BEAM[0] * N * N:
            return True
    return False


@driver
def beam_rows(F, out):
    """Whether each row of ``F (n, 6, 4)`` has a beam."""
    for i in range(F.shape[0]):
        out[i] = has_beam(F[i])


@kernel
def fill_lepton_numbers(F, table, narrow, moments, Q, axes, species, scratch, work, L):
    """Lepton numbers of the flavors of ``F (6, 4)``, times weights, into ``L (3, ...)``; returns the number of nodes.

    The nodes are ``work[:3]``, in the frame of `axes`.
    """
    total, _, beams = enter(F, np.int64(3), moments, Q, axes, species)
    n = fill_nodes(np.int64(6), beams, species, moments, Q, table, narrow, scratch, work)
    for a in range(3):
        for i in range(n):
            L[a, i] = total * work[WEIGHT, i] * (work[VALUES + a, i] - work[VALUES + 3 + a, i])
    return n


@driver
def lepton_numbers_row(F, table, narrow, nodes, L):
    """`fill_lepton_numbers` of one state, with its ``nodes (3, m)`` at rest."""
    moments, Q, axes, species = np.empty((6, 4)), np.empty((3, 3)), np.empty((3, 3)), np.empty((6, COLUMNS))
    scratch, work = np.empty((10, 12)), np.empty((NODE_ROWS, nodes.shape[1]))
    n = fill_lepton_numbers(F, table, narrow, moments, Q, axes, species, scratch, work, L)
    for i in range(n):
        for k in range(3):
            nodes[k, i] = work[0, i] * axes[0, k] + work[1, i] * axes[1, k] + work[2, i] * axes[2, k]
    return n
