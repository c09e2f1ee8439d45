"""Train a model on a preprocessed file.

python -m rheidae.train --config config/model.yaml --train-parms config/train_parms.yaml --predict-residual
"""

from __future__ import annotations

import argparse
import difflib
import logging
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import GroupShuffleSplit
from skorch.callbacks import EarlyStopping, LRScheduler
from skorch.helper import predefined_split

from rheidae import commands
from rheidae.callbacks import BatchNormRecalibration, EpochProgress, PeriodicSave, WarmupLR
from rheidae.config import Config, DataConfig, TrainParms, read_config
from rheidae.datasets import load_dataset
from rheidae.exceptions import RunError
from rheidae.regressor import FluxRegressor
from rheidae.runs import row_keys, save_config, save_run

log = logging.getLogger(__name__)

Rows = NDArray[np.intp]


def split_rows(data: Any, config: DataConfig) -> dict[str, Rows]:
    """Divide the rows of a data set into training, validation and test rows.

    Parameters
    ----------
    data : Bunch
        From `load_dataset`.
    config : DataConfig
        Rows whose group is in `holdout_groups` go nowhere. Of the others, `test_split` and `val_split` are
        fractions, drawn at random from `seed`.

    Returns
    -------
    dict of ndarray
        Row numbers under "train", "valid" and "test". Rows of one simulation (same `groups` and `dirname`) stay
        together.

    Raises
    ------
    RunError
        If a group to hold out is not in the data, or a part that was asked for would have no rows.
    """
    known = sorted(set(data.groups.tolist()))
    for group in config.holdout_groups:
        if group not in known:
            near = difflib.get_close_matches(group, known, n=1, cutoff=0.0)
            raise RunError(
                f"data.holdout_groups: {group!r} is not in {data.filename}; the nearest is {near[0]!r}, "
                f"all are {', '.join(known)}"
            )
    rows = np.flatnonzero(~np.isin(data.groups, config.holdout_groups))
    simulations = _simulations(data)
    parts = {}
    left = rows
    for part, fraction in (("test", config.test_split), ("valid", config.val_split)):
        share = round(fraction * len(rows))
        if fraction == 0:
            parts[part] = rows[:0]
            continue
        if share < 1 or len(np.unique(simulations[left])) < 2:
            raise RunError(
                f"{data.filename}: {len(rows)} rows are too few for a {part} part of {fraction:g}; "
                "preprocess more rows, or set the fraction to 0"
            )
        splitter = GroupShuffleSplit(1, test_size=share / len(left), random_state=config.seed)
        keep, chosen = next(splitter.split(left, groups=simulations[left]))
        parts[part], left = left[chosen], left[keep]
    if len(left) < 2:
        raise RunError(f"{data.filename}: {len(left)} rows are left to train on; at least 2 are needed")
    return {"train": left, **parts}


def _simulations(data: Any) -> NDArray[np.intp]:
    """A number per simulation; a row without a directory name is a simulation of its own."""
    names = np.char.add(np.char.add(data.groups, "/"), data.dirname)
    _, index = np.unique(names, return_inverse=True)
    nameless = data.dirname == ""
    index[nameless] = len(names) + np.flatnonzero(nameless)
    return index


def build_regressor(config: Config, parms: TrainParms) -> FluxRegressor:
    """Return the untrained estimator that two configuration files describe."""
    callbacks: list[tuple[str, Any]] = []
    if parms.lr_warmup.enabled:
        callbacks.append(("lr_warmup", WarmupLR(**parms.lr_warmup.model_dump(exclude={"enabled"}))))
    if parms.bn_recalibrate.enabled:
        recalibration = BatchNormRecalibration(**parms.bn_recalibrate.model_dump(exclude={"enabled"}))
        callbacks.append(("bn_recalibrate", recalibration))
    has_validation = config.data.val_split > 0
    if parms.lr_scheduler.type == "reduce_on_plateau":
        schedule = parms.lr_scheduler.model_dump(exclude={"type"})
        monitor = "valid_loss" if has_validation else "train_loss"
        callbacks.append(("lr_plateau", LRScheduler("ReduceLROnPlateau", monitor=monitor, **schedule)))
    if parms.early_stop.enabled:
        if not has_validation:
            raise RunError("early_stop.enabled needs a validation loss: set data.val_split above 0, or disable it")
        stop = EarlyStopping(
            patience=parms.early_stop.patience,
            threshold=parms.early_stop.min_delta,
            threshold_mode="abs",
            load_best=True,
            sink=log.info,
        )
        callbacks.append(("early_stop", stop))
    return FluxRegressor(
        predict_residual=parms.predict_residual,
        random_state=config.data.seed,
        lr=config.optimizer.lr,
        optimizer__weight_decay=config.optimizer.weight_decay,
        optimizer__betas=tuple(config.optimizer.betas),
        optimizer__eps=config.optimizer.eps,
        max_epochs=config.training.epochs,
        batch_size=config.data.batch_size,
        grad_clip=config.training.grad_clip,
        device=resolve_device(config.training.device),
        callbacks=callbacks,
        callbacks__lr_schedule=None,  # the configuration says what the learning rate does
        callbacks__print_log=None,
        **{f"module__{name}": value for name, value in config.model},
        **{f"criterion__{name}": value for name, value in config.loss},
    )


def resolve_device(name: str) -> str:
    """Return the device for ``auto|cpu|cuda|mps``; raise `RunError` where the one asked for is not there."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(device for device, there in available.items() if there)
    if not available[name]:
        raise RunError(f"training.device: {name} is not available on this machine; use auto or cpu")
    return name


def train(config: Config, parms: TrainParms, run_id: str) -> Path:
    """Train a model and write its run folder.

    Parameters
    ----------
    config, parms : Config, TrainParms
        ``config/model.yaml`` and ``config/train_parms.yaml``.
    run_id : str
        Name of the folder under `checkpoint_dir`; a finished run of that name is replaced.

    Returns
    -------
    Path
        The run folder.

    Raises
    ------
    RheidaeError
        If the data or the configuration do not allow it; nothing is written then.
    """
    from rheidae import plots

    data = load_dataset(config.data.processed_path, config.data.target_scale)
    parts = split_rows(data, config.data)
    regressor = build_regressor(config, parms)
    folder = Path(config.training.checkpoint_dir) / run_id
    save_config(folder, config, parms)
    train_rows, valid_rows = parts["train"], parts["valid"]
    log.info(
        "%d rows: %s, held out %s", len(data.data), ", ".join(f"{len(rows)} {part}" for part, rows in parts.items()),
        ", ".join(config.data.holdout_groups) or "no group",
    )  # fmt: skip
    if len(valid_rows):
        valid = regressor.get_dataset(data.data[valid_rows], data.target[valid_rows])
        regressor.set_params(train_split=predefined_split(valid))
    extra = [
        ("progress", EpochProgress(config.training.epochs)),
        ("save", PeriodicSave(folder, parms.logging.save_every)),
    ]
    regressor.set_params(callbacks=[*regressor.callbacks, *extra])
    started = time.perf_counter()
    regressor.fit(data.data[train_rows], data.target[train_rows])
    seconds = time.perf_counter() - started
    keys = row_keys(data.data, data.target)
    about = {
        "run_id": run_id,
        "data": config.data.processed_path,
        "groups": sorted(set(data.groups[train_rows].tolist())),
        "epochs": len(regressor.history),
        "seconds": round(seconds, 2),
        "parameters": sum(parameter.numel() for parameter in regressor.module_.parameters()),
    }
    save_run(folder, regressor, config, parms, {part: keys[rows] for part, rows in parts.items()}, about)
    plots.loss_curve(regressor.history, Path(config.training.results_dir) / run_id / "loss.png")
    log.info("%d epochs in %.1f s; run folder %s", len(regressor.history), seconds, folder)
    return folder


def smoke(config: Config, parms: TrainParms) -> float:
    """One batch forward and backward; return its loss. Writes nothing."""
    data = load_dataset(config.data.processed_path, config.data.target_scale)
    rows = split_rows(data, config.data)["train"][: config.data.batch_size]
    regressor = build_regressor(config, parms).initialize()
    batch = regressor.get_dataset(data.data[rows], data.target[rows])
    loss = regressor.train_step((batch.x, batch.y))["loss"].detach()
    return float(loss)


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m rheidae.train``."""
    parser = argparse.ArgumentParser(prog="python -m rheidae.train", description="Train a model.")
    parser.add_argument("--config", default="config/model.yaml", help="data, model, optimizer (%(default)s)")
    parser.add_argument("--train-parms", default="config/train_parms.yaml", help="schedules (%(default)s)")
    parser.add_argument(
        "--predict-residual",
        action="store_true",
        help="predict what Box3D leaves unexplained (else: train_parms.yaml)",
    )
    parser.add_argument("--run-id", help="name of the run folder (default: the time)")
    parser.add_argument("--smoke", action="store_true", help="one batch forward and backward, then stop")
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="torch's threads (default 1: more gain nothing at these widths)",
    )
    arguments = parser.parse_args(argv)

    def command() -> None:
        torch.set_num_threads(arguments.threads)
        config = read_config(arguments.config, Config)
        parms = read_config(arguments.train_parms, TrainParms)
        if arguments.predict_residual:
            parms = parms.model_copy(update={"predict_residual": True})
        if arguments.smoke:
            print(f"one batch forward and backward: loss {smoke(config, parms):.4e}")
            return
        print(train(config, parms, arguments.run_id or datetime.now().strftime("%Y%m%d-%H%M%S")))

    return commands.run(command)


if __name__ == "__main__":
    raise SystemExit(main())
