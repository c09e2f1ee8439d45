"""The model card: what a trained model is, what it was trained on, how good it is and where it should not be used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import rheidae
from rheidae import fourflux
from rheidae.config import TrainParms
from rheidae.fourflux import SPECIES
from rheidae.mixing.asymptotic import crossings
from rheidae.mixing.survival import INVARIANTS, invariants
from rheidae.runs.folder import Run, installed_versions
from rheidae.runs.report import coverage_table, entries, report_on, score_table
from rheidae.runs.score import score_rows
from rheidae.scoring.metrics import COVERAGE
from rheidae.scoring.scores import CONFIDENCE
from rheidae.scoring.tally import Tallies

NAME = "MODEL_CARD.md"

# Rows that ranges are taken from and that are scored, at most: enough for any figure in the card.
ENOUGH_ROWS = 100_000
# Rows that symmetries are tried on.
_SYMMETRY_ROWS = 512
# Coverage that falls short of the nominal one by more is named as a limit.
_MISSED = 0.1
_ORDER = 17

Ranges = dict[str, Any]


def training_range(data: Any, rows: NDArray[np.intp]) -> Ranges:
    """Return between which values the initial states of some rows of a data set lie.

    JSON-safe: ``unit``; ``groups``, rows of each; ``with_crossing``, the part of rows that Box3D changes; and
    ``[smallest, largest]`` of the total number density, of each species' part of it, of each species' flux factor
    ``|F|/N`` and of `rheidae.mixing.survival.invariants`. Above `ENOUGH_ROWS`, evenly spaced ones are looked at.
    """
    names, counts = np.unique(data.groups[rows], return_counts=True)
    looked_at = _evenly(rows, ENOUGH_ROWS)
    init = fourflux.unflatten(np.ascontiguousarray(data.data[looked_at, :24], dtype=np.float64))
    total = fourflux.total_density(init)
    N, size = init[:, :, fourflux.T], np.linalg.norm(init[:, :, :3], axis=2)
    factor = np.divide(size, N, out=np.zeros_like(N), where=N > 0)
    numbers = invariants(init, order=_ORDER)
    return {
        "unit": "1/cm^3",
        "groups": dict(zip(names.tolist(), counts.tolist(), strict=True)),
        "with_crossing": float((data.data[looked_at, 24:] != data.data[looked_at, :24]).any(axis=1).mean()),
        "total_density": _ends(total / data.target_scale),
        "density_fraction": {name: _ends(N[:, s] / total) for s, name in enumerate(SPECIES)},
        "flux_factor": {name: _ends(factor[:, s]) for s, name in enumerate(SPECIES)},
        "invariants": {name: _ends(numbers[:, k]) for k, name in enumerate(INVARIANTS)},
    }


def model_card(run: Run, data: Any, about: dict[str, Any]) -> str:
    """Return the card of a finished run as Markdown; `about` is what its ``run.json`` holds.

    `data` is what it was trained on, from `rheidae.load_dataset` with the run's `target_scale`. Rows that took no part
    in training are scored; where there are none, the validation rows, and without them the training rows: the card says
    which.
    """
    rows, role, which = _scored_rows(run, data)
    scored = score_rows(run.regressor, data, rows, role)
    report = report_on(Tallies().add(scored), data.filename, {})
    lines = entries(report)
    chosen = data.data[rows], data.groups[rows]
    ranges = about["training_range"]
    sections = [
        f"# Model card: {about['run_id']}",
        "Predicts the four-fluxes (number density and flux over c of six neutrino species) that the fast flavor "
        "instability leaves behind, from those before it.",
        "## Model",
        _model(run, about),
        "## Training data",
        _data(run, about, ranges),
        "## Results",
        f"On {which}. Error of a row: four-flux distance over the row's total density, mean over species, the truth "
        "averaged over mu and tau where they start alike. Skill: 1 - error / Box3D's error. In brackets the "
        f"{100 * CONFIDENCE:.0f} % bootstrap interval, simulations drawn with replacement.",
        score_table(lines),
        _uncertainty(lines),
        "## Conservation and symmetry",
        _symmetries(run, chosen[0], lines),
        "## Limits",
        _limits(*chosen, ranges, report["groups"]),
        "## Versions",
        ", ".join(f"{name} {version}" for name, version in installed_versions().items()),
        "## How to cite",
        f"The Rheidae developers: Rheidae, version {rheidae.__version__} (see `CITATION.cff` of the source). Name this "
        f"run and the fingerprint of its data, `{about['data_fingerprint']}`. Box3D: Richers, Froustey, Ghosh, "
        "Foucart and Gomez, Phys. Rev. D 110, 103019 (2024), arXiv:2409.04405.",
    ]
    return "\n\n".join(sections) + "\n"


def _scored_rows(run: Run, data: Any) -> tuple[NDArray[np.intp], NDArray[np.str_], str]:
    """Rows to score, what the model knew of each, and what they are in words."""
    part = {name: run.has_seen(data, (name,)) for name in ("train", "valid")}
    role = run.role_of(data.groups)
    choices = (
        (
            ~(part["train"] | part["valid"]), role,
            "rows that took no part in training or in the choice of the best epoch",
        ),
        (
            part["valid"], np.full_like(role, "validation"),
            "the validation rows, **which chose the best epoch**: there are no others",
        ),
        (part["train"], np.full_like(role, "training"), "**the training rows**: there are no others"),
    )  # fmt: skip
    chosen, roles, which = next(choice for choice in choices if choice[0].any())
    rows = _evenly(np.flatnonzero(chosen), ENOUGH_ROWS)
    return rows, roles[rows], which


def _model(run: Run, about: dict[str, Any]) -> str:
    module = run.regressor.module_
    losses = {name: value for name, value in run.config.loss if name.startswith("w_") and value}
    lines = [
        f"- network: `{type(module).__name__}`, {about['parameters']} parameters; options "
        f"{_listed(run.config.model.options()) or 'as the class has them'}",
        f"- loss: {_listed(losses)}",
        *_schemes(run.parms),
        f"- training: {about['epochs']} of {run.config.training.epochs} epochs, {about['seconds']:.0f} s, seed "
        f"{about['seed']}, status {about['status']}",
        "- input and output: initial and final four-fluxes `(n, 24)`, column 4 * species + component, species "
        f"({', '.join(SPECIES)}), components ({', '.join(fourflux.COMPONENTS)}), in 1/cm^3 or any other common unit",
    ]
    return "\n".join(lines)


def _schemes(parms: TrainParms) -> list[str]:
    """A line on what shapes the gradient beside the loss, if anything does."""
    weighting, constraints = parms.weighting, parms.constraints
    on = []
    if weighting.scheme != "none":
        options = _listed(weighting.params)
        on.append(f"weighting {weighting.scheme}" + (f" ({options})" if options else ""))
    if parms.pcgrad:
        on.append("PCGrad")
    if constraints.enabled:
        on.append(f"constraints (lr_lambda = {constraints.lr_lambda}, rho = {constraints.rho})")
    return [f"- gradients: {', '.join(on)}"] if on else []


def _data(run: Run, about: dict[str, Any], ranges: Ranges) -> str:
    groups = ", ".join(f"{name} ({count} rows)" for name, count in ranges["groups"].items())
    low, high = ranges["total_density"]
    lines = [
        f"`{Path(about['data']).name}`, fingerprint `{about['data_fingerprint']}`. Training rows by group: {groups}. "
        f"Box3D sees a crossing in {100 * ranges['with_crossing']:.1f} % of them.",
        "",
        "| of the initial states | smallest | largest |",
        "| --- | ---: | ---: |",
        f"| total number density, 1/cm^3 | {low:.3g} | {high:.3g} |",
    ]
    for title, name in (("part of the density", "density_fraction"), ("flux factor", "flux_factor")):
        lines += [f"| {title}, {s} | {ends[0]:.3g} | {ends[1]:.3g} |" for s, ends in ranges[name].items()]
    lines += [f"| invariant {name} | {ends[0]:.3g} | {ends[1]:.3g} |" for name, ends in ranges["invariants"].items()]
    lines += ["", "The invariants are those of `rheidae.mixing.survival.invariants`."]
    if run.config.data.holdout_groups:
        lines[-1] += f" Held out as whole groups: {', '.join(run.config.data.holdout_groups)}."
    return "\n".join(lines)


def _uncertainty(entries: list[dict[str, Any]]) -> str:
    table = coverage_table(entries)
    if not table:
        return "The model gives no standard deviations."
    return (
        f"Part of the 24 numbers of a row that lie within the model's own {100 * COVERAGE:.0f} % interval, mu and tau "
        f"as they are, all and by species; half of the interval over the error, medians:\n\n{table}"
    )


def _symmetries(run: Run, data: NDArray[Any], entries: list[dict[str, Any]]) -> str:
    """What should hold exactly, and how well it does: largest deviations over the total density."""
    model = [entry["schemes"]["model"] for entry in entries]
    conserved = max(max(one["flavor_sum_change"], one["lepton_number_change"]) for one in model)
    physical = min(one["physical_fraction"] for one in model)
    X = data[_evenly(np.arange(len(data)), _SYMMETRY_ROWS)].astype(np.float64)
    total = fourflux.total_density(X[:, :24])[:, None]
    predict = run.regressor.predict
    prediction = predict(X)

    def deviation(change: Callable[[NDArray[Any]], NDArray[Any]]) -> str:
        """How far the answer to changed states is from the changed answer."""
        return f"{(np.abs(predict(change(X)) - change(prediction)) / total).max():.1e}"

    rotation = _rotation()
    mirror = rotation * [[1.0], [1.0], [-1.0]]
    quiet = ~crossings(fourflux.unflatten(X[:, :24]), threads=1).any(axis=1)  # of no pair of flavors
    # A bare isotropic state in the unit of the rows never has a crossing.
    still = np.zeros((1, 12, 4))
    still[:, :, fourflux.T] = float(total.mean()) / 6
    stable = np.concatenate([X[quiet], still.reshape(1, 48)])
    left = np.abs(predict(stable) - stable[:, :24]).max(axis=1) / fourflux.total_density(stable[:, :24])
    lines = [
        "Largest deviations, relative to the total number density:",
        "",
        "| what should hold | deviation |",
        "| --- | ---: |",
        f"| flavor sums of every component, lepton number of every flavor | {conserved:.1e} |",
        f"| a rotated state gives a rotated answer | {deviation(lambda F: _turn(F, rotation))} |",
        f"| a mirrored state gives a mirrored answer | {deviation(lambda F: _turn(F, mirror))} |",
        f"| mu and tau exchanged | {deviation(_exchanged)} |",
        f"| another unit (1e10) | {(np.abs(predict(1e10 * X) / 1e10 - prediction) / total).max():.1e} |",
        f"| a state without a crossing stays as it is | {left.max():.1e} |",
        "",
        f"{100 * physical:.2f} % of the predicted four-fluxes are physical (N >= 0, |F| <= N).",
    ]
    return "\n".join(lines)


def _limits(data: NDArray[Any], groups: NDArray[np.str_], ranges: Ranges, entries: list[dict[str, Any]]) -> str:
    init = fourflux.unflatten(np.ascontiguousarray(data[:, :24], dtype=np.float64))
    numbers = invariants(init, order=_ORDER)
    ends = np.array(list(ranges["invariants"].values()))
    outside: NDArray[np.bool_] = np.any((numbers < ends[:, 0]) | (numbers > ends[:, 1]), axis=1)
    by_group = ", ".join(
        f"{group} {100 * outside[groups == group].mean():.0f} %" for group in sorted(set(groups.tolist()))
    )
    lines = [
        "- It knows the states of the table above, and no others: part of the scored rows with an invariant outside "
        f"its training range: {by_group}. The further outside, the less the results above say.",
        "- It answers with the state that the fast instability saturates in. Collisions, vacuum oscillations, "
        "gradients and growth that is cut short count only as far as the simulations that it was trained on had them.",
        "- Moments of densities and fluxes alone go in: states with the same moments and other angular distributions "
        "than the maximum-entropy ones get the same answer.",
    ]
    scored = [(f"{entry['group']} ({entry['role']})", entry["rows"], entry["schemes"]["model"]) for entry in entries]
    measured = [one for one in scored if one[2]["skill"] is not None]
    if measured:
        name, rows, model = min(measured, key=lambda one: one[2]["skill"])
        interval = "" if model["skill_interval"] is None else " [{:.3f}, {:.3f}]".format(*model["skill_interval"])
        lines.append(
            f"- It does worst on {name}: skill {model['skill']:.3f}{interval}, {rows} rows. States of another kind "
            "than all groups above may fare worse still."
        )
    narrow = [
        f"{name} {100 * model['coverage']:.0f} %"
        for name, _, model in scored
        if model["coverage"] is not None and model["coverage"] < COVERAGE - _MISSED
    ]
    if narrow:
        lines.append(
            f"- **Its standard deviations are too small** for some groups: within the {100 * COVERAGE:.0f} % interval "
            f"lie, of {', of '.join(narrow)} of the numbers. Their size is learned from errors on rows of the families "
            "trained on."
        )
    if ranges["with_crossing"] == 1.0:
        lines.append(
            "- Every training state has a crossing: what becomes of stable states was not learned (see above)."
        )
    families = sorted(set(ranges["groups"]))
    lines.append(f"- Trained on {len(families)} famil{'y' if len(families) == 1 else 'ies'}: {', '.join(families)}.")
    return "\n".join(lines)


def _evenly(rows: NDArray[np.intp], most: int) -> NDArray[np.intp]:
    """At most `most` of the rows, evenly spaced."""
    return rows[:: -(-len(rows) // most)] if len(rows) > most else rows


def _ends(values: NDArray[np.float64]) -> list[float]:
    return [float(values.min()), float(values.max())]


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in values.items())


def _rotation() -> NDArray[np.float64]:
    """Some rotation that is none of a cube."""
    q, r = np.linalg.qr(np.random.default_rng(4).normal(size=(3, 3)))
    q *= np.sign(np.diag(r))
    return q if np.linalg.det(q) > 0 else -q


def _turn(flat: NDArray[Any], rotation: NDArray[np.float64]) -> NDArray[Any]:
    F = flat.reshape(len(flat), -1, 4).copy()
    F[..., :3] = F[..., :3] @ rotation.T
    return F.reshape(len(flat), -1)


def _exchanged(flat: NDArray[Any]) -> NDArray[Any]:
    """Exchange mu and tau."""
    return flat.reshape(len(flat), -1, 3, 4)[:, :, [0, 2, 1]].reshape(len(flat), -1)
