"""Random physical states for the tests."""

import numpy as np
from hypothesis import strategies as st


def random_states(n, seed=0, max_flux_factor=0.75, alike=False):
    """(n, 6, 4) four-fluxes of order one; `alike`: mu equals tau, as in the simulations."""
    rng = np.random.default_rng(seed)
    N = rng.uniform(0.3, 1.0, (n, 6))
    direction = rng.normal(size=(n, 6, 3))
    direction /= np.linalg.norm(direction, axis=2, keepdims=True)
    F = np.empty((n, 6, 4))
    F[..., 3] = N
    F[..., :3] = direction * (N * rng.uniform(0, max_flux_factor, (n, 6)))[..., None]
    if alike:
        F[:, 2], F[:, 5] = F[:, 1], F[:, 4]
    return F


def nearby_states(n, seed=0, spread=0.01):
    """One state with a crossing, mu equal to tau, total density 1, and noise of a relative size on its numbers."""
    state = np.zeros((6, 4))
    state[:, 3] = [1.0, 0.3, 0.3, 0.9, 0.3, 0.3]
    state[0, :3], state[3, :3], state[[1, 2, 4, 5], 2] = [0.0, 0.1, 0.2], [0.1, 0.0, 0.4], 0.15
    noise = np.random.default_rng(seed).normal(scale=spread, size=(n, 6, 4))
    noise[:, [2, 5]] = noise[:, [1, 4]]
    F = state * (1 + noise)
    return F / F[:, :, 3].sum(axis=1)[:, None, None]


@st.composite
def states(draw, max_flux_factor=0.999):
    """One (1, 6, 4) state of order one, chosen by hypothesis; densities from empty to 1."""
    number = st.floats(0, 1, width=32)
    F = np.zeros((1, 6, 4))
    for species in range(6):
        N = draw(number)
        cos, phi, f = draw(st.floats(-1, 1)), draw(st.floats(0, 6.283)), draw(st.floats(0, max_flux_factor))
        sin = np.sqrt(1 - cos**2)
        F[0, species] = N * f * sin * np.cos(phi), N * f * sin * np.sin(phi), N * f * cos, N
    if F[0, :, 3].sum() < 1e-3:
        F[0, 0, 3] = 1.0
    return F


def random_rotation(seed):
    rng = np.random.default_rng(seed)
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q *= np.sign(np.diag(r))
    return q if np.linalg.det(q) > 0 else -q


def turn(F, rotation):
    """Turn the fluxes of (n, ..., 4) four-fluxes."""
    out = np.array(F)
    out[..., :3] = F[..., :3] @ rotation.T
    return out


def conservation_error(before, after):
    """Largest change of flavor sums and of lepton number per flavor, over the total density."""
    total = before[:, :, 3].sum(axis=1)[:, None, None]
    change = (after - before) / total
    nu, nubar = change[:, :3], change[:, 3:]
    sums = max(np.abs(nu.sum(axis=1)).max(), np.abs(nubar.sum(axis=1)).max())
    return max(sums, np.abs(nu[:, :, 3] - nubar[:, :, 3]).max())
