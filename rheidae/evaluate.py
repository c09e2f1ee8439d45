"""Compare models with the analytic schemes on rows that they have not seen.

python -m rheidae.evaluate --run checkpoints/RUN --data .pdata/preprocessed_all.h5 --json metrics.json
python -m rheidae.evaluate --cv rows groups --seeds 5 --data .pdata/preprocessed_all.h5 --markdown scores.md
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import rheidae
from rheidae.config import Config, TrainParms, read_config
from rheidae.datasets import load_dataset
from rheidae.estimator.regressor import FluxRegressor
from rheidae.estimator.uncertainty import COVERAGE
from rheidae.exceptions import RunError
from rheidae.runs.folder import Run, load_run, row_keys
from rheidae.scoring import scores as evaluation
from rheidae.scoring.scores import Scored
from rheidae.scoring.splits import (
    CROSS_VALIDATIONS,
    Part,
    Rows,
    cross_validation_parts,
    simulation_labels,
    three_dimensional_groups,
)
from rheidae.system import commands
from rheidae.system.outputs import write_text
from rheidae.train import build_regressor

log = logging.getLogger(__name__)

Report = dict[str, Any]


# --- who is scored ---------------------------------------------------------------------------------------


def score_run(run: Run, data: Any) -> tuple[Scored, int]:
    """Score a run on the rows of a data set that it was neither trained nor selected on.

    Parameters
    ----------
    run : Run
        From `rheidae.runs.folder.load_run`.
    data : Bunch
        From `load_dataset`, with the run's `target_scale`. Rows are recognised by their numbers, whatever file
        they come in.

    Returns
    -------
    scored : Scored
        In the roles "held out" (other rows of the families that were trained on) and "unseen family".
    left_out : int
        How many rows took part in training or validation.

    Raises
    ------
    RunError
        If no row is left.
    """
    keys = row_keys(data.data, data.target)
    seen = np.isin(keys, np.concatenate([run.rows["train"], run.rows["valid"]]))
    if seen.all():
        raise RunError(f"{data.filename}: the run was trained on every row of it; evaluate on other simulations")
    rows = np.flatnonzero(~seen)
    role = np.where(np.isin(data.groups[rows], sorted(run.groups)), "held out", "unseen family")
    prediction, std = predict_rows(run.regressor, data.data[rows])
    scored = evaluation.score(
        data,
        rows,
        role,
        simulation_labels(data)[rows],
        prediction[None],
        None if std is None else std[None],
        mixing_parameters(run.regressor, data.data[rows]),
    )
    return scored, int(seen.sum())


def cross_validate(
    data: Any,
    make: Callable[[int], FluxRegressor],
    kinds: Sequence[str],
    *,
    folds: int = 5,
    seeds: Sequence[int] = (0,),
    test_only: Sequence[str] = (),
    train_rows: int | None = None,
) -> Scored:
    """Train and score estimators so that no row is predicted by a model that has seen it.

    Parameters
    ----------
    data : Bunch
        From `load_dataset`.
    make : callable
        Returns an untrained estimator for a seed.
    kinds, folds, test_only
        See `rheidae.scoring.splits.cross_validation_parts`.
    seeds : sequence of int
        The whole procedure is done once for each: initial weights, order of the batches, and folds.
    train_rows : int, optional
        Train on so many rows of each part at most, drawn at random: a point of a learning curve.

    Returns
    -------
    Scored
        With one prediction of each row for every seed.

    Raises
    ------
    RunError
        If the data are too few for it.
    """
    simulations = simulation_labels(data)
    position: dict[str, Rows] = {}  # of a row of the data among those scored in a role
    rows: list[Rows] = []
    roles: list[str] = []
    per_seed = []
    for seed in seeds:
        parts = cross_validation_parts(data, kinds, folds, seed, test_only)
        if not position:
            for role in dict.fromkeys(part.role for part in parts):
                found = np.sort(np.concatenate([part.test for part in parts if part.role == role]))
                position[role] = np.full(len(data.data), -1)
                position[role][found] = len(roles) + np.arange(len(found))
                rows.append(found)
                roles += [role] * len(found)
        predicted = np.full((len(roles), 24), np.nan)
        deviations = np.full_like(predicted, np.nan)
        parameters = np.full((len(roles), 6), np.nan)
        for number, part in enumerate(parts):
            log.info(
                "seed %d, %d of %d: %d rows to train on, %d %s",
                seed, number + 1, len(parts), len(part.train), len(part.test), part.role,
            )  # fmt: skip
            model = _fit(make(seed), data, simulations, _at_most(part, train_rows, seed))
            where = position[part.role][part.test]
            predicted[where], std = predict_rows(model, data.data[part.test])
            deviations[where] = np.nan if std is None else std
            theta = mixing_parameters(model, data.data[part.test])
            parameters[where] = np.nan if theta is None else theta
        per_seed.append((predicted, deviations, parameters))
    every = np.concatenate(rows)
    prediction, std, theta = (np.stack(tables) for tables in zip(*per_seed, strict=True))
    return evaluation.score(
        data,
        every,
        np.array(roles),
        simulations[every],
        prediction,
        std if np.isfinite(std).all() else None,
        theta[0] if np.isfinite(theta[0]).all() else None,
    )


def _at_most(part: Part, rows: int | None, seed: int) -> Part:
    if rows is None or rows >= len(part.train):
        return part
    return part._replace(train=np.sort(np.random.default_rng(seed).permutation(part.train)[:rows]))


def _fit(model: FluxRegressor, data: Any, simulations: Rows, part: Part) -> FluxRegressor:
    """Train; a validation part is drawn in whole simulations."""
    options = {"groups": simulations[part.train]} if model.val_split else {}
    return model.fit(data.data[part.train], data.target[part.train], **options)


def predict_rows(model: FluxRegressor, X: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Return predictions ``(n, 24)``, and standard deviations if the model was calibrated."""
    if model.error_scale_ is None:
        return model.predict(X), None
    final, std = model.predict(X, return_std=True)
    return final, std


def mixing_parameters(model: FluxRegressor, X: NDArray[Any]) -> NDArray[np.float64] | None:
    """Parameters ``(n, 6)`` that a mixing model sets for each row; None for another network."""
    import torch

    if not hasattr(model.module_, "parameters_of"):
        return None
    with torch.no_grad():
        found = model.module_.parameters_of(model.get_dataset(X).x.to(model.device))
    return np.asarray(found.cpu().numpy(), dtype=np.float64)


# --- what is said about them -----------------------------------------------------------------------------


def report_on(scored: Scored, data: Any, about: Report, resamples: int = 2000) -> Report:
    """Put everything that is known of the scored rows into a JSON-safe dict.

    Parameters
    ----------
    scored : Scored
        Predictions.
    data : Bunch
        Where the rows come from.
    about : dict
        What to say of the model; put first.
    resamples : int
        Of the bootstrap.

    Returns
    -------
    dict
        ``groups``: a `rheidae.scoring.scores.summary` for each group in each role, with ``group`` and ``role``;
        ``roles``: the same for all groups of a role; ``worst``: the ten worst rows of each role.
    """
    groups, roles = [], []
    for role in sorted(set(scored.role.tolist())):
        in_role = scored.role == role
        names = sorted(set(scored.group[in_role].tolist()))
        for group in names:
            chosen = in_role & (scored.group == group)
            groups.append({"group": group, "role": role, **evaluation.summary(scored, chosen, resamples)})
        roles.append({"group": "all", "role": role, **evaluation.summary(scored, in_role, resamples)})
    return {
        **about,
        "data": str(data.filename),
        "rheidae_version": rheidae.__version__,
        "confidence_level": evaluation.CONFIDENCE,
        "groups": groups,
        "roles": roles,
        "worst": evaluation.worst(scored),
    }


def entries(report: Report) -> list[Report]:
    """Return the groups of each role, and behind them all of the role where it has several groups."""
    found = []
    for whole in report["roles"]:
        groups = [entry for entry in report["groups"] if entry["role"] == whole["role"]]
        found += [*groups, whole] if len(groups) > 1 else groups
    return found


def notes(report: Report) -> str:
    """Say what the numbers are."""
    lines = [
        "error: four-flux distance over the total density, mean over species and rows, the truth averaged over mu and "
        "tau where the initial state has them alike; skill: 1 - error / Box3D's error.",
        f"[a, b]: {100 * report['confidence_level']:.0f} % bootstrap interval, simulations drawn with replacement.",
    ]
    if len(report["seeds"]) > 1:
        lines.append(
            f"Means over {len(report['seeds'])} seeds ({report['seeds'][0]} to {report['seeds'][-1]}); "
            "±: standard deviation between seeds."
        )
    lines.append(
        "conserved to: largest change of a flavor sum or of a flavor's lepton number, over the total density; "
        "physical: four-fluxes with N >= 0 and |F| <= N."
    )
    if report.get("rows_left_out"):
        lines.append(f"{report['rows_left_out']} rows that the run was trained or selected on are left out.")
    return "\n".join(lines)


def markdown(report: Report) -> str:
    """Return the report as a page."""
    found = entries(report)
    coverage = evaluation.coverage_table(found)
    sections = [
        "# Evaluation",
        f"Model: {report['model']}. Data: {report['data']}. rheidae {report['rheidae_version']}.",
        notes(report).replace("\n", "\n\n"),
        "## Schemes",
        evaluation.score_table(found),
        "## Errors by species and component",
        "In thousandths of the total density: four-flux distance of each species; absolute error of each component, "
        "mean over species.",
        evaluation.detail_table(found),
    ]
    if coverage:
        sections += [
            "## Coverage",
            f"Fraction of the 24 numbers of a row that lie within the model's own {100 * COVERAGE:.0f} % interval.",
            coverage,
        ]
    sections += [
        "## Worst rows",
        "depth: smaller over larger integral of the electron lepton number on both sides of the crossing; flux factor: "
        "the largest of the six species.",
        evaluation.worst_table(report["worst"]),
    ]
    return "\n\n".join(sections) + "\n"


# --- command ---------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rheidae.evaluate", description="Compare a model with the analytic schemes on unseen rows."
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", help="run folder, such as checkpoints/demo: score what it was not trained on")
    what.add_argument(
        "--cv", nargs="+", choices=CROSS_VALIDATIONS, help="train anew: k-fold over rows, leave one group out, or both"
    )
    parser.add_argument("--data", required=True, help="preprocessed file")
    cv = parser.add_argument_group("cross-validation (--cv)")
    cv.add_argument("--folds", type=int, metavar="K", help="parts of --cv rows (default: 5)")
    cv.add_argument("--seeds", type=int, metavar="N", help="repeat with the seeds 0 to N-1 (default: 1)")
    cv.add_argument(
        "--test-only",
        nargs="*",
        metavar="GROUP",
        help="groups that no model is trained on, scored by one trained on all others "
        "(default: those whose simulations are 3D by their names; give none for none)",
    )
    cv.add_argument("--config", help="model.yaml of the estimator (default: FluxRegressor as it is)")
    cv.add_argument("--train-parms", help="train_parms.yaml of the estimator")
    output = parser.add_argument_group("output")
    output.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON")
    output.add_argument("--markdown", type=Path, metavar="FILE", help="write the report as a page")
    output.add_argument("--figures", type=Path, metavar="DIR", help="write figures (PNG)")
    output.add_argument("--sample", type=int, metavar="ROW", help="row of the data whose P(n) is drawn")
    output.add_argument("--resamples", type=int, default=2000, metavar="N", help="of the bootstrap (%(default)s)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m rheidae.evaluate``."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.run:
        for name in ("folds", "seeds", "test_only", "config", "train_parms"):
            if getattr(arguments, name) is not None:
                parser.error(f"--{name.replace('_', '-')} belongs to --cv; a run is trained already")
    if arguments.seeds is not None and arguments.seeds < 1:
        parser.error("--seeds must be 1 or more")
    if arguments.resamples < 1:
        parser.error("--resamples must be 1 or more")
    if arguments.sample is not None and not arguments.figures:
        parser.error("--sample is drawn among the figures; say where to with --figures")
    return commands.run(lambda: _command(arguments))


def _command(arguments: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(1)  # more gain nothing at these widths
    _check_outputs(arguments)
    if arguments.run:
        run = load_run(arguments.run)
        data = _load(arguments.data, run.config.data.target_scale)
        scored, left_out = score_run(run, data)
        about = {"model": f"run {run.folder}", "rows_left_out": left_out, "seeds": [run.config.data.seed]}
    else:
        scored, data, about = _cross_validated(arguments)
    report = report_on(scored, data, about, arguments.resamples)
    found = entries(report)
    print("\n\n".join(filter(None, [evaluation.score_table(found), evaluation.coverage_table(found), notes(report)])))
    written = []
    if arguments.json:
        write_text(arguments.json, json.dumps(report, indent=2, allow_nan=False) + "\n")
        written.append(arguments.json)
    if arguments.markdown:
        write_text(arguments.markdown, markdown(report))
        written.append(arguments.markdown)
    if arguments.figures:
        from rheidae.scoring import figures

        written += figures.write_all(scored, report, arguments.figures, arguments.sample)
    if written:
        print(f"\nwritten: {', '.join(map(str, written))}")


def _check_outputs(arguments: argparse.Namespace) -> None:
    """Refuse impossible outputs before minutes of training, not after."""
    for path in filter(None, (arguments.json, arguments.markdown)):
        if path.is_dir():
            raise RunError(f"{path}: is a folder; name a file in it")
    if arguments.figures and arguments.figures.exists() and not arguments.figures.is_dir():
        raise RunError(f"{arguments.figures}: is a file; --figures takes a folder")


def _load(path: str, target_scale: float) -> Any:
    data = load_dataset(path, target_scale)
    if not len(data.data):
        raise RunError(f"{path}: has no rows; preprocess raw files that hold some")
    return data


def _cross_validated(arguments: argparse.Namespace) -> tuple[Scored, Any, Report]:
    config = read_config(arguments.config, Config) if arguments.config else None
    parms = read_config(arguments.train_parms, TrainParms) if arguments.train_parms else None
    data = _load(arguments.data, (config or Config()).data.target_scale)
    if arguments.sample is not None and not 0 <= arguments.sample < len(data.data):
        raise RunError(f"row {arguments.sample} is not among the {len(data.data)} of {arguments.data} (--sample)")
    test_only = three_dimensional_groups(data) if arguments.test_only is None else arguments.test_only
    make = _maker(config, parms)
    seeds = list(range(arguments.seeds or 1))
    folds = arguments.folds if arguments.folds is not None else 5
    scored = cross_validate(data, make, arguments.cv, folds=folds, seeds=seeds, test_only=test_only)
    files = [path for path in (arguments.config, arguments.train_parms) if path]
    about = {
        "model": f"{', '.join(files)}, cross-validated" if files else "FluxRegressor, defaults, cross-validated",
        "cross_validation": arguments.cv,
        "folds": folds if "rows" in arguments.cv else None,
        "test_only": list(test_only),
        "seeds": seeds,
    }
    return scored, data, about


def _maker(config: Config | None, parms: TrainParms | None) -> Callable[[int], FluxRegressor]:
    """Return what makes an untrained estimator for a seed: the default one, or as configuration files say."""
    if config is None and parms is None:
        return lambda seed: FluxRegressor(random_state=seed)
    config, parms = config or Config(), parms or TrainParms()

    def make(seed: int) -> FluxRegressor:
        return build_regressor(config, parms).set_params(random_state=seed, val_split=config.data.val_split)

    return make


if __name__ == "__main__":
    raise SystemExit(main())
