"""The quick growth rate: a regression of the exact one on rotation invariants.

    python -m rheidae.linear.regression

draws states at random, computes their exact growth rates, fits, writes the coefficients that the package ships, and
says the error on draws that were not used. No simulation and no scored row takes part.
"""

from __future__ import annotations

import argparse
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from rheidae.linear.distributions import LATITUDES, Array, have_beams
from rheidae.linear.stability import POTENTIAL, SPEED_OF_LIGHT, fastest_mode
from rheidae.mixing.asymptotic import tables_of
from rheidae.system import commands

RULE = 11
"""Lebedev order of the features: 50 nodes."""

COEFFICIENTS = "growth_rate.npz"
HIDDEN = 32
_BLOCK = 1 << 14


def fast_growth_rate(states: Array) -> Array:
    """Growth rates ``(n,)``, 1/s, to a few percent, of physical states ``(n, 6, 4)`` in 1/cm^3; see `rheidae.linear`.

    About a microsecond a row.
    """
    return POTENTIAL * SPEED_OF_LIGHT * _rates(states, _coefficients())


def _rates(states: Array, coefficients: tuple[Any, ...]) -> Array:
    """In the unit of the states."""
    from rheidae.linear import _regression_kernels as kernels

    out = np.empty(len(states))
    for start in range(0, len(states), _BLOCK):
        part = slice(start, start + _BLOCK)
        kernels.rates(*features(states[part]), *coefficients, out[part])
    return out


def features(F: Array) -> tuple[Array, Array]:
    """Features ``(n, 3, 13)`` of the pairs of flavors, and their rates' scales ``sqrt(I_plus I_minus)``, ``(n, 3)``."""
    from rheidae.linear import _regression_kernels as kernels

    F = np.ascontiguousarray(F)
    x, scale = np.empty((len(F), 3, kernels.FEATURES)), np.empty((len(F), 3))
    kernels.features(F, *_half(), x, scale)
    beams = have_beams(F)
    if beams.any():  # whose kernels take seconds to compile
        own, size = np.empty((beams.sum(), 3, kernels.FEATURES)), np.empty((beams.sum(), 3))
        kernels.features_of_beams(F[beams], *tables_of(RULE, LATITUDES), own, size)
        x[beams], scale[beams] = own, size
    return x, scale


def constants() -> tuple[tuple[Array, ...], tuple[Any, ...]]:
    """Nodes and weights, and those for beams, and the coefficients that the package ships, for the kernels."""
    return (*_half(), *tables_of(RULE, LATITUDES)), _coefficients()


@cache
def _half() -> tuple[Array, Array]:
    """One of each pair of opposite nodes ``(3, pairs)``, and the weights."""
    table = tables_of(RULE)[0]
    half = table[:, : table.shape[1] // 2]
    half = half[:, half[3] > 0]  # without the padding
    return np.ascontiguousarray(half[:3]), np.ascontiguousarray(half[3])


@cache
def _coefficients() -> tuple[Any, ...]:
    with resources.files("rheidae.linear").joinpath(COEFFICIENTS).open("rb") as stream, np.load(stream) as held:
        return held["W"], held["b"], held["v"], float(held["c"])


# --- fitting -----------------------------------------------------------------------------------------------


def draw(count: int, seed: int) -> Array:
    """Random states ``(count, 6, 4)``, mu and tau alike.

    Densities within a factor of up to 7, flux factors up to 0.85, in two of five states of some species up to 1 - 1e-8;
    directions from independent to a narrow cone.
    """
    rng = np.random.default_rng(seed)
    N = np.exp(rng.uniform(-1, 1, (count, 6)) * rng.uniform(0.03, 1, (count, 1)))
    direction = rng.normal(size=(count, 6, 3))
    direction /= np.linalg.norm(direction, axis=2, keepdims=True)
    together = np.where(rng.random((count, 1, 1)) < 0.7, 3 * np.sqrt(rng.uniform(0, 1, (count, 1, 1))), 0.0)
    direction += together * np.array([0.0, 0.0, 1.0])
    direction /= np.linalg.norm(direction, axis=2, keepdims=True)
    factor = rng.uniform(0, 1, (count, 6)) * rng.uniform(0.15, 0.85, (count, 1))
    beam = (rng.random((count, 6)) < 0.5) & (rng.random((count, 1)) < 0.4)
    factor = np.where(beam, 1 - 10 ** -rng.uniform(0.5, 8, (count, 6)), factor)
    F = np.empty((count, 6, 4))
    F[..., 3] = N
    F[..., :3] = direction * (N * factor)[..., None]
    F[:, 2], F[:, 5] = F[:, 1], F[:, 4]
    return F


def exact(F: Array) -> Array:
    """Exact growth rates, in the unit of `F`."""
    return fastest_mode(F).growth_rate / (POTENTIAL * SPEED_OF_LIGHT)


def fit(F: Array, rate: Array, seed: int = 0) -> dict[str, Any]:
    """Coefficients of the regression."""
    from sklearn.neural_network import MLPRegressor

    X, scale = (of_pairs[:, 0] for of_pairs in features(F))
    good = (rate > 0) & (scale > 0) & (X[:, 0] > np.log(1e-3))
    X, y = X[good], np.log(rate[good] / scale[good])
    mean, spread = X.mean(axis=0), X.std(axis=0)
    network = MLPRegressor(
        hidden_layer_sizes=(HIDDEN,), activation="tanh", solver="lbfgs", alpha=1e-4, max_iter=3000, max_fun=10**6,
        random_state=seed,
    )  # fmt: skip
    network.fit((X - mean) / spread, y)
    W, v = network.coefs_
    b, c = network.intercepts_
    W = W / spread[:, None]
    return {"W": W, "b": b - mean @ W, "v": v[:, 0].copy(), "c": c[0]}


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m rheidae.linear.regression``."""
    parser = argparse.ArgumentParser(prog="python -m rheidae.linear.regression", description=__doc__)
    parser.add_argument("--states", type=int, default=32_000, help="states to fit (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", default=str(Path(__file__).with_name(COEFFICIENTS)), help="default: %(default)s")
    arguments = parser.parse_args(argv)

    def command() -> None:
        F, other = draw(arguments.states, arguments.seed), draw(3000, arguments.seed + 1)
        found = fit(F, exact(F))
        np.savez(arguments.output, **found)
        rate, quick = exact(other), _rates(other, tuple(found.values()))
        strong, beams = rate > 0.02 * other[:, :, 3].sum(axis=1), have_beams(other)
        for name, rows in (("without beams", strong & ~beams), ("with beams", strong & beams)):
            median, most = np.quantile(np.abs(quick[rows] / rate[rows] - 1), [0.5, 0.95])
            print(f"error on {rows.sum()} states {name}, not used: median {median:.3f}, 95 % {most:.3f}")

    return commands.run(command)


if __name__ == "__main__":
    raise SystemExit(main())
