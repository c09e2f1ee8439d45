"""Asymptotic mixing: its definition, its limits and symmetries, and what it says about simulations."""

from importlib import resources

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import brentq

import rheidae
from benchmarks import converged
from rheidae import fourflux
from rheidae.datasets import SETTLED
from rheidae.exceptions import FourFluxError
from rheidae.export.graph import FluxGraph
from rheidae.mixing import _asymptotic_kernels as kernels
from rheidae.mixing import reference
from rheidae.mixing.asymptotic import (
    asymptotic_flux,
    asymptotic_survival,
    asymptotic_transitions,
    crossings,
    levels_of,
    three_flavors,
)  # fmt: skip
from rheidae.mixing.power import power_flux
from rheidae.mixing.quadrature import lebedev
from rheidae.mixing.survival import calm
from rheidae.preprocess.trainingset import evaluate
from rheidae.scoring.metrics import flux_error, skill
from tests.rawfiles import config_for
from tests.states import conservation_error, random_rotation, random_states, states, turn


def distance(A, B, F):
    """Largest four-flux distance of a species, over the total density, for each row."""
    return np.linalg.norm(A - B, axis=2).max(axis=1) / F[..., 3].sum(axis=1)


def margin(F):
    """Smallest ``N - |F|`` over the total density."""
    room = np.minimum(F[..., 3], F[..., 3] - np.linalg.norm(F[..., :3], axis=2))
    return (room / F[..., 3].sum(axis=1)[:, None]).min()


def settled(name):
    with resources.as_file(resources.files("rheidae.datasets") / "data" / name) as path, h5py.File(path) as file:
        return tuple(fourflux.from_emu(file[f"F4_{when}(1|ccm)"][()]) for when in ("initial", "final"))


# ---------------------------------------------------------------- definition


def principal_frame(F):
    """The rotation that brings the axes of a state (6, 4) to those of the rule of `reference`, at rest."""
    lepton = F[:3, :3] - F[3:, :3]
    pairs = np.stack([lepton[a] - lepton[b] for a, b in reference.PAIRS])
    axes = np.linalg.eigh(F[:, :3].T @ F[:, :3] + pairs.T @ pairs)[1].T
    half = np.sqrt(0.5)
    return np.array([[half, 0, half], [0, 1, 0], [-half, 0, half]]) @ axes


@pytest.mark.parametrize("alike", [True, False])
def test_is_the_reference_in_the_frame_of_the_state(alike):
    F = random_states(6, alike=alike)
    rotations = [principal_frame(state) for state in F]
    turned = np.concatenate([turn(F[i : i + 1], rotation) for i, rotation in enumerate(rotations)])
    expected = reference.asymptotic(turned, order=53)
    after = asymptotic_flux(F, order=53, levels=1)
    assert distance(expected, turned, F).mean() > 0.03
    turned = np.concatenate([turn(after[i : i + 1], rotation) for i, rotation in enumerate(rotations)])
    assert distance(turned, expected, F).max() < 1e-9


def test_a_state_about_an_axis_against_adaptive_quadrature():
    axis = np.array([0.48, 0.6, 0.64])
    F = random_states(6, 3, alike=True)
    sign = np.random.default_rng(0).choice([-1, 1], (6, 6))
    sign[:, [2, 5]] = sign[:, [1, 4]]
    along = sign * np.linalg.norm(F[..., :3], axis=2)
    F[..., :3] = along[..., None] * axis
    change = F - asymptotic_flux(F, order=131)
    assert (change[:, 0, 3] != 0).sum() >= 4
    for i in range(6):
        lost = lost_about_an_axis(F[i, :, 3], along[i])
        np.testing.assert_allclose([change[i, 0, 3], change[i, 0, :3] @ axis], lost, atol=2e-5)


def lost_about_an_axis(N, along):
    """What electron neutrinos lose of density and flux, mu = tau, by integrals over ``mu = cos(theta)``."""
    Z = np.sign(along) * reference.inverse_langevin(np.abs(along) / N)

    def g(s, mu):
        return N[s] / 2 * Z[s] / np.sinh(Z[s]) * np.exp(Z[s] * mu)

    def lepton(mu):
        return np.sign(N[0] - N[3] - N[1] + N[4]) * (g(0, mu) - g(3, mu) - g(1, mu) + g(4, mu))

    grid = np.linspace(-1, 1, 2001)
    values = np.array([lepton(mu) for mu in grid])
    roots = [brentq(lepton, grid[k], grid[k + 1]) for k in range(2000) if values[k] * values[k + 1] < 0]
    if not roots:
        return [0, 0]

    def lost(moved, s):
        def integrand(mu):
            G = lepton(mu)
            return (2 / 3 - (2 / 3 if G > 0 else 1 / 3) * G / np.hypot(G, s)) * moved(mu)

        return quad(integrand, -1, 1, points=roots, limit=400, epsabs=1e-13)[0]

    s = np.exp(brentq(lambda log_s: lost(lepton, np.exp(log_s)), -25, 10, xtol=1e-12))
    return [lost(lambda mu: g(0, mu) - g(1, mu), s), lost(lambda mu: (g(0, mu) - g(1, mu)) * mu, s)]


def test_every_flux_factor_about_an_axis_against_adaptive_quadrature():
    rng = np.random.default_rng(3)
    axis = np.array([0.48, 0.6, 0.64])
    for i in range(40):
        F = random_states(1, i, alike=True)
        f = np.where(rng.random(6) < 0.5, rng.uniform(0, 0.95, 6), 1 - 10 ** -rng.uniform(0.7, 2, 6))
        f[[2, 5]] = f[[1, 4]]
        along = f * F[0, :, 3]
        F[0, :, :3] = along[:, None] * axis
        change = (F - asymptotic_flux(F))[0, 0]
        error = np.array([change[3], change[:3] @ axis]) - lost_about_an_axis(F[0, :, 3], along)
        assert np.abs(error).max() < 5e-4 * F[0, :, 3].sum()


def test_opposite_fluxes_go_to_flavor_equilibrium():
    # G is odd: both sides are alike, s is infinite and everything mixes.
    F = random_states(50, alike=True)
    F[:, 3:] = F[:, :3] * [-1, -1, -1, 1]
    mean = np.stack([F[:, nu : nu + 3].mean(axis=1) for nu in (0, 3)], axis=1).repeat(3, axis=1)
    assert distance(asymptotic_flux(F), mean, F).max() < 1e-6


def largest_jump(path, low, high, depth=9):
    """What is left of the largest step of ``path(positions)`` as its surroundings are refined, 32 times each turn."""
    for _ in range(depth):
        positions = np.linspace(low, high, 33)
        F = path(positions)
        after = asymptotic_flux(F)
        jumps = np.linalg.norm(np.diff(after - F, axis=0), axis=2).max(axis=1) / F[0, :, 3].sum()
        low, high = positions[jumps.argmax()], positions[jumps.argmax() + 1]
    return jumps.max()


@pytest.mark.parametrize("alike", [True, False])
def test_a_closing_crossing_closes_continuously(alike):
    # Ahead, nubar_e overtake nu_e as long as their density exceeds about 0.365.
    def path(density):
        F = np.zeros((len(density), 6, 4))
        F[:, 0, 3] = 1
        F[:, 3, 2], F[:, 3, 3] = 0.4 * density, density
        if not alike:
            F[:, 4], F[:, 2] = [0.1, 0, 0, 0.3], [0, 0.1, 0, 0.2]
        return F

    after = asymptotic_flux(path(np.array([0.42, 0.34])))
    assert np.abs(after - path(np.array([0.42, 0.34])))[0].max() > 0.01
    assert largest_jump(path, 0.34, 0.42) < 1e-6


@pytest.mark.parametrize("alike", [True, False])
def test_continuous_along_paths_between_states(alike):
    F, G = random_states(12, 1, 0.95, alike), random_states(12, 2, 0.95, alike)
    for start, end in zip(F, G, strict=True):
        assert largest_jump(lambda t, a=start, b=end: a + t[:, None, None] * (b - a), 0, 1) < 1e-6


def test_without_a_crossing_nothing_changes():
    F = random_states(50)
    F[:, [1, 2, 4, 5]] = F[:, [1]]
    F[:, 0] = F[:, 3] * 1.5
    F[-1] = 0.0
    F[-2, :, :3] = 0
    assert not crossings(F).any()
    np.testing.assert_array_equal(asymptotic_flux(F), F)
    assert (asymptotic_survival(F[0], lebedev(17).nodes) == 1).all()
    assert (asymptotic_survival(F[-1], lebedev(17).nodes) == 1).all()


@pytest.mark.parametrize("third", [0, 1, 2])
def test_one_pair_alone_leaves_the_third_flavor(third):
    # The third flavor has more antineutrinos than either, everywhere.
    F = random_states(200)
    F[:, third, 3], F[:, third, :3] = 0.0, 0.0
    F[:, third + 3, :3], F[:, third + 3, 3] = 0.0, 20.0
    alone = crossings(F).sum(axis=1) == 1
    assert alone.sum() > 100
    after = asymptotic_flux(F)
    assert np.abs((after - F)[alone][:, [third, third + 3]]).max() < 1e-13
    assert np.abs(after - F)[alone].max() > 0.05
    p = asymptotic_transitions(F[alone][0], lebedev(17).nodes)
    np.testing.assert_allclose(p[:, third, third], 1, atol=1e-14)
    assert p.min() >= 0


def test_no_crossing_of_any_pair_is_left():
    directions, weights = lebedev(29)
    for F in random_states(30):
        g = reference.minerbo(F, directions)
        p = asymptotic_transitions(F, directions, order=53)
        np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-12)
        np.testing.assert_allclose(p.sum(axis=2), 1, atol=1e-12)
        assert p.min() >= -1e-15
        after = np.einsum("nab,an->bn", p, g[:3] - g[3:])
        for a, b in ((0, 1), (0, 2), (1, 2)):
            G = (after[a] - after[b]) * np.sign(weights @ (after[a] - after[b]))
            # The order of the totals is the order in each direction, but for the quadrature.
            assert G.min() > -1e-5


def test_transitions_are_those_of_the_change():
    directions, weights = lebedev(65)
    moments = np.vstack([directions, np.ones_like(weights)])
    for alike in (True, False):
        F = random_states(10, alike=alike)
        after = asymptotic_flux(F, order=65)
        for state, expected in zip(F, after, strict=True):
            g = reference.minerbo(state, directions)
            p = asymptotic_transitions(state, directions, order=65)
            mixed = np.concatenate([np.einsum("nab,an->bn", p, g[nu : nu + 3]) for nu in (0, 3)])
            np.testing.assert_allclose((weights * mixed) @ moments.T, expected, atol=5e-4)


@pytest.mark.parametrize("size", [1e-13, 1e-11, 1e-9, 1e-6, 1e-4])
def test_continuous_from_alike_to_unlike(size):
    F = random_states(300, alike=True)
    nearly = F.copy()
    nearly[:, [2, 5]] += (
        size * np.random.default_rng(0).normal(size=(300, 2, 4)) * F[:, :, 3].sum(axis=1)[:, None, None]
    )
    assert distance(asymptotic_flux(nearly), asymptotic_flux(F), F).max() < 60 * size + 1e-10


# ------------------------------------------------------------------ every state


@given(states(max_flux_factor=1.0), st.booleans())
@settings(max_examples=300)
def test_conserves_and_stays_physical(F, alike):
    if alike:
        F[:, [1, 4]] = F[:, [2, 5]] = 0.5 * (F[:, [1, 4]] + F[:, [2, 5]])
    length = np.linalg.norm(F[..., :3], axis=2)
    F[..., :3] *= (np.minimum(length, F[..., 3] * (1 - 1e-15)) / np.where(length > 0, length, 1))[..., None]
    after = asymptotic_flux(F)
    assert np.isfinite(after).all()
    assert conservation_error(F, after) < 1e-12
    assert (after[..., 3] >= 0).all()
    assert margin(after) >= -1e-15


def extreme_states(n, seed=0):
    """Beams, nearly empty species, fluxes on one line: what a hydrodynamics grid holds."""
    rng = np.random.default_rng(seed)
    F = random_states(n, seed)
    N = np.where(rng.random((n, 1)) < 0.5, rng.uniform(0, 1, (n, 6)), 10 ** rng.uniform(-6, 0, (n, 6)))
    N *= rng.random((n, 6)) > 0.1
    N[:, 0] += 1e-3
    f = np.where(rng.random((n, 6)) < 0.5, rng.uniform(0, 1, (n, 6)), 1 - 10 ** -rng.uniform(0, 12, (n, 6)))
    unit = F[..., :3] / np.linalg.norm(F[..., :3], axis=2)[..., None]
    aligned = rng.random(n) < 0.5
    unit[aligned] = unit[aligned, :1] * rng.choice([-1, 1], (aligned.sum(), 6, 1))
    F[..., :3], F[..., 3] = unit * (N * f)[..., None], N
    alike = rng.random(n) < 0.5
    F[alike, 2], F[alike, 5] = F[alike, 1], F[alike, 4]
    return F


def test_alike_rows_come_out_the_same_without_what_mixes_three_flavors():
    F = np.concatenate([random_states(50, 3, alike=True), random_states(50, 4, 0.999, alike=True)])
    assert three_flavors(F) is None
    found = np.empty((2, *F.shape))
    for three, out in zip((None, True), found, strict=True):
        kernels.asymptotic_rows(F, *levels_of(), three, out, 0, len(F))
    assert found[0].tobytes() == found[1].tobytes()
    assert three_flavors(np.concatenate([F, random_states(1, 5)]))


def test_extreme_states():
    F = extreme_states(2000)
    after = asymptotic_flux(F)
    assert conservation_error(F, after) < 1e-12
    assert margin(after) >= -1e-15
    raw = np.empty_like(F)
    kernels.asymptotic_rows(F, *levels_of(), True, raw, 0, len(F))
    # The limiter has next to nothing to do.
    assert (distance(raw, after, F) > 1e-8).sum() == 0


def test_beams_along_an_axis():
    # Issue: all species along z; a plain rule says that electrons gain.
    for f in (0.9, 0.99, 0.999, 1 - 1e-6, 1 - 1e-12, 1.0):
        F = np.zeros((1, 6, 4))
        F[0, :, 3] = [1.0, 0.4, 0.4, 0.9, 0.4, 0.4]
        F[0, :, 2] = F[0, :, 3] * [0.3, f, f, 0.6, f, f]
        after, fine = asymptotic_flux(F), asymptotic_flux(F, order=131)
        assert after[0, 0, 3] < 0.97
        assert distance(after, fine, F)[0] < 1e-3


# -------------------------------------------------------------------- symmetries


@pytest.mark.parametrize("alike", [True, False])
@given(seed=st.integers(0, 10**6), reflect=st.booleans())
@settings(max_examples=15)
def test_turns_with_the_state(alike, seed, reflect):
    F, rotation = random_states(5, seed, 0.99, alike), random_rotation(seed) * (-1 if reflect else 1)
    assert distance(asymptotic_flux(turn(F, rotation)), turn(asymptotic_flux(F), rotation), F).max() < 1e-6


@pytest.mark.parametrize("order", [[1, 0, 2], [0, 2, 1], [2, 0, 1], [2, 1, 0]])
@given(seed=st.integers(0, 10**6))
@settings(max_examples=10)
def test_permutations_of_flavors(order, seed):
    F, both = random_states(5, seed, 0.99), np.array(order + [3 + flavor for flavor in order])
    assert distance(asymptotic_flux(F[:, both]), asymptotic_flux(F)[:, both], F).max() < 1e-8
    pairs = [[frozenset((0, 1)), frozenset((0, 2)), frozenset((1, 2))].index(frozenset((order[a], order[b])))
             for a, b in ((0, 1), (0, 2), (1, 2))]  # fmt: skip
    np.testing.assert_array_equal(crossings(F[:, both]), crossings(F)[:, pairs])


@pytest.mark.parametrize("alike", [True, False])
@given(seed=st.integers(0, 10**6), exponent=st.floats(-30, 40))
@settings(max_examples=15)
def test_exchange_and_scale(alike, seed, exponent):
    F, antineutrinos = random_states(5, seed, 0.99, alike), [3, 4, 5, 0, 1, 2]
    after = asymptotic_flux(F)
    assert distance(asymptotic_flux(F[:, antineutrinos]), after[:, antineutrinos], F).max() < 1e-8
    assert distance(asymptotic_flux(F * 10**exponent) / 10**exponent, after, F).max() < 1e-8


def test_scale_of_a_pair_is_solved_for_every_input():
    rng = np.random.default_rng(0)
    out = np.empty(12)
    for _ in range(300):
        G = 10 ** rng.uniform(-rng.uniform(0, 15), 0, 50)
        c = G * 10 ** rng.uniform(-rng.uniform(0, 5), 0, 50)
        goal = c.sum() * 10 ** rng.uniform(-12, 0) * (1 - 1e-9)
        s = kernels.solve_scale(c, G, goal, c.sum(), (c * G).sum(), out)
        part = s * s / (np.hypot(G, s) * (np.hypot(G, s) + G))  # 1 - u without cancellation
        assert (c * part).sum() == pytest.approx(goal, rel=1e-9, abs=1e-14 * c.sum())


def test_two_scales_are_solved_for_every_input():
    rng = np.random.default_rng(0)
    out = np.full(12, np.nan)
    for _ in range(100):
        spread = rng.uniform(0, 6, 2)
        A, B = 10 ** rng.uniform(-spread[0], 0, 64), 10 ** rng.uniform(-spread[1], 0, 64)
        w = 10 ** rng.uniform(-rng.uniform(0, 3), 0, 64)
        alpha, beta = 10 ** rng.uniform(-3, 4, 2)
        kernels._totals(A, B, w, alpha, beta, out)
        t1, t3 = out[:2]
        found = kernels.solve_two_scales(A, B, w, t1, t3, out)
        kernels._totals(A, B, w, *found, out)
        assert np.abs(out[:2] - [t1, t3]).max() < 1e-11 * (w @ (A + B))
        out[8:10] += 20.0 * rng.normal(size=2)  # where to start


# ------------------------------------------------------------------- simulations


@pytest.mark.parametrize("name", SETTLED)
def test_skill_on_settled_simulations(name):
    F, F_true = settled(name)
    error = flux_error(F_true, asymptotic_flux(F), F)
    reached = skill(error, flux_error(F_true, rheidae.box3d_flux(F), F))
    assert reached > LEAST_SKILL.get(name, 0.7), reached


LEAST_SKILL = {
    "asymptotic_weak.h5": 0.6,
    "asymptotic_random.h5": 0.8,
    "asymptotic_nsm_a.h5": 0.85,
    "asymptotic_nsm_b.h5": 0.8,
    "asymptotic_mutau.h5": 0.75,
}


@pytest.mark.parametrize(("names", "least"), [(SETTLED[:3], 0.85), (SETTLED, 0.8)], ids=["random, merger", "all"])
def test_skill_over_settled_simulations_without_fitted_numbers(names, least):
    F, F_true = (np.concatenate(rows) for rows in zip(*(settled(name) for name in names), strict=True))
    reached = skill(flux_error(F_true, asymptotic_flux(F), F), flux_error(F_true, rheidae.box3d_flux(F), F))
    assert reached > least


def test_float32_threads_and_errors():
    F = random_states(3000)
    single = asymptotic_flux(F.astype(np.float32))
    assert single.dtype == np.float32
    assert np.abs(single - asymptotic_flux(F)).max() < 1e-5
    np.testing.assert_array_equal(asymptotic_flux(F, threads=1), asymptotic_flux(F, threads=2))
    np.testing.assert_array_equal(rheidae.mix(F, "asymptotic"), asymptotic_flux(F))
    F[1, 2, 3] = -1
    for function in (asymptotic_flux, crossings):
        with pytest.raises(FourFluxError, match="row 1"):
            function(F)
    with pytest.raises(ValueError, match=r"expected \(3, m\)"):
        asymptotic_transitions(F[0], np.zeros((2, 5)))


def test_preprocessing_sees_the_crossings_of_every_pair(tmp_path):
    # Those of e-mu and e-tau cancel in the mean of mu and tau.
    F = np.zeros((1, 6, 4))
    F[0, :, 3] = [1.0, 0.5, 0.5, 0.5, 0.5, 0.5]
    F[0, 1, 2], F[0, 2, 2] = 0.45, -0.45
    F[0, 4, 2], F[0, 5, 2] = -0.45, 0.45
    assert crossings(F).tolist() == [[True, True, True]]
    assert not rheidae.box3d(F).has_crossing[0]
    arrays = evaluate(F * 1e33, F * 1e33, config_for(tmp_path, "a", schemes=["box3d", "asymptotic"]))
    np.testing.assert_allclose(arrays["F_asymptotic"], asymptotic_flux(F, order=31) * 1e33, rtol=1e-6, atol=1e25)
    assert arrays["has_crossing"][0]


def test_a_shallow_second_crossing_between_the_nodes_is_in_doubt():
    """It counts by what the first pair moves: a multiple of what crosses where antineutrinos make up for neutrinos."""
    F = np.zeros((1, 6, 4))
    F[0, :, 3] = [0.04956, 0.25241, 0.02019, 0.27501, 0.31441, 0.08842]
    F[0, 0, :3], F[0, 2, :3] = [-0.02416, -0.00599, 0.01237], [-0.0104, 0.00033, -0.00411]
    right = converged.answer(F, points=6000)
    assert np.abs(asymptotic_flux(F) - right).max() < 1e-3
    assert np.abs(asymptotic_flux(F, levels=1) - right).max() > 5e-3


def test_models_and_their_graphs_on_beams(pretrained_graph):
    """Up to a flux factor of 1 - 1e-12: the model is the scheme there, turns with the state, and so does its graph."""
    for kind in ("mixed", "stream", "nearly empty"):
        F = converged.states(kind, 40, seed=2)
        after = rheidae.pretrained().predict(F)
        assert (np.linalg.norm(after[..., :3], axis=2) <= after[..., 3] + 1e-15).all()
        assert conservation_error(F, after) < 3e-13
        narrow = (calm(F) < 1e-3) & (np.linalg.norm(F[..., :3], axis=2) > 0.9 * F[..., 3]).any(axis=1)
        assert distance(after, asymptotic_flux(F), F)[narrow].max() < 2e-3
        assert distance(pretrained_graph(F), after, F).max() < 1e-6


@pytest.mark.parametrize("factor", [1.0, 1 + 5e-7])
def test_flux_factor_one_is_the_limit_of_smaller_ones(pretrained_graph, factor):
    """Rounding puts |F| on N, or beyond it."""
    narrow = random_states(200, seed=8, alike=True)
    narrow[:, ::3, :3] *= ((1 - 1e-12) * narrow[..., 3] / np.linalg.norm(narrow[..., :3], axis=2))[:, ::3, None]
    at_one = narrow.copy()
    at_one[:, ::3, :3] *= factor / (1 - 1e-12)
    for answer in (asymptotic_flux, power_flux, rheidae.pretrained().predict, pretrained_graph):
        assert distance(answer(narrow), narrow, narrow).min() > 1e-3
        assert distance(answer(at_one), answer(narrow), narrow).max() < 1e-3
    np.testing.assert_array_equal(crossings(at_one), crossings(narrow))


def test_a_trace_that_is_a_beam_costs_no_row_its_change(pretrained_graph):
    """Antineutrinos without width, which cannot spare density alone, not even by the error of a root."""
    F = random_states(300, seed=7, alike=True)
    F[:, 3:, :3] /= np.linalg.norm(F[:, 3:, :3], axis=2, keepdims=True)
    F[:, 3:, :3] *= 1 - 1e-11
    F[:, 3:, 3] = 1.0
    F[:, 3:] *= np.array([3e-5, 3e-7, 3e-7])[:, None] * F[:, :3, 3].sum(axis=1)[:, None, None]
    after = rheidae.pretrained().predict(F)
    assert np.median(distance(after, F, F)) > 1e-2
    assert distance(pretrained_graph(F), after, F).max() < 1e-6


@given(states(max_flux_factor=0.99), st.integers(0, 1000))
@settings(max_examples=15)
def test_symmetries_of_models_and_their_graphs(pretrained_graph, F, seed):
    F[:, 2], F[:, 5] = F[:, 1], F[:, 4]
    rotation = random_rotation(seed)
    for answer in (rheidae.pretrained().predict, pretrained_graph):
        after = answer(F)
        for turned in (rotation, -rotation):
            assert distance(answer(turn(F, turned)), turn(after, turned), F).max() < 1e-6
        assert distance(answer(F[:, [3, 4, 5, 0, 1, 2]]), after[:, [3, 4, 5, 0, 1, 2]], F).max() < 1e-6
        assert distance(answer(3e33 * F) / 3e33, after, F).max() < 1e-6


@pytest.fixture(scope="module")
def pretrained_graph():
    graph = FluxGraph(rheidae.pretrained()).eval()

    def answer(F):
        with torch.no_grad():
            return graph(torch.from_numpy(F.reshape(-1, 24))).numpy().reshape(F.shape)

    return answer
