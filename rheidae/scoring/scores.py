"""Rows whose answer is known: what every scheme and a model say of them, and how far off each is.

Pure functions of arrays by the formulas of `rheidae.scoring.metrics`; `rheidae.scoring.tally` adds them up,
`rheidae.runs.score` says which model was asked about which rows, and `rheidae.runs.report` puts the scores into words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from rheidae import fourflux
from rheidae.exceptions import FourFluxError
from rheidae.mixing import schemes
from rheidae.mixing.box3d import box3d
from rheidae.scoring.metrics import flux_error, skill
from rheidae.scoring.splits import RowNumbers

Entry = dict[str, Any]

TITLES = {**{name: scheme.title for name, scheme in schemes.SCHEMES.items()}, "model": "model"}
"""What is compared, by its name in a report and in a table."""

CONFIDENCE = 0.95
"""Level of the bootstrap intervals."""

RESAMPLES = 2000
"""Draws of the bootstrap, in every report that does not say otherwise."""

_BUNDLES = 10_000

_BY_ROW = ("row", "group", "role", "name", "simulation", "F_init", "F_true", "F_seen")


@dataclass(frozen=True)
class Scored:
    """Predictions for n rows whose answer is known, four-fluxes over the row's total density.

    Attributes
    ----------
    row : ndarray of int, shape (n,)
        Row of the data set. One row may be scored in several roles.
    group, role, name : ndarray of str, shape (n,)
        Family, what the model knew of it, and the simulation's own name.
    simulation : ndarray of int, shape (n,)
        A number per simulation; rows of one are resampled together.
    F_init, F_true : ndarray, shape (n, 6, 4)
        Initial states; simulated final ones, averaged over mu and tau where the initial state has them alike.
    F_seen : ndarray, shape (n, 6, 4)
        Simulated final states as they are: an interval is for each of mu and tau.
    F : dict of str to ndarray, shape (r, n, 6, 4)
        Final states by scheme (`TITLES`), r = 1, and by the model, r = the number of seeds.
    std : ndarray, shape (r, n, 6, 4), or None
        Standard deviations that the model gives itself.
    theta : ndarray, shape (n, 8), or None
        Parameters that a mixing model set (`rheidae.mixing.survival.PARAMETERS`), of the first seed.
    """

    row: RowNumbers
    group: NDArray[np.str_]
    role: NDArray[np.str_]
    name: NDArray[np.str_]
    simulation: NDArray[Any]
    F_init: NDArray[np.float64]
    F_true: NDArray[np.float64]
    F_seen: NDArray[np.float64]
    F: dict[str, NDArray[np.float64]]
    std: NDArray[np.float64] | None = None
    theta: NDArray[np.float64] | None = None

    def chosen(self, rows: NDArray[np.bool_]) -> Scored:
        """Return some of the rows."""
        return replace(
            self,
            **{name: getattr(self, name)[rows] for name in _BY_ROW},
            F={scheme: F[:, rows] for scheme, F in self.F.items()},
            std=None if self.std is None else self.std[:, rows],
            theta=None if self.theta is None else self.theta[rows],
        )

    @classmethod
    def together(cls, parts: Sequence[Scored]) -> Scored:
        """Return the rows of all parts, which come from one model."""
        std, theta = [one.std for one in parts], [one.theta for one in parts]
        return cls(
            **{name: np.concatenate([getattr(one, name) for one in parts]) for name in _BY_ROW},
            F={scheme: np.concatenate([one.F[scheme] for one in parts], axis=1) for scheme in parts[0].F},
            std=None if std[0] is None else np.concatenate(std, axis=1),  # type: ignore[arg-type]
            theta=None if theta[0] is None else np.concatenate(theta),  # type: ignore[arg-type]
        )

    @cached_property
    def errors(self) -> dict[str, NDArray[np.float64]]:
        """`flux_error` of each row ``(r, n)`` by scheme."""
        return {
            scheme: np.stack([flux_error(self.F_true, one, self.F_init) for one in F]) for scheme, F in self.F.items()
        }

    def skill(self, scheme: str, chosen: NDArray[np.bool_]) -> tuple[float | None, float | None]:
        """Skill of a scheme on the chosen rows, mean over seeds, and its standard deviation between them.

        None where it cannot be known: Box3D makes no error, or there is one seed.
        """
        reference = self.errors["box3d"][0, chosen]
        skills = np.array([skill(error[chosen], reference) for error in self.errors[scheme]])
        return (None, None) if np.isnan(skills).any() else (float(skills.mean()), seed_deviation(skills))

    @cached_property
    def depth(self) -> NDArray[np.float64]:
        """Depth of the crossing ``(n,)``: the smaller of the two integrals of G over the larger, 0 to 1."""
        answer = box3d(self.F_init)
        large = np.maximum(answer.I_plus, answer.I_minus)
        return np.minimum(answer.I_plus, answer.I_minus) / np.where(large > 0, large, 1.0)

    @cached_property
    def flux_factor(self) -> NDArray[np.float64]:
        """Largest ``|F|/N`` of the six species ``(n,)``."""
        density = self.F_init[:, :, fourflux.T]
        length = np.linalg.norm(self.F_init[:, :, : fourflux.T], axis=2)
        return (length / np.where(density > 0, density, 1.0)).max(axis=1)


def score(
    data: Any,
    rows: RowNumbers,
    role: NDArray[np.str_],
    simulation: NDArray[Any],
    prediction: NDArray[Any],
    std: NDArray[Any] | None = None,
    theta: NDArray[Any] | None = None,
    first: int = 0,
) -> Scored:
    """Put a model's predictions beside the analytic schemes and the truth.

    Parameters
    ----------
    data : Bunch
        From `rheidae.load_dataset`; Box3D is what the file holds.
    rows : ndarray of int, shape (n,)
        Rows that were predicted.
    role : ndarray of str, shape (n,)
        What the model knew of each row.
    simulation : ndarray of int, shape (n,)
        A number per simulation.
    prediction, std : ndarray, shape (r, n, 24)
        Final four-fluxes for each of r seeds, and their standard deviations, in the unit of the data.
    theta : ndarray, shape (n, 8), optional
        Parameters of a mixing model.
    first : int
        Row of the file that the data begin with.

    Returns
    -------
    Scored

    Raises
    ------
    FourFluxError
        If an initial state is not physical.
    """
    table = data.data[rows].astype(np.float64)
    bad = fourflux.first_unphysical(np.ascontiguousarray(fourflux.unflatten(table[:, :24])))
    if bad is not None:
        raise FourFluxError(
            f"{data.filename}: {bad._replace(row=first + int(rows[bad.row]))}; preprocess the raw file again, with "
            "on_bad_rows: drop"
        )
    total = fourflux.total_density(table[:, :24])[:, None, None]
    init, box, true = (
        np.ascontiguousarray(fourflux.unflatten(F) / total) for F in (table[:, :24], table[:, 24:], data.target[rows])
    )
    names = data.get("dirname")
    return Scored(
        row=first + rows,
        group=data.groups[rows],
        role=role,
        name=np.full(len(rows), "") if names is None else names[rows],
        simulation=simulation,
        F_init=init,
        F_true=fourflux.average_heavy(true, init),
        F_seen=true,
        F={
            **{name: (box if name == "box3d" else schemes.mix(init, name))[None] for name in schemes.SCHEMES},
            "model": prediction.reshape(len(prediction), len(rows), 6, 4).astype(np.float64) / total,
        },
        std=None if std is None else std.reshape(len(std), len(rows), 6, 4).astype(np.float64) / total,
        theta=theta,
    )


def worst(scored: Scored, count: int = 10) -> list[Entry]:
    """The rows that the model predicts worst in each role, mean over seeds, worst first.

    Returns
    -------
    list of dict
        At most `count` for each role: ``row`` of the data set, ``simulation`` (its name), ``group``, ``role``, the
        ``error`` of every scheme, ``depth`` of the crossing and largest ``flux_factor``.
    """
    order = np.argsort(-scored.errors["model"].mean(axis=0), kind="stable")
    entries = []
    for role in sorted(set(scored.role.tolist())):
        entries += [
            {
                "row": int(scored.row[i]),
                "simulation": str(scored.name[i]),
                "group": str(scored.group[i]),
                "role": role,
                "error": {scheme: float(error[:, i].mean()) for scheme, error in scored.errors.items()},
                "depth": float(scored.depth[i]),
                "flux_factor": float(scored.flux_factor[i]),
            }
            for i in order[scored.role[order] == role][:count]
        ]
    return entries


def seed_deviation(values: NDArray[np.float64]) -> float | None:
    """Standard deviation of one number per seed; None for a single seed."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def ratio_interval(
    numerator: NDArray[np.float64],
    denominator: NDArray[np.float64],
    simulation: NDArray[Any],
    resamples: int = RESAMPLES,
) -> list[float] | None:
    """Bootstrap interval of ``sum(numerator)/sum(denominator)``, whole simulations drawn with replacement.

    Parameters
    ----------
    numerator, denominator : ndarray, shape (n,)
        One number a row; a denominator of ones gives the mean.
    simulation : ndarray, shape (n,)
        Label of the simulation that a row comes from.
    resamples : int
        How many draws.

    Returns
    -------
    [float, float] or None
        Percentiles that hold `CONFIDENCE` between them, drawn with a fixed seed; None for fewer than two simulations,
        or where a draw may have no denominator. More than 10000 simulations are first put together at random into as
        many bundles of equal size, which costs no width and bounds the time.
    """
    labels, index = np.unique(simulation, return_inverse=True)
    if len(labels) > _BUNDLES:
        index = (np.random.default_rng(0).permutation(len(labels)) % _BUNDLES)[index]
    above, below = (np.bincount(index, weights=values) for values in (numerator, denominator))
    if len(above) < 2 or not (below > 0).all():
        return None
    interval = bootstrap(
        (above, below),
        lambda x, y, axis: x.sum(axis=axis) / y.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, 5_000_000 // len(above)),
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return [float(interval.low), float(interval.high)]
