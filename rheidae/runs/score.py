"""Which model is asked about which rows: a run about those it has not seen, and cross-validation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rheidae.config import Config, TrainParms, read_config
from rheidae.datasets import load_dataset, row_count
from rheidae.estimator.regressor import FluxRegressor
from rheidae.exceptions import RunError
from rheidae.mixing.survival import PARAMETERS
from rheidae.runs.build import build_regressor
from rheidae.runs.folder import Run, load_run
from rheidae.scoring.scores import Scored, score
from rheidae.scoring.splits import (
    Part,
    RowNumbers,
    cross_validation_parts,
    rows_again,
    simulation_keys,
    simulation_labels,
    three_dimensional_groups,
)
from rheidae.scoring.tally import Tallies
from rheidae.system.h5 import open_h5

log = logging.getLogger(__name__)


About = dict[str, Any]
"""What a report says of the model: ``model``, ``seeds``, and how it was scored."""


BLOCK_ROWS = 1 << 14
"""Rows of a file that are scored at a time."""

SOME_ROWS = 20_000
"""Of a file, at most: those that figures are drawn of."""


def score_folder(folder: str | Path, source: str | Path, sample: int | None = None) -> tuple[Tallies, Scored, About]:
    """Score the run of a folder on a preprocessed file, in blocks: of most rows only a few numbers stay in memory.

    Parameters
    ----------
    folder, source : path
        Run folder and preprocessed file.
    sample : int, optional
        A row that will be drawn.

    Returns
    -------
    tallies : Tallies
        Of all rows that `score_run` scores.
    some : Scored
        At most `SOME_ROWS` of them, evenly spaced, and the sample.
    about : dict
        As of `score_run`.

    Raises
    ------
    RunError
        If no row is left.
    """
    run = load_run(folder)
    tallies, some, done = Tallies(), [], 0
    with open_h5(source, "make it with: python -m rheidae.preprocess"):  # so that all blocks are of one version
        rows = row_count(source)
        for first in range(0, rows, BLOCK_ROWS):
            data = load_dataset(source, run.config.data.target_scale, rows=(first, first + BLOCK_ROWS))
            scored = _score_unseen(run, data, first)
            if scored is not None:
                tallies.add(scored)
                drawn = np.arange(done, done + len(scored.row)) % -(-rows // SOME_ROWS) == 0
                some.append(scored.chosen(drawn | (scored.row == sample)))
                done += len(scored.row)
    _require_rows(rows, source)
    if not done:
        raise _nothing_unseen(source)
    return tallies, Scored.together(some), _about(run, rows - done)


def score_run(run: Run, data: Any) -> tuple[Scored, About]:
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
    about : dict
        Also ``rows_left_out``: how many rows took part in training or validation.

    Raises
    ------
    RunError
        If no row is left.
    """
    scored = _score_unseen(run, data)
    if scored is None:
        raise _nothing_unseen(data.filename)
    return scored, _about(run, len(data.data) - len(scored.row))


def _score_unseen(run: Run, data: Any, first: int = 0) -> Scored | None:
    rows = np.flatnonzero(~run.has_seen(data))
    if not len(rows):
        return None
    return score_rows(run.regressor, data, rows, run.role_of(data.groups[rows]), first)


def _about(run: Run, left_out: int) -> About:
    return {"model": f"run {run.folder}", "rows_left_out": left_out, "seeds": [run.config.data.seed]}


def _nothing_unseen(source: Any) -> RunError:
    return RunError(f"{source}: the run was trained on every row of it; evaluate on other simulations")


def _require_rows(rows: int, source: Any) -> None:
    if not rows:
        raise RunError(f"{source}: has no rows; preprocess raw files that hold some")


def score_rows(model: FluxRegressor, data: Any, rows: RowNumbers, role: NDArray[np.str_], first: int = 0) -> Scored:
    """Score a trained model on some rows, each in a role; see `rheidae.scoring.scores.score`."""
    prediction, std = predict_rows(model, data.data[rows])
    return score(
        data, rows, role, simulation_keys(data, first)[rows], prediction[None], None if std is None else std[None],
        mixing_parameters(model, data.data[rows]), first,
    )  # fmt: skip


def score_settings(
    source: str | Path,
    kinds: Sequence[str],
    config_path: str | None = None,
    parms_path: str | None = None,
    *,
    folds: int = 5,
    seeds: int = 1,
    test_only: Sequence[str] | None = None,
    sample: int | None = None,
) -> tuple[Scored, About]:
    """Cross-validate what configuration files describe, or the estimator's defaults; see `cross_validate`.

    Parameters
    ----------
    source : path
        Preprocessed file.
    kinds, folds
        As of `cross_validate`.
    config_path, parms_path : str, optional
        ``model.yaml`` and ``train_parms.yaml``.
    seeds : int
        How many, from 0.
    test_only : sequence of str, optional
        Groups that no model is trained on; by default those whose simulations are 3D by their names.
    sample : int, optional
        A row that will be drawn: refused before minutes of training, not after.

    Returns
    -------
    scored : Scored
    about : dict
    """
    config = read_config(config_path, Config) if config_path else None
    parms = read_config(parms_path, TrainParms) if parms_path else None
    data = load_dataset(source, (config or Config()).data.target_scale)
    _require_rows(len(data.data), source)
    if sample is not None and not 0 <= sample < len(data.data):
        raise RunError(f"row {sample} is not among the {len(data.data)} of {source} (--sample)")
    if test_only is None:
        test_only = three_dimensional_groups(data)
    scored = cross_validate(
        data, _maker(config, parms), kinds, folds=folds, seeds=range(seeds), test_only=test_only
    )  # fmt: skip
    files = [path for path in (config_path, parms_path) if path]
    about = {
        "model": f"{', '.join(files)}, cross-validated" if files else "FluxRegressor, defaults, cross-validated",
        "cross_validation": list(kinds),
        "folds": folds if "rows" in kinds else None,
        "test_only": list(test_only),
        "rows_again": int(rows_again(data).sum()),
        "seeds": list(range(seeds)),
    }
    return scored, about


def _maker(config: Config | None, parms: TrainParms | None) -> Callable[[int], FluxRegressor]:
    """Return what makes an untrained estimator for a seed: the default one, or as configuration files say."""
    if config is None and parms is None:
        return lambda seed: FluxRegressor(random_state=seed)
    config, parms = config or Config(), parms or TrainParms()

    def make(seed: int) -> FluxRegressor:
        return build_regressor(config, parms).set_params(random_state=seed, val_split=config.data.val_split)

    return make


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
    position: dict[str, RowNumbers] = {}  # of a row of the data among those scored in a role
    rows: list[RowNumbers] = []
    roles: list[str] = []
    per_seed = []
    for seed in seeds:
        parts = cross_validation_parts(data, kinds, folds, seed, test_only)
        if not position:
            for role in dict.fromkeys(part.role for part in parts):
                tested = np.sort(np.concatenate([part.test for part in parts if part.role == role]))
                position[role] = np.full(len(data.data), -1)
                position[role][tested] = len(roles) + np.arange(len(tested))
                rows.append(tested)
                roles += [role] * len(tested)
        predicted = np.full((len(roles), 24), np.nan)
        deviations = np.full_like(predicted, np.nan)
        parameters = np.full((len(roles), len(PARAMETERS)), np.nan)
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
    return score(
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


def _fit(model: FluxRegressor, data: Any, simulations: RowNumbers, part: Part) -> FluxRegressor:
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
    """Parameters ``(n, 8)`` that a mixing model sets for each row; None for another network."""
    if not hasattr(model.module_, "parameters_of"):
        return None
    with torch.no_grad():
        theta = model.module_.parameters_of(model.get_dataset(X).x.to(model.device))
    return np.asarray(theta.cpu().numpy(), dtype=np.float64)
