"""Families of random initial states, the same on every machine: what to simulate where no archive says it."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rheidae.exceptions import ConfigError
from rheidae.fourflux import NU_E, NU_MU, NU_TAU, NUBAR_E, NUBAR_MU, NUBAR_TAU, T
from rheidae.linear.distributions import Array, minerbo

Range = tuple[float, float]

DENSITY = 1e33
"""1/cm^3, of the order of those about a merger's remnant; the instability knows ratios only."""

_ORDER = 35
_TRIES = 100_000


class Family(NamedTuple):
    """What the states of a family have in common; ranges are those of nu_e, nubar_e and the heavy flavors.

    Attributes
    ----------
    densities : tuple of tuple of float
        Number densities are log-uniform between these, in units of 1e33/cm^3.
    flux_factors : tuple of tuple of float
        Flux factors are uniform between these.
    cone : float
        Directions of the fluxes are uniform in a cone of this half opening angle, in degrees, about one at random.
    heavy : {"alike", "conjugate", "unlike"}
        The four heavy species are all alike; neutrinos are, and antineutrinos among themselves; or none are.
    depth : tuple of float
        Smaller over larger side of the deepest crossing of a pair of flavors, on Minerbo distributions.
    """

    densities: tuple[Range, Range, Range]
    flux_factors: tuple[Range, Range, Range]
    cone: float = 180.0
    heavy: str = "alike"
    depth: Range = (0.003, 1.0)


_RANDOM = Family(densities=((1.0, 3.0),) * 3, flux_factors=((0.0, 0.6),) * 3)
_MERGER = Family(
    densities=((1.0, 1.0), (0.7, 1.6), (0.15, 0.5)), flux_factors=((0.05, 0.5), (0.2, 0.6), (0.3, 0.7)), cone=60.0
)
_SHALLOW = (0.003, 0.12)

FAMILIES = {
    "random": (_RANDOM,),
    "wide": (Family(((1.0, 10.0),) * 3, ((0.0, 0.8),) * 3, heavy="conjugate"),),
    "merger": (_MERGER,),
    "weak": tuple(family._replace(heavy="conjugate", depth=_SHALLOW) for family in (_MERGER, _RANDOM)),
    "supernova": (Family(((1.0, 1.0), (0.8, 1.1), (0.3, 0.9)), ((0.2, 0.6), (0.3, 0.7), (0.4, 0.78)), cone=10.0),),
    "mutau": (
        Family(((1.0, 1.0), (0.8, 1.5), (0.2, 1.0)), ((0.05, 0.35), (0.15, 0.5), (0.2, 0.5)), 50.0, heavy="unlike"),
    ),
}
"""By name; the rows of a family that is made of several go through them in turn."""


def draw(family: str, rows: Sequence[int], seed: int = 1) -> Array:
    """Initial states ``(n, 6, 4)`` of a family, 1/cm^3, every one with a crossing.

    Parameters
    ----------
    family : str
        One of `FAMILIES`.
    rows : sequence of int
        Numbers of the states: what a number stands for does not depend on the others.
    seed : int
        Of all of them.

    Raises
    ------
    ConfigError
        If there is no such family.
    """
    if family not in FAMILIES:
        raise ConfigError(f"no family of states {family!r}; known: {', '.join(FAMILIES)}")
    members, name = FAMILIES[family], zlib.crc32(family.encode())
    return np.array([_one(members[row % len(members)], np.random.default_rng([seed, name, row])) for row in rows])


def _one(family: Family, rng: np.random.Generator) -> Array:
    low, high = family.depth
    for _ in range(_TRIES):
        F = _candidate(family, rng)
        if low <= _depth(F) <= high:
            return F
    raise AssertionError(f"no state of {family} in {_TRIES} draws")


def _candidate(family: Family, rng: np.random.Generator) -> Array:
    kind = np.array([0, 2, 2, 1, 2, 2])  # of each species: nu_e, nubar_e, heavy
    density = DENSITY * np.exp(rng.uniform(*np.log(family.densities)[kind].T))
    flux = density * rng.uniform(*np.array(family.flux_factors)[kind].T)
    # Directions about z, and then all of them turned.
    cos, phi = rng.uniform(np.cos(np.radians(family.cone)), 1.0, 6), rng.uniform(0.0, 2 * np.pi, 6)
    sin = np.sqrt(1 - cos**2)
    turn, triangle = np.linalg.qr(rng.normal(size=(3, 3)))
    turn *= np.sign(np.diag(triangle))  # uniform, which Householder's signs are not
    F = np.empty((6, 4))
    F[:, :T] = flux[:, None] * (np.stack([sin * np.cos(phi), sin * np.sin(phi), cos], axis=1) @ turn.T)
    F[:, T] = density
    if family.heavy != "unlike":
        F[NU_TAU], F[NUBAR_TAU] = F[NU_MU], F[NUBAR_MU]
    if family.heavy == "alike":
        F[NUBAR_MU] = F[NUBAR_TAU] = F[NU_MU]
    return F


def _depth(F: Array) -> float:
    """Smaller over larger side of the deepest crossing among the pairs of flavors."""
    D = minerbo(F[None], _ORDER)[0]
    lepton = D[[NU_E, NU_MU, NU_TAU]] - D[[NUBAR_E, NUBAR_MU, NUBAR_TAU]]
    G = lepton[[0, 0, 1]] - lepton[[1, 2, 2]]
    sides = np.sort([G.clip(0).sum(axis=1), (-G).clip(0).sum(axis=1)], axis=0)
    return float((sides[0] / sides[1].clip(1e-6 * DENSITY)).max())
