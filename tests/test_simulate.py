"""The pseudo-spectral solver against analytic rates, direct integration, conservation laws and Emu."""

import _thread
import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from importlib import resources

import h5py
import numpy as np
import pytest
import yaml

import rheidae
from rheidae import fourflux, simulate
from rheidae.config import H5Paths, check_config
from rheidae.exceptions import ClusterError, ConfigError, DataError, FourFluxError
from rheidae.linear import growth_rate
from rheidae.linear.distributions import matched
from rheidae.linear.stability import POTENTIAL
from rheidae.mixing.quadrature import lebedev
from rheidae.preprocess.rawfile import inspect
from rheidae.simulate import archive
from rheidae.simulate.archive import read_states, simulate_archive
from rheidae.simulate.comparison import EMU, compare, resolution
from rheidae.simulate.config import SimulateConfig
from rheidae.simulate.options import Options
from rheidae.simulate.solver import Setup, Shift, Solver, order_for, prepare
from rheidae.system import memory, outputs
from tests.states import random_rotation, random_states, turn

SMALL = {"cells": 8, "wavelengths": 2.0}
ONE = {"dimensions": 1, "cells": 64, "wavelengths": 10.0}


def merger(unlike=False):
    """A merger-like state, 1/cm^3."""
    F = np.zeros((6, 4))
    F[:, 3] = [1.0, 0.35, 0.35, 1.2, 0.35, 0.35]
    F[0, :3], F[3, :3] = [0.02, 0.05, 0.15], [0.1, -0.06, 0.42]
    F[[1, 2, 4, 5], 2] = 0.14
    if unlike:
        F[1, 3], F[4, 3], F[1, 0] = 0.45, 0.3, 0.1
    return 1e33 * F


def distance(F, other, initial):
    """Four-flux distance, mean over species, over the total density."""
    return np.linalg.norm(F - other, axis=-1).mean() / initial[:, 3].sum()


def setup_for(directions, G, side, cells, dimensions=1, time_step=None):
    """A setup of given potentials (1/cm) in a box along z (1D) or x, y, z."""
    G = np.atleast_2d(G)
    return Setup(
        order=0, directions=directions, weights=np.ones(G.shape[1]), N=np.zeros((2, 3, G.shape[1])), G=G,
        growth_rate=1.0, slowest=1.0, side=side, cells=cells,
        box=np.eye(3) if dimensions == 3 else np.array([[0.0, 0.0, 1.0]]),
        time_step=time_step or 0.3 / np.abs(G).sum(), steps=1, stopped="",
    )  # fmt: skip


def matrices(solver):
    """Complex matrices ``(m, matrices, cells, 3, 3)`` of a solver, directions in the order of its setup."""
    q = np.empty((2 * len(solver.pairs), *solver.q.shape[1:2], *solver.q.shape[3:]))
    for side in range(2):
        q[solver.pairs[:, side]] = solver.q[:, :, side]
    Q = np.zeros((*q.shape[:2], q.shape[3], 3, 3), dtype=complex)
    Q[..., 0, 0], Q[..., 1, 1] = q[:, :, 0], q[:, :, 1]
    Q[..., 2, 2] = 1 - q[:, :, 0] - q[:, :, 1]
    for slot, (a, b) in enumerate(((0, 1), (0, 2), (1, 2))):
        Q[..., a, b] = q[:, :, 2 + 2 * slot] + 1j * q[:, :, 3 + 2 * slot]
        Q[..., b, a] = Q[..., a, b].conj()
    return Q


def growth_of(solver, times):
    """Exponential rate of the off-diagonal elements between two times, after a start."""
    solver.start()
    size, done = [], 0
    for target in times:
        while done * solver.time_step < target:
            solver.turn()
            solver.advect()
            done += 1
        size.append((done * solver.time_step, np.sqrt((np.abs(matrices(solver)[:, 0, :, 0, 1:]) ** 2).mean())))
    (t0, a), (t1, b) = size
    return np.log(b / a) / (t1 - t0)


# --- analytic ----------------------------------------------------------------------------------------------


def test_growth_of_two_beams():
    """omega^2 = k^2 - 4 a b; the box holds the fastest wave, k = 0, whose own wave number is a + b."""
    a, b = 1.0, 0.4
    directions = lebedev(3).nodes
    G = np.zeros(6)
    G[np.argmax(directions[2])], G[np.argmin(directions[2])] = a, -b
    solver = Solver(setup_for(directions, G, 2 * np.pi / (a + b), 16, time_step=0.05), 1e-8, 3)
    rate = 2 * np.sqrt(a * b)
    assert growth_of(solver, (8 / rate, 14 / rate)) == pytest.approx(rate, rel=0.005)


def test_growth_of_a_homogeneous_mode():
    """sqrt(J^2 - (I + K)^2/4), moments I, J, K = sum G (1, z, z^2), at k = 0: the only unstable wave of the box."""
    rule = lebedev(7)
    z = rule.nodes[2]
    G = rule.weights * (0.3 - 1.4 * z)
    moments = G.sum(), G @ z, G @ z**2
    rate = np.sqrt(moments[1] ** 2 - 0.25 * (moments[0] + moments[2]) ** 2)
    solver = Solver(setup_for(rule.nodes, G, 2 * np.pi / abs(moments[1]), 4, time_step=0.02), 1e-6, 3)
    assert growth_of(solver, (5 / rate, 9 / rate)) == pytest.approx(rate, rel=0.02)


# --- the step ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unlike", [False, True])
def test_turning_is_the_equation_of_motion(unlike):
    """Against fourth-order Runge-Kutta of density matrices in double precision, from the definition of H."""
    setup = prepare(merger(unlike), Options(order=5, cells=4, wavelengths=1.0))
    solver = Solver(setup, 0.1, 2, time_step=0.1 / np.abs(setup.G).sum())
    Q = matrices(solver)
    tau = np.eye(3) - Q.sum(axis=1)
    weights = POTENTIAL * (setup.N[0] - setup.N[1])
    both = [Q[:, 0], Q[:, 1] if unlike else 0.5 * (np.eye(3) - Q[:, 0]), tau if unlike else 0.5 * (np.eye(3) - Q[:, 0])]
    rho = sum(weights[a][:, None, None, None] * both[a] for a in range(3))
    geometry = 1 - setup.directions.T @ setup.directions

    def rate(Q, rho):
        H = np.einsum("jk,kcab->jcab", geometry, rho)
        return -1j * (H @ Q - Q @ H)

    def step(Q, rho, dt):
        state = np.stack([Q, rho])

        def f(state):
            return np.stack([rate(state[0], state[1]), rate(state[1], state[1])])

        k1 = f(state)
        k2 = f(state + 0.5 * dt * k1)
        k3 = f(state + 0.5 * dt * k2)
        k4 = f(state + dt * k3)
        return state + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

    steps = 20
    first = Q[:, 0]
    for _ in range(steps):
        solver.turn()
        first, rho = step(first, rho, solver.time_step)
    found = matrices(solver)[:, 0]
    # The solver's frame turns with the isotropic potential.
    phase = np.array([*setup.G.sum(axis=1), 0.0, 0.0])[: 3 if unlike else 2]
    phase = np.pad(phase[: len(setup.G)], (0, 3 - len(setup.G))) * steps * solver.time_step
    turned = np.exp(1j * (phase[:, None] - phase[None, :])) * first
    np.testing.assert_allclose(found, turned, atol=2e-5)


@pytest.mark.parametrize(("dimensions", "cells"), [(1, 6), (1, 9), (1, 130), (2, 6), (3, 4), (3, 5)])
def test_shift_moves_waves(dimensions, cells):
    """A sum of waves of the box, moved by any number of cells, is what the formula says."""
    rng = np.random.default_rng(1)
    crossed = rng.uniform(-3, 3, (1, 2, dimensions))
    number = rng.integers(-((cells - 1) // 2), (cells - 1) // 2 + 1, (5, dimensions))
    size, phase = rng.normal(size=5), rng.uniform(0, 6, 5)
    grid = np.stack(np.meshgrid(*[np.arange(cells)] * dimensions, indexing="ij"))[::-1]  # x runs fastest

    def field(moved):
        at = grid.reshape(dimensions, -1) - np.reshape(moved, (dimensions, 1))
        return (size[:, None] * np.cos(2 * np.pi / cells * number @ at + phase[:, None])).sum(axis=0)

    q = np.tile(field(np.zeros(dimensions)).astype(np.float32), (1, 1, 2, 8, 1))
    Shift(crossed, 1, cells)(q)
    for side in range(2):
        np.testing.assert_allclose(q[0, 0, side], np.tile(field(crossed[0, side]), (8, 1)), atol=1e-5)


def test_dense_shift_is_the_transform(monkeypatch):
    rng = np.random.default_rng(1)
    q = rng.normal(size=(3, 2, 2, 8, 12**2)).astype(np.float32)
    crossed, other = rng.uniform(-2, 2, (3, 2, 2)), q.copy()
    Shift(crossed, 2, 12)(q)
    monkeypatch.setattr(sys.modules["rheidae.simulate.solver"], "DENSE_CELLS", 4)
    Shift(crossed, 2, 12)(other)
    np.testing.assert_allclose(q, other, atol=5e-6)


@pytest.mark.parametrize("unlike", [False, True])
def test_unitary_without_advection(unlike):
    """Every matrix keeps its eigenvalues 1, 0, 0."""
    setup = prepare(merger(unlike), Options(order=7, cells=4, wavelengths=1.0))
    solver = Solver(setup, 0.1, 2, time_step=0.2 / np.abs(setup.G).sum())
    for _ in range(300):
        solver.turn()
    values = np.linalg.eigvalsh(matrices(solver))
    np.testing.assert_allclose(values, np.broadcast_to([0, 0, 1], values.shape), atol=3e-5)
    assert np.abs(matrices(solver)[:, :, :, 0, 1]).max() > 0.2


@pytest.mark.parametrize("unlike", [False, True])
def test_conservation(unlike):
    """Lepton numbers of the flavors and flavor sums, over a whole run, to the rounding of float32."""
    F = merger(unlike)
    result = simulate(F, **SMALL, saturation_times=4.0)
    total = F[:, 3].sum()
    np.testing.assert_allclose(result.probability.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(result.probability.sum(axis=2), 1, atol=1e-12)
    before, after = F.reshape(2, 3, 4), result.F_final.reshape(2, 3, 4)
    np.testing.assert_allclose(after.sum(axis=1), before.sum(axis=1), atol=1e-12 * total)
    lepton = after[0, :, 3] - after[1, :, 3] - before[0, :, 3] + before[1, :, 3]
    assert np.abs(lepton).max() < 5e-6 * total
    assert distance(result.F_final, F, F) > 0.01


def test_second_order_in_the_time_step():
    # An odd number of cells: the shortest wave of an even one loses by the step.
    setup = prepare(merger(), Options(**{**ONE, "cells": 63}, order=7))
    ends = []
    for parts in (1, 2, 4):
        solver = Solver(setup, 0.1, 5, time_step=0.5 * setup.time_step / parts)
        solver.start()
        for step in range(16 * parts):
            solver.turn()
            if step < 16 * parts - 1:
                solver.advect()
        solver.start()  # half a step
        ends.append(solver.q.copy())
    first, second = np.abs(ends[0] - ends[1]).max(), np.abs(ends[1] - ends[2]).max()
    assert 3.5 < first / second < 4.6


# --- whole runs --------------------------------------------------------------------------------------------


def test_result_of_many_states():
    F = np.stack(
        [[merger(), turn(merger()[None], random_rotation(3))[0]], [random_states(1, 4)[0] * 1e33, merger(True)]]
    )
    F[1, 0] = 0
    F[1, 0, :, 3] = [4e33, 1e33, 1e33, 1e33, 1e33, 1e33]  # stable
    result = simulate(F, **ONE, saturation_times=3.0)
    assert result.F_final.shape == result.F_std.shape == (2, 2, 6, 4)
    m = result.weights.shape[-1]
    assert result.probability.shape == (2, 2, m, 3, 3)
    assert result.directions.shape == (2, 2, m, 3)
    np.testing.assert_allclose(result.weights.sum(axis=-1), 4 * np.pi)
    assert result.stopped.tolist() == [["saturation times"] * 2, ["stable", "saturation times"]]
    np.testing.assert_array_equal(result.F_final[1, 0], F[1, 0])
    assert result.growth_rate[1, 0] == 0
    assert result.converged[1, 0]
    assert result.saturation_times[0, 0] == pytest.approx(3.0, rel=0.02)
    # Probabilities and four-fluxes say the same.
    N = matched(F[0, :1], 11)[0].reshape(2, 3, -1)
    P = result.probability[0, 0]
    final = np.einsum("sam,mab->sbm", N, P[: N.shape[2]]).reshape(6, -1)
    np.testing.assert_allclose(final.sum(axis=1), result.F_final[0, 0, :, 3], rtol=1e-6)


def test_mu_and_tau_that_start_alike_stay_so_and_order_of_flavors_does_not_matter():
    F = merger(True)
    swap = [0, 2, 1, 3, 5, 4]
    first = simulate(F, **ONE, saturation_times=2.0)
    second = simulate(F[swap], **ONE, saturation_times=2.0)
    np.testing.assert_allclose(first.growth_rate, second.growth_rate, rtol=1e-5)
    assert distance(first.F_final[swap], second.F_final, F) < 5e-3
    same = simulate(merger(), **ONE, saturation_times=1.0).F_final
    np.testing.assert_array_equal(same[[1, 4]], same[[2, 5]])


def test_two_matrices_give_what_one_does():
    """mu and tau alike, followed as if they were not: the same in the mean of both."""
    F = merger()
    almost = F.copy()
    almost[1] *= 1 + 1e-5
    almost[2] *= 1 - 1e-5
    one, two = (simulate(state, **SMALL, saturation_times=5.0).F_final for state in (F, almost))
    two[[1, 2]], two[[4, 5]] = two[[1, 2]].mean(axis=0), two[[4, 5]].mean(axis=0)
    assert distance(one, two, F) < 2e-3


def test_rotation_of_the_box():
    F, rotation = merger(), random_rotation(5)
    straight = simulate(F, **SMALL, saturation_times=8.0).F_final
    turned = simulate(turn(F[None], rotation)[0], **SMALL, saturation_times=8.0).F_final
    # The small box sees the lattice of its waves: of a change of 0.06.
    assert distance(turn(straight[None], rotation)[0], turned, F) < 4e-3


def test_seed_and_repetition():
    F = merger()
    first, again, other = (simulate(F, **ONE, saturation_times=3.0, seed=seed).F_final for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert 0 < distance(first, other, F) < 5e-3


def test_stops_when_settled_and_says_when_not():
    settled = simulate(merger(), **ONE, drift=5e-3)
    assert settled.stopped == "drift"
    assert settled.converged
    assert settled.saturation_times >= 6
    short = simulate(merger(), **ONE, drift=0.0, max_saturation_times=6.0)
    assert short.stopped == "saturation times"
    assert not short.converged
    begun = simulate(merger(), **ONE, saturation_times=0.1)  # in which next to nothing drifts
    assert begun.drift < 3e-4
    assert not begun.converged
    weak = simulate(merger(), **ONE, max_steps=10)
    assert weak.stopped == "slow"
    assert not weak.converged
    np.testing.assert_array_equal(weak.F_final, merger())


def test_waits_for_the_slowest_pair_of_flavors():
    """Whatever the drift, six of its saturation times: unlike mu and tau mix in stages."""
    F = merger(True)
    F[1, 3], F[4, 3], F[1, 0] = 0.55e33, 0.45e33, 0.4e33
    N = matched(F[None], 11)[0]
    g = POTENTIAL * (N[:3] - N[3:])
    directions = lebedev(11).nodes
    axis = directions @ (g[0] - 0.5 * (g[1] + g[2]))
    axis /= np.linalg.norm(axis)

    def rate(g):
        """Largest imaginary part over wave vectors K of the coherence along the axis; k = K - sum g n."""
        matrix = -(1 - directions.T @ directions) * g - np.diag(g @ directions.T @ directions)
        K = np.linspace(-1.5, 1.5, 101)[:, None, None] * np.abs(g).sum()
        return np.linalg.eigvals(matrix + K * np.diag(axis @ directions)).imag.max()

    rates = [rate(g[0] - g[1]), rate(g[0] - g[2]), rate(g[1] - g[2])]
    assert min(rates) < 0.7 * max(rates)
    run = simulate(F, dimensions=1, cells=16, wavelengths=5.0, order=11, drift=1.0)
    assert run.stopped == "drift"
    assert run.saturation_times == pytest.approx(6 * max(rates) / min(rates), abs=0.6)


def test_closure_is_any_function_of_direction():
    def linear(F, species, directions):
        return np.maximum(1 + 3 * directions @ (F[:3] / F[3]), 0)

    F = merger()
    F[3, :3] *= 0.7
    result, minerbo = (simulate(F, **ONE, closure=closure, saturation_times=3.0) for closure in (linear, "minerbo"))
    assert result.growth_rate != minerbo.growth_rate
    assert 0 < distance(result.F_final, minerbo.F_final, F) < 0.05


@pytest.mark.slow
def test_against_emu_in_one_dimension():
    """Emu's runs, stopped at 3.5 saturation times: its own scatter between seeds is 0.0006 to 0.005."""
    with (
        resources.files("rheidae.datasets").joinpath("data/emu_nsm_a.h5").open("rb") as stream,
        h5py.File(stream) as file,
    ):
        F, final = (fourflux.from_emu(file[f"F4_{name}(1|ccm)"][:4]) for name in ("initial", "final"))
    final = fourflux.average_heavy(final, F)
    result = simulate(F, dimensions=1, perturbation=1e-6, saturation_times=3.5)
    apart = [distance(a, b, state) for a, b, state in zip(result.F_final, final, F, strict=True)]
    changed = [distance(a, b, state) for a, b, state in zip(F, final, F, strict=True)]
    assert max(apart) < 0.006
    assert np.median(apart) < 0.1 * np.median(changed)


def test_against_emu_in_three_dimensions():
    """Coarse rows at 3 saturation times, within what finer boxes than this one reach (docs/simulate.md)."""
    place = resources.files("rheidae.datasets") / "data" / "emu_three_d.h5"
    with resources.as_file(place) as path:
        found = [row[2:] for row in compare("", path, 6, **EMU | SMALL)]
    apart, changed = np.array(found).T
    assert apart.mean() < 0.0043
    assert np.median(apart) < 0.0030
    assert (apart < 0.1 * changed).all()


def test_the_sample_agrees_with_another_program_where_that_resolves_the_waves():
    """The rows of the C++ prototype; with less than two cells a wavelength it mixes more (docs/simulate.md)."""
    columns = [found[1:] for found in resolution() if found[0] in ("prototype_random", "prototype_nsm_b")]
    cells, apart, change = (np.concatenate(column) for column in zip(*columns, strict=True))
    fine, coarse = cells > 3, cells < 2
    assert fine.sum() > 50
    assert coarse.sum() > 10
    assert np.median(apart[fine]) < 0.0004
    assert abs(change[fine].mean() - 1) < 0.01
    assert change[coarse].mean() > 1.03


def test_three_dimensions_settle():
    """NSM1: published 9.96e32 and 14.88e32 at their stop; settled 9.6e32 and 14.55e32 (docs/simulate.md)."""
    F = np.zeros((6, 4))
    F[:, 3] = [14.22e32, 4.91e32, 4.91e32, 19.15e32, 4.91e32, 4.91e32]
    F[0, :3] = np.array([0.0974, 0.0421, -0.1343]) * F[0, 3]
    F[3, :3] = np.array([0.0723, 0.0313, -0.3446]) * F[3, 3]
    F[[1, 2, 4, 5], :3] = np.array([-0.0216, 0.0743, -0.5354]) * F[1, 3]
    result = simulate(F, **SMALL)
    assert result.converged
    assert result.F_final[0, 3] == pytest.approx(9.6e32, rel=0.015)
    assert result.F_final[3, 3] == pytest.approx(14.55e32, rel=0.015)


# --- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda F: F[:, :3], r"shape \(6, 3\); expected"),
        (lambda F: -F, "number density .* is negative"),
        (lambda F: F * [3, 3, 3, 1], "exceeds N"),
        (lambda F: F * [1, 1, 1, np.nan], "not finite"),
        (lambda F: F * 0, "no neutrinos"),
    ],
)
def test_bad_states(change, message):
    with pytest.raises(FourFluxError, match=message):
        simulate(change(merger()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wavelengths": 0.5}, "box is too small for the mode"),
        ({"cells": 8}, "too few to resolve the mode"),
        ({"dimension": 3}, "dimension: unknown key; the nearest known one is dimensions"),
        ({"dimensions": 4}, "dimensions: "),
        ({"order": 13}, "negative weights"),
        ({"time_step": 5.0}, "time_step: "),
        ({"max_saturation_times": 4.0}, "must not be smaller than min_saturation_times"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ConfigError, match=message):
        simulate(merger(), **options)


def test_options_of_numpy():
    """Its scalars count as Python's numbers; no float becomes an integer."""
    given = {"cells": np.int64(32), "seed": np.uint8(2), "wavelengths": np.float32(8), "max_steps": np.int32(1)}
    plain = simulate(merger(), dimensions=1, cells=32, seed=2, wavelengths=8.0, max_steps=1)
    np.testing.assert_array_equal(simulate(merger(), dimensions=np.int64(1), **given).box, plain.box)
    assert json.loads(Options(**given).model_dump_json())["seed"] == 2
    for bad in ({"cells": np.float64(32)}, {"seed": np.bool_(True)}, {"order": np.int64(13)}):
        with pytest.raises(ConfigError, match=f"{next(iter(bad))}: "):
            simulate(merger(), **bad)


def test_boxes_that_do_not_fit_into_the_memory(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(memory, "free_memory", lambda: 8e9)
    with pytest.raises(
        ConfigError, match=r"cells: a box of 256 a side in 3D with 50 directions takes 29\.9 GB .* 8 GB"
    ):
        simulate(merger(), cells=256)
    with pytest.raises(ConfigError, match="choose fewer cells, or a lower order"):
        simulate_archive(check_config(config_for(tmp_path, dimensions=3, cells=256)[0], SimulateConfig))
    # Several processes: as many as there is room for.
    config = check_config({**config_for(tmp_path, saturation_times=0.1)[0], "processes": 4}, SimulateConfig)
    room = 1.9 * prepare(merger(True), config.options).memory
    monkeypatch.setattr(archive, "free_memory", lambda: room)
    assert simulate_archive(config).simulated == 5
    assert "processes: 1" in caplog.text


@pytest.mark.parametrize(
    ("unlike", "options"),
    [(False, {"dimensions": 2, "cells": 200}), (True, {"cells": 24}), (True, {**ONE, "cells": 128, "order": 47})],
)
def test_memory_is_what_a_run_takes(unlike, options):
    setup = prepare(merger(unlike), Options(**{"wavelengths": 2.0, **options}))
    tracemalloc.start()
    try:
        solver = Solver(setup, 1e-3, 1)
        solver.start()
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 0.9 * setup.memory < taken < 1.1 * setup.memory


def test_too_few_directions_for_the_flux_factor():
    F = merger()
    F[3, :3] = [0, 0.6e33, 1.0e33]
    with pytest.raises(FourFluxError, match=r"choose a higher order of directions"):
        simulate(F, order=3)
    F[3, :3] = [0, 0, 1.19e33]
    with pytest.raises(FourFluxError, match=r"flux factor 0\.9917 is above 0\.985"):
        simulate(F)


def test_a_crossing_between_the_directions_is_not_stable():
    F = 1e33 * random_states(6000, 11, alike=True)[2089]
    result = simulate(F)
    assert growth_rate(F) > 0 == result.growth_rate
    assert (result.stopped, result.converged) == ("directions", False)
    assert prepare(F, Options(order=23)).stopped != "directions"


def test_order_follows_the_flux_factor():
    states = np.zeros((4, 6, 4))
    states[..., 3] = 1.0
    states[:, 2, 0] = [0.3, 0.7, 0.8, 0.97]
    assert order_for(states).tolist() == [11, 15, 19, 47]


def test_a_species_that_counts_for_nothing_may_be_a_beam():
    F, dregs = merger(), merger()
    F[1], dregs[1] = 0, 1e23 * np.array([0.36, 0.48, 0.8, 1.0])
    for state in (F, dregs):
        state[2] = state[1]
    results = [simulate(state, **ONE, saturation_times=1.0) for state in (F, dregs)]
    assert distance(results[0].F_final, results[1].F_final, F) < 1e-7


# --- archives ----------------------------------------------------------------------------------------------


def config_for(tmp_path, **options):
    F = np.stack([merger(), merger(True), merger()[[0, 4, 5, 3, 1, 2]], 1.3 * merger(), 0.7 * merger(True)])
    with h5py.File(tmp_path / "states.h5", "w") as file:
        file["F4_initial(1|ccm)"] = fourflux.to_emu(F)
    return {
        "states": {"path": str(tmp_path / "states.h5")},
        "output_root": str(tmp_path / "out"),
        "output_filename": "made.h5",
        "processes": 1,
        "options": {**ONE, "saturation_times": 2.0, "order": 7, **options},
    }, F


def test_archive_is_a_raw_file(tmp_path):
    from rheidae.config import PreprocessConfig
    from rheidae.preprocess.pipeline import preprocess

    config, F = config_for(tmp_path)
    written = simulate_archive(check_config(config, SimulateConfig))
    assert (written.rows, written.simulated) == (5, 5)
    again = simulate_archive(check_config(config, SimulateConfig))
    assert again.simulated == 0
    assert [path.name for path in written.path.parent.iterdir()] == ["made.h5"]
    direct = simulate(F[1], **config["options"])
    with h5py.File(written.path) as file:
        np.testing.assert_array_equal(fourflux.from_emu(file["F4_initial(1|ccm)"][()]), F)
        np.testing.assert_array_equal(fourflux.from_emu(file["F4_final(1|ccm)"][()])[1], direct.F_final)
        assert file["growthRate(1|s)"][1] == direct.growth_rate
        for name in ("time(s)", "box(cm)", "saturation_times", "drift"):
            assert file[name].shape == (5,)
        angular = file["angular/lebedev_7"]
        assert angular["rows"][()].tolist() == [0, 1, 2, 3, 4]
        np.testing.assert_allclose(angular["probability"][1], direct.probability[:, :2], atol=1e-6)
        assert np.isnan(angular["probability"][0, :, 1]).all()
        assert json.loads(file.attrs["config"])["options"]["seed"] == 1
    rows = preprocess(
        check_config(
            {"data_root": str(tmp_path / "out"), "output_root": str(tmp_path / "p"), "files": [{"name": "made.h5"}]},
            PreprocessConfig,
        )
    )
    assert rows[-1].rows == 5
    np.testing.assert_allclose(read_states(rows[-1].path).shape, F.shape)


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_archives_of_few_rows_are_read(tmp_path, rows):
    """Their shape alone leaves more than one order of the axes."""
    config, F = config_for(tmp_path, max_steps=1)
    config["states"]["max_rows"] = rows
    path = simulate_archive(check_config(config, SimulateConfig)).path
    found = inspect(path, H5Paths(), None)
    np.testing.assert_array_equal(found.F_init.read(0, rows), F[:rows])
    assert found.F_true.read(0, rows).shape == (rows, 6, 4)
    with h5py.File(path, "a") as file:
        file["F4_initial(1|ccm)"].attrs["axes"] = "something else"
    if rows > 1:
        with pytest.raises(DataError, match="say which in the configuration"):
            inspect(path, H5Paths(), None)


@pytest.mark.parametrize(
    ("rows", "order", "said"),
    [
        (8, (3, 2, 1, 0), None),
        (8, (1, 0, 3, 2), None),
        (4, (1, 0, 2, 3), "component, row, nu_nubar, flavor"),
        (3, (3, 2, 1, 0), "flavor, nu_nubar, component, row"),
        (3, (3, 2, 1, 0), None),
    ],
)
def test_states_of_raw_files_in_other_orders(tmp_path, rows, order, said):
    F = random_states(rows)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["F4_initial(1|ccm)"] = fourflux.to_emu(F).transpose(order)
        if said:
            file["F4_initial(1|ccm)"].attrs["axes"] = said
    if rows < 4 and not said:
        with pytest.raises(DataError, match=r"'F4_initial\(1\|ccm\)' has shape \(3, 2, 4, 3\)"):
            read_states(tmp_path / "a.h5")
    else:
        np.testing.assert_array_equal(read_states(tmp_path / "a.h5"), F)


def test_states_that_were_not_begun_have_no_final_one(tmp_path, caplog):
    """What is unstable and unchanged would be learned as truth."""
    config, _ = config_for(tmp_path, max_steps=60)
    config["states"]["rows"] = [3, 1]
    with h5py.File(tmp_path / "states.h5", "a") as file:
        file["F4_initial(1|ccm)"][1] = fourflux.to_emu(merger()[None] * [0.4, 0.4, 0.4, 1])[0]
    with h5py.File(simulate_archive(check_config(config, SimulateConfig)).path) as file:
        assert file["stopped"].asstr()[()].tolist() == ["steps", "slow"]
        assert np.isfinite(file["F4_final(1|ccm)"][0]).all()
        assert np.isnan(file["F4_final(1|ccm)"][1]).all()
    assert "no final states of rows 1," in caplog.text


def test_other_options_are_another_result(tmp_path):
    config, _ = config_for(tmp_path)
    config["states"]["rows"] = [2]
    simulate_archive(check_config(config, SimulateConfig))
    config["options"]["seed"] = 2
    assert simulate_archive(check_config(config, SimulateConfig)).simulated == 1
    assert simulate_archive(check_config(config, SimulateConfig), resume=False).simulated == 1


def test_what_killed_runs_leave_is_removed(tmp_path):
    """One killed while it removed the states of a finished archive, and one while it wrote a state of another."""
    config = check_config(config_for(tmp_path, max_steps=1)[0], SimulateConfig)
    kept = {}
    write = archive._write_archive

    def keeping(*arguments):
        kept.update({place: place.read_bytes() for place in (tmp_path / "out/made.h5.parts").iterdir()})
        write(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive, "_write_archive", keeping)
        target = simulate_archive(config).path
    whole = target.read_bytes()
    for again in (True, False):
        (tmp_path / "out/made.h5.parts").mkdir()
        for place, content in list(kept.items())[2:]:
            place.write_bytes(content)
        (tmp_path / "out/made.h5.parts" / f".other.h5.{outputs._HOST}-1-0.tmp").write_bytes(b"half")
        assert simulate_archive(config, resume=again).simulated == (0 if again else 5)
        assert [path.name for path in target.parent.iterdir()] == ["made.h5"]
        assert target.read_bytes() == whole


def test_a_damaged_state_is_simulated_again(tmp_path):
    config = check_config(config_for(tmp_path, max_steps=1)[0], SimulateConfig)
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(archive, "_write_archive")
        with pytest.raises(NameError):
            simulate_archive(config)
    short, empty, *_ = (tmp_path / "out/made.h5.parts").iterdir()
    os.truncate(short, 3000)
    os.truncate(empty, 0)
    written = simulate_archive(config)
    assert (written.rows, written.simulated) == (5, 2)


@pytest.mark.slow
def test_a_process_that_is_killed_is_one_message(tmp_path, monkeypatch):
    config = check_config({**config_for(tmp_path)[0], "processes": 2}, SimulateConfig)
    monkeypatch.setattr(archive, "run_row", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(ClusterError, match=r"a process of the simulation was killed, .* run again"):
        simulate_archive(config)


def test_an_interrupt_is_no_traceback(monkeypatch):
    faults = []
    monkeypatch.setattr(threading, "excepthook", faults.append)
    # Importing dask_jobqueue leaves another one.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    work = archive._processes(time.sleep, [(0.3,)] * 12, 2)
    next(work)
    threading.Timer(0.2, _thread.interrupt_main).start()
    with pytest.raises(KeyboardInterrupt):
        list(work)
    signal.signal(signal.SIGINT, before)
    for thread in threading.enumerate():
        if thread.name == "ExecutorManagerThread":
            thread.join(10)
    assert faults == []


def test_without_shared_memory(tmp_path, monkeypatch, caplog):
    """What a container without /dev/shm says to the semaphores that processes share."""

    def refused(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(multiprocessing, "Semaphore", refused)
    config = check_config({**config_for(tmp_path, max_steps=1)[0], "processes": 2}, SimulateConfig)
    assert simulate_archive(config).simulated == 5
    assert "see to /dev/shm; one state after another" in caplog.text
    with pytest.raises(ClusterError, match=r"local:2: no shared memory \(.*see to /dev/shm, or leave it out"):
        simulate_archive(config, resume=False, scheduler="local:2")


def test_rows_that_are_not_there(tmp_path):
    config, _ = config_for(tmp_path)
    config["states"]["rows"] = [0, 9]
    with pytest.raises(DataError, match="has 5 rows, and no row 9"):
        simulate_archive(check_config(config, SimulateConfig))


def test_rows_of_a_file(tmp_path):
    config, F = config_for(tmp_path)
    path = config["states"]["path"]
    for rows in (None, 3, [4, 0], slice(1, 3)):
        np.testing.assert_allclose(read_states(path, rows), F if rows is None else F[rows], rtol=1e-15)
    short = {**ONE, "max_steps": 1}  # not begun
    one = simulate(path, rows=1, **short)
    np.testing.assert_array_equal(one.F_final, read_states(path, 1))
    assert one.growth_rate == simulate(F[1], **short).growth_rate
    assert simulate(path, rows=[1, 2], **short).F_final.shape == (2, 6, 4)
    for rows, message in (([0, 5], "and no row 5"), (-1, "and no row -1"), ([0.5], "expected numbers of rows")):
        with pytest.raises(DataError, match=message):
            simulate(path, rows=rows, **short)
    with pytest.raises(ConfigError, match="rows choose from a file"):
        simulate(F, rows=1, **short)
    with pytest.raises(DataError, match="no such file"):
        simulate(str(tmp_path / "none.h5"))
    with h5py.File(path, "a") as file:
        file["F4_initial(1|ccm)"][1, :3] *= 40
        file["F4_initial(1|ccm)"][3] = 0
        file["F4_initial(1|ccm)"][4, :3, 0, 0] = 0, 0.3 * F[4, 0, 3], 0.94 * F[4, 0, 3]
    for row, message in (
        (1, r"states\.h5 row 1, nu_e: .* exceeds N"),
        (3, "row 3: no neutrinos"),
        (4, "row 4.* flux factor"),
    ):
        config["states"]["rows"] = [0, row]
        with pytest.raises(FourFluxError, match=message):
            simulate(path, rows=[0, row], **short)
        with pytest.raises(FourFluxError, match=message):
            simulate_archive(check_config(config, SimulateConfig))


def command_for(python, config, path):
    path.write_text(yaml.safe_dump(config))
    return [python, "-m", "rheidae.simulate", "--config", str(path)]


def by_command(python, config, path):
    """Text that a process of its own prints, with the kernels of the cache, whatever this one has compiled."""
    return subprocess.run(command_for(python, config, path), capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_killed_and_resumed(tmp_path, python):
    """A command that is killed after its first state goes on from there, to the file of an undisturbed one."""
    config, _ = config_for(tmp_path)
    path = tmp_path / "simulate.yaml"
    process = subprocess.Popen(command_for(python, config, path), stderr=subprocess.PIPE, text=True)
    parts = tmp_path / "out" / "made.h5.parts"
    while not list(parts.glob("*.h5")) and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert process.returncode in (-signal.SIGKILL, 0)
    done = len(list(parts.glob("*.h5"))) if parts.is_dir() else 5
    assert done >= 1
    assert f"5 rows, {5 - done} simulated now" in by_command(python, config, path)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["made.h5"]
    by_command(python, {**config, "output_root": str(tmp_path / "whole")}, path)
    with h5py.File(tmp_path / "out" / "made.h5") as a, h5py.File(tmp_path / "whole" / "made.h5") as b:
        for name in ("F4_final(1|ccm)", "F4_final_stddev(1|ccm)", "drift"):
            np.testing.assert_array_equal(a[name][()], b[name][()])


@pytest.mark.slow
def test_several_processes_and_a_cluster_give_the_same(tmp_path, python):
    config, _ = config_for(tmp_path)
    by_command(python, {**config, "output_root": str(tmp_path / "one")}, tmp_path / "simulate.yaml")
    for name, processes, scheduler in (("two", 2, None), ("dask", 1, "local:1")):
        chosen = {**config, "output_root": str(tmp_path / name), "processes": processes}
        simulate_archive(check_config(chosen, SimulateConfig), scheduler=scheduler)
    finals = []
    for name in ("one", "two", "dask"):
        with h5py.File(tmp_path / name / "made.h5") as file:
            finals.append(file["F4_final(1|ccm)"][()])
    np.testing.assert_array_equal(finals[0], finals[1])
    np.testing.assert_array_equal(finals[0], finals[2])


# --- names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["from rheidae import simulate", "import rheidae.simulate.solver"])
def test_the_name_is_the_function_whatever_was_imported_before(first):
    code = f"{first}\nfrom rheidae import simulate\nimport rheidae\nassert simulate is rheidae.simulate is not rheidae"
    code += "\nassert callable(simulate)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_folder_is_a_command(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "rheidae.simulate", "--config", str(tmp_path / "none.yaml")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "no such file" in done.stderr


def test_shipped_configuration_is_that_of_the_defaults():
    from pathlib import Path

    from rheidae.config import read_config

    config = read_config(Path(__file__).parents[1] / "config" / "simulate.yaml", SimulateConfig)
    assert config.options == Options()
    assert rheidae.simulate is simulate
