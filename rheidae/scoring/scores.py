"""Scores of every scheme on rows whose answer is known: errors, skill, conservation, physicality, coverage.

Pure functions of arrays; `rheidae.evaluate` says which model was asked about which rows, and writes the report.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from rheidae import fourflux
from rheidae.estimator.uncertainty import COVERAGE, DEVIATIONS
from rheidae.exceptions import FourFluxError
from rheidae.mixing.box3d import box3d, mix

Rows = NDArray[np.intp]
Entry = dict[str, Any]

SCHEMES = {"none": "no mixing", "box3d": "Box3D", "power": "power", "model": "model"}
"""What is compared, by its name in a report and in a table."""

CONFIDENCE = 0.95
"""Level of the bootstrap intervals."""

_BUNDLES = 10_000


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
    F : dict of str to ndarray, shape (r, n, 6, 4)
        Final states by scheme (`SCHEMES`), r = 1, and by the model, r = the number of seeds.
    std : ndarray, shape (r, n, 6, 4), or None
        Standard deviations that the model gives itself.
    theta : ndarray, shape (n, 6), or None
        Parameters that a mixing model set (`rheidae.mixing.power.PARAMETERS`), of the first seed.
    """

    row: Rows
    group: NDArray[np.str_]
    role: NDArray[np.str_]
    name: NDArray[np.str_]
    simulation: Rows
    F_init: NDArray[np.float64]
    F_true: NDArray[np.float64]
    F: dict[str, NDArray[np.float64]]
    std: NDArray[np.float64] | None = None
    theta: NDArray[np.float64] | None = None

    @cached_property
    def errors(self) -> dict[str, NDArray[np.float64]]:
        """Error of each row ``(r, n)`` by scheme: four-flux distance, mean over species."""
        return {scheme: np.linalg.norm(F - self.F_true, axis=3).mean(axis=2) for scheme, F in self.F.items()}

    @cached_property
    def depth(self) -> NDArray[np.float64]:
        """Depth of the crossing ``(n,)``: the smaller of the two integrals of G over the larger, 0 to 1."""
        found = box3d(self.F_init)
        large = np.maximum(found.I_plus, found.I_minus)
        return np.minimum(found.I_plus, found.I_minus) / np.where(large > 0, large, 1.0)

    @cached_property
    def flux_factor(self) -> NDArray[np.float64]:
        """Largest ``|F|/N`` of the six species ``(n,)``."""
        density = self.F_init[:, :, fourflux.T]
        length = np.linalg.norm(self.F_init[:, :, : fourflux.T], axis=2)
        return (length / np.where(density > 0, density, 1.0)).max(axis=1)


def score(
    data: Any,
    rows: Rows,
    role: NDArray[np.str_],
    simulation: Rows,
    prediction: NDArray[Any],
    std: NDArray[Any] | None = None,
    theta: NDArray[Any] | None = None,
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
    theta : ndarray, shape (n, 6), optional
        Parameters of a mixing model.

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
            f"{data.filename}: {bad._replace(row=int(rows[bad.row]))}; preprocess the raw file again, with "
            "on_bad_rows: drop"
        )
    total = fourflux.total_density(table[:, :24])[:, None, None]
    init, box, true = (
        np.ascontiguousarray(fourflux.unflatten(F) / total) for F in (table[:, :24], table[:, 24:], data.target[rows])
    )
    names = data.get("dirname")
    return Scored(
        row=rows,
        group=data.groups[rows],
        role=role,
        name=np.full(len(rows), "") if names is None else names[rows],
        simulation=simulation,
        F_init=init,
        F_true=fourflux.average_heavy(true, init),
        F={
            "none": init[None],
            "box3d": box[None],
            "power": mix(init, "power")[None],
            "model": prediction.reshape(len(prediction), len(rows), 6, 4).astype(np.float64) / total,
        },
        std=None if std is None else std.reshape(len(std), len(rows), 6, 4).astype(np.float64) / total,
        theta=theta,
    )


def summary(scored: Scored, chosen: NDArray[np.bool_], resamples: int = 2000) -> Entry:
    """Numbers of every scheme on the chosen rows, JSON-safe: what cannot be known is None, never NaN.

    Parameters
    ----------
    scored : Scored
        Predictions.
    chosen : ndarray of bool, shape (n,)
        At least one row.
    resamples : int
        Of the bootstrap.

    Returns
    -------
    dict
        ``rows``, ``simulations``, and ``schemes``: for each, means over rows and seeds of

        - ``error``, ``species_error`` (four-flux distance of each species) and ``component_error`` (absolute error of
          x, y, z, t, mean over species), all over the total density;
        - ``skill``, one minus the error over Box3D's, and ``rows_better_than_box3d``, a fraction;
        - ``error_interval``, ``skill_interval``: bootstrap over simulations at the level `CONFIDENCE`, of the mean over
          seeds; ``error_spread``, ``skill_spread``: standard deviation between seeds;
        - ``flavor_sum_change``, ``lepton_number_change``: the largest of all rows and seeds;
        - ``physical_fraction`` of the four-fluxes, to rounding;
        - ``coverage``: the fraction of the 24 numbers that lie within the model's 90 % interval, and
          ``coverage_spread``.
    """
    schemes = {}
    reference = scored.errors["box3d"][0, chosen]
    for scheme, F in scored.F.items():
        F_final, error = F[:, chosen], scored.errors[scheme][:, chosen]
        gained = skills(error, reference)
        difference = F_final - scored.F_true[chosen]
        sums, numbers = conservation(scored.F_init[chosen], F_final)
        species = np.linalg.norm(difference, axis=3).mean(axis=(0, 1))
        components = np.abs(difference).mean(axis=(0, 1, 2))
        one: Entry = {
            "error": float(error.mean()),
            "skill": None if gained is None else float(gained.mean()),
            "rows_better_than_box3d": float((error < reference).mean()),
            "error_spread": spread(error.mean(axis=1)),
            "skill_spread": None if gained is None else spread(gained),
            "species_error": dict(zip(fourflux.SPECIES, species.tolist(), strict=True)),
            "component_error": dict(zip(fourflux.COMPONENTS, components.tolist(), strict=True)),
            "flavor_sum_change": sums,
            "lepton_number_change": numbers,
            "physical_fraction": physical_fraction(F_final),
            "coverage": None,
            "coverage_spread": None,
        }
        simulation, mean = scored.simulation[chosen], error.mean(axis=0)
        one["error_interval"] = ratio_interval(mean, np.ones_like(mean), simulation, resamples)
        # Box3D's skill is zero by definition.
        measured = gained is not None and scheme != "box3d"
        found = ratio_interval(mean, reference, simulation, resamples) if measured else None
        one["skill_interval"] = None if found is None else [1 - found[1], 1 - found[0]]
        if scheme == "model" and scored.std is not None:
            covered = coverage(difference, scored.std[:, chosen])
            one |= {"coverage": float(covered.mean()), "coverage_spread": spread(covered)}
        schemes[scheme] = one
    return {
        "rows": int(chosen.sum()),
        "simulations": len(np.unique(scored.simulation[chosen])),
        "schemes": schemes,
    }


def worst(scored: Scored, count: int = 10) -> list[Entry]:
    """The rows that the model predicts worst in each role, mean over seeds, worst first.

    Returns
    -------
    list of dict
        At most `count` for each role: ``row`` of the data set, ``simulation`` (its name), ``group``, ``role``, the
        ``error`` of every scheme, ``depth`` of the crossing and largest ``flux_factor``.
    """
    order = np.argsort(-scored.errors["model"].mean(axis=0), kind="stable")
    found = []
    for role in sorted(set(scored.role.tolist())):
        found += [
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
    return found


def skills(error: NDArray[np.float64], reference: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Skill of each seed, or None where Box3D makes no error."""
    box = reference.mean()
    return 1 - error.mean(axis=1) / box if box > 0 else None


def spread(values: NDArray[np.float64]) -> float | None:
    """Standard deviation of one number per seed; None for a single seed."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def ratio_interval(
    numerator: NDArray[np.float64],
    denominator: NDArray[np.float64],
    simulation: NDArray[Any],
    resamples: int = 2000,
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
    found = bootstrap(
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
    return [float(found.low), float(found.high)]


def conservation(F_init: fourflux.Float, F_final: fourflux.Float) -> tuple[float, float]:
    """Largest change of a flavor sum, and of the lepton number of a flavor.

    Parameters
    ----------
    F_init, F_final : ndarray, shape (..., 6, 4)
        Over the row's total density; they are broadcast.
    """
    change = (F_final - F_init).reshape(-1, 2, 3, 4)
    sums = np.abs(change.sum(axis=2)).max(initial=0.0)
    numbers = np.abs(change[:, 0, :, fourflux.T] - change[:, 1, :, fourflux.T]).max(initial=0.0)
    return float(sums), float(numbers)


def physical_fraction(F: fourflux.Float) -> float:
    """Fraction of the four-fluxes ``(..., 4)`` with ``N >= 0`` and ``|F| <= N``, to rounding."""
    density, length = F[..., fourflux.T], np.linalg.norm(F[..., : fourflux.T], axis=-1)
    return float(((density >= 0) & (length <= density * (1 + fourflux.FLUX_TOLERANCE))).mean())


def coverage(difference: NDArray[np.float64], std: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fraction of the errors ``(r, n, 6, 4)`` of each seed within `DEVIATIONS` deviations; `COVERAGE` is promised."""
    return (np.abs(difference) <= DEVIATIONS * std).mean(axis=(1, 2, 3))


# --- as text ---------------------------------------------------------------------------------------------


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]], left: int) -> str:
    """Return a Markdown table whose first `left` columns are text."""
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *lines))


def with_doubt(value: float | None, spread: float | None, interval: Sequence[float] | None, digits: int) -> str:
    """``0.811 ± 0.004 [0.780, 0.838]``, as far as it is known."""
    if value is None or not math.isfinite(value):
        return ""
    text = f"{value:.{digits}f}"
    if spread is not None:
        text += f" ± {spread:.{digits}f}"
    if interval is not None:
        text += f" [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"
    return text


def score_table(entries: Sequence[Entry]) -> str:
    """Rows, error, skill, conservation, physicality and coverage of every scheme in every group."""
    header = ["group", "role", "scheme", "rows", "error", "skill", "better than Box3D", "conserved to", "physical"]
    lines = []
    for entry in entries:
        for scheme, one in entry["schemes"].items():
            changed = max(one["flavor_sum_change"], one["lepton_number_change"])
            lines.append(
                [
                    entry["group"], entry["role"], SCHEMES[scheme], str(entry["rows"]),
                    with_doubt(one["error"], one["error_spread"], one["error_interval"], 5),
                    with_doubt(one["skill"], one["skill_spread"], one["skill_interval"], 3),
                    "" if scheme == "box3d" else f"{100 * one['rows_better_than_box3d']:.0f} %", f"{changed:.0e}",
                    f"{100 * one['physical_fraction']:.2f} %",
                ]
            )  # fmt: skip
    return markdown_table(header, lines, 3)


def detail_table(entries: Sequence[Entry]) -> str:
    """Errors of every species and component, in thousandths of the total density."""
    lines = []
    for entry in entries:
        for scheme, one in entry["schemes"].items():
            numbers = [*one["species_error"].values(), *one["component_error"].values()]
            lines.append([entry["group"], entry["role"], SCHEMES[scheme], *(f"{1e3 * n:.2f}" for n in numbers)])
    return markdown_table(["group", "role", "scheme", *fourflux.SPECIES, *fourflux.COMPONENTS], lines, 3)


def coverage_table(entries: Sequence[Entry]) -> str:
    """How many of the errors lie within the model's own 90 % interval; empty if it gives none."""
    lines = [
        [entry["group"], entry["role"], with_doubt(one["coverage"], one["coverage_spread"], None, 3)]
        for entry in entries
        if (one := entry["schemes"]["model"])["coverage"] is not None
    ]
    title = f"within the {100 * COVERAGE:.0f} % interval"
    return markdown_table(["group", "role", title], lines, 2) if lines else ""


def worst_table(found: Sequence[Entry]) -> str:
    """The worst rows."""
    lines = [
        [
            one["simulation"] or "-", one["group"], one["role"], str(one["row"]),
            *(f"{one['error'][scheme]:.5f}" for scheme in ("model", "box3d", "power")),
            f"{one['depth']:.3f}", f"{one['flux_factor']:.2f}",
        ]
        for one in found
    ]  # fmt: skip
    header = ["simulation", "group", "role", "row", "error", "Box3D's", "power scheme's", "depth", "flux factor"]
    return markdown_table(header, lines, 3)
