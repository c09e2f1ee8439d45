"""One state in one box: from moments to the state after the instability."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from rheidae.exceptions import ConfigError, FourFluxError
from rheidae.fourflux import T
from rheidae.linear.distributions import LITTLE, Array, Closure, alike, matched
from rheidae.linear.stability import PAIRS, POTENTIAL, SPEED_OF_LIGHT, discrete_mode
from rheidae.mixing.quadrature import lebedev
from rheidae.simulate.options import DIRECTION_ORDERS, Options
from rheidae.system.memory import require_memory

SATURATION = math.log(1e6)
"""A saturation time is this over the growth rate: a perturbation of 1e-6 grows to order one."""

DENSE_CELLS = 128
"""Up to so many cells a side a shift by dense matrices is quicker than by transforms; see ``_solver_kernels.py``."""

_ORDERS = ((0.62, 11), (0.75, 15), (0.85, 19), (0.9, 23), (0.93, 29), (0.95, 35), (0.97, 47), (0.985, 71))
"""Largest flux factor of each order of directions: from there on plain quadrature misses the flux by 0.3 percent."""

FINE = 23
"""Lebedev order whose directions a state must be stable on, to be called so; that of `rheidae.linear`."""

_SAMPLES = 40
"""Records in a saturation time."""


def order_for(states: Array) -> NDArray[np.int64]:
    """Lebedev order whose directions resolve the most forward peaked species of each state ``(n, 6, 4)``.

    Raises `FourFluxError` if a flux factor is above 0.985: no rule has the directions.
    """
    N = states[:, :, T]
    factor = np.divide(np.linalg.norm(states[:, :, :3], axis=2), N, out=np.zeros_like(N), where=N > 0)
    factor = np.where(LITTLE * N.sum(axis=1, keepdims=True) < N, factor, 0.0).max(axis=1)
    out = np.zeros(len(states), dtype=np.int64)
    for limit, order in reversed(_ORDERS):
        out[factor <= limit] = order
    if (out == 0).any():
        row = int(np.argmin(out))
        raise FourFluxError(
            f"row {row}: flux factor {factor[row]:.4g} is above {_ORDERS[-1][0]}, more than the directions of any rule "
            f"resolve; give order (up to {DIRECTION_ORDERS[-1]}) to simulate it all the same"
        )
    return out


@dataclass(frozen=True)
class Setup:
    """A state made ready to run; ``prepare`` makes one. Lengths in cm, c = 1."""

    order: int
    directions: Array
    """(3, m)"""
    weights: Array
    N: Array
    """(2, 3, m): number density of each direction, 1/cm^3."""
    G: Array
    """(1 or 2, m): weights of Q_e and, where mu and tau differ, of Q_mu, 1/cm."""
    growth_rate: float
    """1/cm"""
    slowest: float
    """Growth rate of the slowest pair of flavors that grows, 1/cm."""
    box: Array
    """(d, 3)"""
    side: float
    cells: int
    time_step: float
    steps: int
    """At most."""
    stopped: str
    """Why there is nothing to run; empty where there is."""

    @property
    def saturation_time(self) -> float:
        """In cm."""
        return SATURATION / self.growth_rate if self.growth_rate > 0 else math.inf

    @property
    def cost(self) -> float:
        """Work to be expected, in matrices turned."""
        if self.stopped:
            return 0.0
        likely = min(self.steps, math.ceil(7.5 * SATURATION / self.slowest / self.time_step))
        return float(likely) * self.G.size * self.cells ** len(self.box)

    @property
    def memory(self) -> float:
        """Bytes that a run takes, within 7 percent of what `resource.getrusage` finds from 400 MB to 1.6 GB."""
        if self.stopped:
            return 0.0
        dimensions = len(self.box)
        cells = float(self.cells) ** dimensions * (32 * self.G.size + 180 * len(self.G))  # float32, then perturbations
        dense = 16.0 * self.G.size * dimensions * self.cells**2 if self.cells <= DENSE_CELLS else 0.0
        return cells + dense


@dataclass(frozen=True)
class Run:
    """What came out of one state; arrays as in `rheidae.simulate.Simulation`."""

    F_final: Array
    F_std: Array
    probability: Array
    """(m, 3, 3)"""
    growth_rate: float
    drift: float
    saturation_times: float
    converged: bool
    stopped: str
    time: float
    side: float
    steps: int


@contextmanager
def naming_rows(rows: Sequence[int]) -> Iterator[None]:
    """Errors of some states name the rows that these are."""
    try:
        yield
    except FourFluxError as error:
        said = re.sub(r"(.*row )(\d+)", lambda found: f"{found[1]}{rows[int(found[2])]}", str(error))
        raise FourFluxError(said) from error


def prepare(state: Array, options: Options, closure: str | Closure = "minerbo", row: int = 0) -> Setup:
    """Directions, distributions, growth rate, box and time step for one state ``(6, 4)``, which errors call `row`.

    Raises `FourFluxError` if the directions do not represent a flux factor.
    """
    with naming_rows([row]):
        order = options.order or int(order_for(state[None])[0])
        N = matched(state[None], order, closure)[0].reshape(2, 3, -1)
    rule = lebedev(order)
    same = bool(alike(state[None])[0])
    if same and closure == "minerbo":
        N[:, 1:] = N[:, 1:].mean(axis=1, keepdims=True)
    elif same:
        same = bool(np.abs(N[:, 1] - N[:, 2]).max() <= 1e-6 * N.sum() / N.shape[2])
    D = N[0] - N[1]
    G = POTENTIAL * (D[:1] - D[2:] if same else D[:2] - D[2])
    potential = np.abs(POTENTIAL * (D[0] - 0.5 * (D[1] + D[2]))).sum() + (0.0 if same else np.abs(G[1]).sum())
    box = _box_axes(D, rule.nodes, same, options.dimensions)
    mode = discrete_mode(D[None], rule.nodes, np.array([same]), None if len(box) == 3 else box)
    rate = float(mode.growth_rate[0]) / SPEED_OF_LIGHT
    slowest = rate if same or rate == 0 else _slowest(D, rule.nodes, None if len(box) == 3 else box)
    waves, cells = options.sides()
    setup: dict[str, Any] = {
        "order": order, "directions": rule.nodes, "weights": rule.weights, "N": N, "G": G, "growth_rate": rate,
        "slowest": slowest, "box": box, "cells": cells,
    }  # fmt: skip
    if rate == 0:
        fine = options.model_copy(update={"order": FINE})
        hidden = order < FINE and prepare(state, fine, closure, row).growth_rate > 0
        stopped = "directions" if hidden else "stable"
        return Setup(**setup, side=math.nan, time_step=math.nan, steps=0, stopped=stopped)
    # A wave number near zero would make the box endless: it is then measured by the width of the unstable range.
    a, b = ((0, 1), (0, 2), (1, 2))[int(mode.pair[0])]
    g = POTENTIAL * (D[a] - (0.5 * (D[1] + D[2]) if same else D[b]))
    K = mode.wave_vector[0]
    number = max(np.linalg.norm(K), 0.3 * np.linalg.norm(K - rule.nodes @ g), 0.1 * np.abs(g).sum())
    side, time_step = waves * 2 * math.pi / number, options.time_step / potential
    wanted = (options.saturation_times or options.max_saturation_times) * SATURATION / rate / time_step
    least = (options.saturation_times or options.min_saturation_times) * SATURATION / rate / time_step
    steps = min(math.ceil(wanted), options.max_steps)
    return Setup(**setup, side=side, time_step=time_step, steps=steps, stopped="slow" if steps < 0.5 * least else "")


def _slowest(D: Array, nodes: Array, box: Array | None) -> float:
    """Growth rate, 1/cm, of the slowest pair of flavors that grows."""
    pairs = np.zeros((len(PAIRS), *D.shape))
    for pair, (a, b) in zip(pairs, PAIRS, strict=True):
        pair[0] = D[a] - D[b]
    rates = discrete_mode(pairs, nodes, np.ones(len(PAIRS), dtype=np.bool_), box).growth_rate
    return float(rates[rates > 0].min()) / SPEED_OF_LIGHT


def _box_axes(D: Array, nodes: Array, same: bool, dimensions: int) -> Array:
    if dimensions == 3:
        return np.eye(3)
    flux = (D[0] - 0.5 * (D[1] + D[2])) @ nodes.T
    size = np.linalg.norm(flux)
    first = flux / size if size > 1e-12 * np.abs(D).sum() else np.array([0.0, 0.0, 1.0])
    if dimensions == 1:
        return first[None]
    K = discrete_mode(D[None], nodes, np.array([same])).wave_vector[0]
    for way in (K, np.eye(3)[np.argmin(np.abs(first))]):
        second = way - (way @ first) * first
        if np.linalg.norm(second) > 1e-3 * np.linalg.norm(way):
            break
    return np.stack([first, second / np.linalg.norm(second)])


class Solver:
    """The matrices of one box, and their time step; see ``_solver_kernels.py``."""

    def __init__(self, setup: Setup, perturbation: float, seed: int, time_step: float | None = None) -> None:
        from rheidae.simulate import _solver_kernels as kernels

        self._kernels = kernels
        self.dimensions, self.cells = len(setup.box), setup.cells
        self.count = self.cells**self.dimensions
        self.time_step = setup.time_step if time_step is None else time_step
        matrices = len(setup.G)
        self.pairs = opposite(setup.directions)
        self.q = np.empty((len(self.pairs), matrices, 2, kernels.NUMBERS, self.count), dtype=np.float32)
        rng = np.random.default_rng(seed)
        for pair in range(len(self.pairs)):
            for side in range(2):
                self.q[pair, :, side] = _perturbed(rng, perturbation, matrices, self.count)
        first = setup.directions[:, self.pairs[:, 0]].T
        G = setup.G[:, self.pairs].transpose(1, 0, 2)
        moment = setup.G.sum(axis=0) @ setup.directions.T
        self._turning = (
            np.ascontiguousarray(first, dtype=np.float32),
            np.ascontiguousarray(G, dtype=np.float32),
            (-first @ moment).astype(np.float32),
            np.array([*setup.G.sum(axis=1), 0.0][:2], dtype=np.float32) if matrices == 2 else
            np.array([setup.G.sum(), 0.0], dtype=np.float32),
        )  # fmt: skip
        work = len(self.pairs) * matrices * 2 * kernels.NUMBERS * kernels.BLOCK
        self._work = (*(np.zeros(work, dtype=np.float32) for _ in range(3)),
                      np.empty((2, 4 * kernels.NUMBERS * kernels.BLOCK), dtype=np.float32))  # fmt: skip
        # Cells that a direction crosses in a step, along each axis: (pairs, 2, d).
        crossed = (setup.box @ setup.directions * (self.time_step * self.cells / setup.side)).T[self.pairs]
        self._half, self._full = (Shift(0.5 * crossed, matrices, self.cells), Shift(crossed, matrices, self.cells))

    def start(self) -> None:
        """Half a step of advection, with which Strang's splitting begins (and ends)."""
        self._half(self.q)

    def turn(self) -> None:
        """One step of the local part."""
        self._kernels.turn(self.q, *self._turning, np.float32(self.time_step), *self._work)

    def advect(self) -> None:
        """One step of advection, which does not change the means."""
        self._full(self.q)

    def means(self) -> Array:
        """Mean 00 and 11 elements of each matrix: ``(m, matrices, 2)``, directions in the order of the setup."""
        out = np.empty((*self.q.shape[:3], 2))
        self._kernels.means(self.q, out)
        result = np.empty((2 * len(self.pairs), self.q.shape[1], 2))
        for side in range(2):
            result[self.pairs[:, side]] = out[:, :, side]
        return result


def opposite(directions: Array) -> NDArray[np.int64]:
    """Pairs ``(m/2, 2)`` of opposite directions ``(3, m)``, which every Lebedev rule consists of."""
    partner = np.argmin(directions.T @ directions, axis=1)
    first = np.flatnonzero(np.arange(len(partner)) < partner)
    return np.stack([first, partner[first]], axis=1)


def _perturbed(rng: np.random.Generator, size: float, matrices: int, cells: int) -> NDArray[np.float32]:
    """Projectors ``(matrices, 8, cells)`` on slightly turned flavors: one unitary matrix in each cell."""
    z = size * (rng.uniform(-1, 1, (3, cells)) + 1j * rng.uniform(-1, 1, (3, cells)))
    one = np.ones(cells)
    e = np.stack([one, z[0], z[1]])
    e /= np.linalg.norm(e, axis=0)
    states = [e]
    if matrices == 2:
        mu = np.stack([-z[0].conj(), one, z[2]])
        mu = mu - e * (e.conj() * mu).sum(axis=0)
        states.append(mu / np.linalg.norm(mu, axis=0))
    out = np.empty((matrices, 8, cells), dtype=np.float32)
    for target, v in zip(out, states, strict=True):
        target[0], target[1] = np.abs(v[0]) ** 2, np.abs(v[1]) ** 2
        for slot, (a, b) in enumerate(((0, 1), (0, 2), (1, 2))):
            element = v[a] * v[b].conj()
            target[2 + 2 * slot], target[3 + 2 * slot] = element.real, element.imag
    return out


class Shift:
    """Shifts of each direction by a number of cells, ``crossed (pairs, 2, d)``: exact for the waves of the box."""

    def __init__(self, crossed: Array, matrices: int, cells: int) -> None:
        self.cells, self.dimensions = cells, crossed.shape[2]
        crossed = np.repeat(crossed[:, None], matrices, axis=1).reshape(-1, self.dimensions)
        number = np.fft.fftfreq(cells, 1 / cells)
        phase = np.exp(-2j * np.pi * number * crossed[..., None] / cells)
        # The shortest wave of an even number of cells has no direction. It moves both ways and keeps their mean, a
        # cosine: a loss, the sink of what cascades to small scales; without it (odd numbers of cells) that piles up.
        if cells % 2 == 0:
            phase[..., cells // 2] = phase[..., cells // 2].real
        self.dense = cells <= DENSE_CELLS
        if self.dense:
            first = np.fft.ifft(phase).real
            index = (np.arange(cells)[:, None] - np.arange(cells)) % cells
            self._matrices = np.ascontiguousarray(first[..., index], dtype=np.float32)
        else:
            self._phase = phase.astype(np.complex64)

    def __call__(self, q: NDArray[np.float32]) -> None:
        """Shift ``q (pairs, matrices, 2, numbers, cells**d)`` in place; x runs fastest among the cells."""
        from rheidae.simulate import _solver_kernels as kernels

        flat = q.reshape(-1, *q.shape[-2:])
        if self.dense:
            kernels.shift(flat, self._matrices, self.cells, self.dimensions)
            return
        from scipy import fft

        axes = tuple(range(1, self.dimensions + 1))
        for numbers, phase in zip(flat, self._phase, strict=True):
            waves = fft.rfftn(numbers.reshape(-1, *(self.cells,) * self.dimensions), axes=axes)
            for axis in range(self.dimensions):
                along = phase[axis][: waves.shape[-1]] if axis == 0 else phase[axis]
                waves *= along.reshape(-1, *(1,) * axis)
            numbers[:] = fft.irfftn(waves, s=(self.cells,) * self.dimensions, axes=axes).reshape(numbers.shape)


def require_room(setups: Iterable[Setup]) -> None:
    """Raise `ConfigError` if one of the runs takes more memory than there is."""
    largest = max(setups, key=lambda setup: setup.memory, default=None)
    if largest is not None:
        box = f"cells: a box of {largest.cells} a side in {len(largest.box)}D with {largest.G.shape[1]} directions"
        require_memory(largest.memory, box, "choose fewer cells, or a lower order", ConfigError)


def run(setup: Setup, state: Array, options: Options) -> Run:
    """Run a prepared state to its end."""
    require_room([setup])
    m, matrices = setup.N.shape[2], len(setup.G)
    rate = setup.growth_rate * SPEED_OF_LIGHT
    if setup.stopped:
        unchanged = np.broadcast_to(np.eye(3), (m, 3, 3)).copy()
        return Run(
            state.copy(), np.zeros((6, 4)), unchanged, rate, 0.0, 0.0, setup.stopped == "stable", setup.stopped, 0.0,
            setup.side, 0,
        )  # fmt: skip
    solver = Solver(setup, options.perturbation, options.seed)
    every = max(1, int(setup.saturation_time / setup.time_step / _SAMPLES))
    check = max(1, int(0.5 * setup.saturation_time / setup.time_step / every))
    # Unlike mu and tau mix in stages: between two of them little drifts.
    first_check = options.min_saturation_times * SATURATION / setup.slowest
    records: list[Array] = []
    times: list[float] = []
    stopped, drift = "", math.nan
    total = state[:, T].sum()
    solver.start()
    for step in range(1, setup.steps + 1):
        solver.turn()
        if step % every == 0 or step == setup.steps:
            records.append(solver.means())
            times.append(step * setup.time_step)
            if options.saturation_times is None and len(records) % check == 0 and times[-1] >= first_check:
                drift = _drift(setup, records, times, total)
                if drift < options.drift:
                    stopped = "drift"
                    break
        solver.advect()
    if not stopped:
        drift = _drift(setup, records, times, total)
        limited = setup.steps == options.max_steps
        stopped = "steps" if limited else "saturation times"
    end = times[-1]
    last = [record for record, time in zip(records, times, strict=True) if time >= end * (1 - options.window)]
    mean = np.mean(last, axis=0)
    moments = np.array([_moments(setup, probabilities(record, matrices)) for record in last])
    probability = probabilities(mean, matrices)
    return Run(
        F_final=_moments(setup, probability),
        F_std=moments.std(axis=0),
        probability=probability,
        growth_rate=rate,
        drift=drift,
        saturation_times=end / setup.saturation_time,
        converged=bool(drift < options.drift and end >= first_check),
        stopped=stopped,
        time=end / SPEED_OF_LIGHT,
        side=setup.side,
        steps=step,
    )


def run_row(row: int, setup: Setup, state: Array, options: Options) -> tuple[int, Run]:
    """`run` in a process of its own, perhaps on another machine, which needs to import little."""
    with threadpool_limits(1, user_api="blas"):
        return row, run(setup, state, options)


def probabilities(record: Array, matrices: int) -> Array:
    """Transition probabilities ``(m, 3, 3)``, initial then final flavor, from mean diagonals ``(m, matrices, 2)``.

    Where mu and tau start alike, both stand for their average.
    """
    P = np.empty((len(record), 3, 3))
    P[:, :matrices, :2] = record
    P[:, :matrices, 2] = 1 - record.sum(axis=2)
    if matrices == 1:
        survival = P[:, 0, 0].copy()
        P[:, 0, 1:] = P[:, 1:, 0] = (0.5 * (1 - survival))[:, None]
        P[:, 1:, 1:] = (0.25 * (1 + survival))[:, None, None]
    else:
        P[:, 2] = 1 - P[:, 0] - P[:, 1]
    return P


def _moments(setup: Setup, P: Array) -> Array:
    """Four-fluxes ``(6, 4)`` of distributions mixed by ``P (m, 3, 3)``."""
    out = np.einsum("sam,mab->sbm", setup.N, P)
    return np.concatenate([out @ setup.directions.T, out.sum(axis=2, keepdims=True)], axis=2).reshape(6, 4)


def _drift(setup: Setup, records: list[Array], times: list[float], total: float) -> float:
    """Four-flux distance of the means of the third and the last quarter of a run, over the total density."""
    t, end = np.array(times), times[-1]
    quarters = ((t >= 0.5 * end) & (t < 0.75 * end), t >= 0.75 * end)
    if not all(quarter.any() for quarter in quarters):
        return math.nan
    moments = [
        _moments(setup, probabilities(np.mean([records[i] for i in np.flatnonzero(quarter)], axis=0), len(setup.G)))
        for quarter in quarters
    ]
    return float(np.linalg.norm(moments[0] - moments[1], axis=1).mean() / total)
