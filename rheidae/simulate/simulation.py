"""The public function: states in, what is left after the instability out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rheidae.config import check_config
from rheidae.exceptions import ConfigError
from rheidae.linear.distributions import Array, Closure, as_states
from rheidae.mixing.quadrature import lebedev
from rheidae.simulate.options import Options
from rheidae.simulate.solver import Run, Setup, naming_rows, prepare, require_room, run_row

if TYPE_CHECKING:
    from rheidae.simulate.archive import RowSelection


class Simulation(NamedTuple):
    """What `simulate` found for each state; ``...`` is the leading shape of its input.

    Attributes
    ----------
    F_final : ndarray, shape (..., 6, 4)
        Four-fluxes after the instability, mean over the last part of the run, 1/cm^3. Where mu and tau start alike
        both are their average: which of them ends larger is noise.
    F_std : ndarray, shape (..., 6, 4)
        Standard deviation over that part.
    growth_rate : ndarray, shape (...)
        Of the fastest mode in the box by linear stability of the discrete distribution, 1/s.
    probability : ndarray, shape (..., m, 3, 3)
        Probability that what starts as flavor a (e, mu, tau) in a direction ends as flavor b; the same for neutrinos
        and antineutrinos. Rows and columns add up to 1.
    directions : ndarray, shape (..., m, 3)
        Unit vectors.
    weights : ndarray, shape (..., m)
        Of the quadrature, adding up to 4 pi. Where states have different numbers of directions the smaller sets are
        filled up with weights 0, directions 0 and probabilities of no change.
    drift : ndarray, shape (...)
        Four-flux distance between the means of the last two quarters of the run, over the total density.
    saturation_times : ndarray, shape (...)
        How long the run was, in units of ln 10^6 over the growth rate.
    converged : ndarray of bool, shape (...)
        Whether the drift is below its bound, after `min_saturation_times` at least; True for stable states.
    stopped : ndarray of str, shape (...)
        Why the run ended: "drift" (below its bound), "saturation times" or "steps" (their largest number), "stable" (no
        mode grows; unchanged), "directions" (none grows on these, but on finer ones: give a higher order; unchanged) or
        "slow" (it would not saturate within the steps allowed; unchanged).
    time : ndarray, shape (...)
        s
    box : ndarray, shape (...)
        Length of a side, cm; NaN for stable states.
    steps : ndarray of int, shape (...)
    """

    F_final: Array
    F_std: Array
    growth_rate: Array
    probability: Array
    directions: Array
    weights: Array
    drift: Array
    saturation_times: Array
    converged: NDArray[np.bool_]
    stopped: NDArray[np.str_]
    time: Array
    box: Array
    steps: NDArray[np.int64]


def simulate(
    F_init: ArrayLike | str | Path, *, rows: RowSelection = None, closure: str | Closure = "minerbo", **options: Any
) -> Simulation:
    """Simulate the fast flavor instability in a periodic box until it has settled.

    Parameters
    ----------
    F_init : array_like, shape (..., 6, 4), or path
        Initial four-fluxes: species (nu_e, nu_mu, nu_tau, nubar_e, nubar_mu, nubar_tau), then (x, y, z, t), 1/cm^3;
        or a raw or preprocessed file that holds them.
    rows : int, sequence of int or slice, optional
        Which rows of a file, from 0 on. Default: all.
    closure : "minerbo" or callable
        Initial angular distributions: ``closure(F, species, directions)`` returns, for one four-flux ``F (4)`` of
        species 0 to 5, a number >= 0 for each of ``directions (m, 3)``. It is multiplied by ``exp(a + b.n)`` so that
        the moments of the discrete distribution are those of `F_init`, to 1e-6.
    **options
        See `rheidae.simulate.options.Options`: dimensions, cells, wavelengths, order, perturbation, seed,
        saturation_times, drift, min_saturation_times, max_saturation_times, max_steps, time_step, window.

    Returns
    -------
    Simulation

    Raises
    ------
    FourFluxError
        If `F_init` has another shape, a row is not physical or holds no neutrinos, or the directions are too few for
        a flux factor.
    DataError
        If a file cannot be read, holds no initial four-fluxes, or lacks one of the rows.
    ConfigError
        If an option is unknown or outside its range, such as a box too small for the mode, or if a run takes more
        memory than is free.

    Notes
    -----
    The equations and the numerical scheme stand in ``_solver_kernels.py``; the proof that the answers are converged in
    ``docs/simulate.md``. A state takes about ten seconds of one thread and 10 MB with the defaults. Distributions, and
    with them the instability, are those of a homogeneous background: no collisions, no vacuum term, no gradients.
    """
    chosen = check_config(options, Options, "simulate")
    if isinstance(F_init, str | Path):
        from rheidae.simulate.archive import read_rows

        found, numbers = read_rows(F_init, rows)
        with naming_rows(numbers):
            states, leading = as_states(found, str(F_init))
    elif rows is None:
        states, leading = as_states(F_init)
        numbers = list(range(len(states)))
    else:
        raise ConfigError("simulate: rows choose from a file; index the array instead")
    setups = [prepare(state, chosen, closure, row) for state, row in zip(states, numbers, strict=True)]
    require_room(setups)
    runs = [run_row(0, setup, state, chosen)[1] for setup, state in zip(setups, states, strict=True)]
    return gathered(setups, runs, leading)


def gathered(setups: Sequence[Setup], runs: Sequence[Run], leading: tuple[int, ...]) -> Simulation:
    """Arrays from single runs."""
    m = max((setup.N.shape[2] for setup in setups), default=0)
    n = len(runs)
    probability = np.broadcast_to(np.eye(3), (n, m, 3, 3)).copy()
    directions, weights = np.zeros((n, m, 3)), np.zeros((n, m))
    for row, (setup, one) in enumerate(zip(setups, runs, strict=True)):
        rule = lebedev(setup.order)
        count = len(rule.weights)
        probability[row, :count] = one.probability
        directions[row, :count], weights[row, :count] = rule.nodes.T, rule.weights

    def column(name: str, dtype: Any = np.float64) -> Any:
        return np.array([getattr(one, name) for one in runs], dtype=dtype).reshape(leading)

    return Simulation(
        F_final=np.array([one.F_final for one in runs]).reshape(*leading, 6, 4),
        F_std=np.array([one.F_std for one in runs]).reshape(*leading, 6, 4),
        growth_rate=column("growth_rate"),
        probability=probability.reshape(*leading, m, 3, 3),
        directions=directions.reshape(*leading, m, 3),
        weights=weights.reshape(*leading, m),
        drift=column("drift"),
        saturation_times=column("saturation_times"),
        converged=column("converged", np.bool_),
        stopped=column("stopped", np.str_),
        time=column("time"),
        box=column("side"),
        steps=column("steps", np.int64),
    )
