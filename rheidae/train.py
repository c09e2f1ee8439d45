"""Train a model on a preprocessed file.

python -m rheidae.train --config config/model.yaml --train-parms config/train_parms.yaml --predict-residual
"""

from __future__ import annotations

import argparse
import difflib
import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from skorch.callbacks import EarlyStopping, LRScheduler
from skorch.helper import predefined_split

from rheidae.config import Config, DataConfig, TrainParms, read_config
from rheidae.datasets import load_dataset
from rheidae.estimator.callbacks import (
    BatchNormRecalibration,
    EpochProgress,
    HistoryLog,
    LagrangianConstraints,
    RunCheckpoint,
    StopRequest,
    WarmupLR,
)
from rheidae.estimator.callbacks.weighting import SCHEMES
from rheidae.estimator.networks import ARCHITECTURES
from rheidae.estimator.processes import agreed, distribute, is_first, join, launched
from rheidae.estimator.regressor import FluxRegressor
from rheidae.exceptions import DataError, RunError, RunStopped
from rheidae.runs.folder import (
    Run,
    check_same_run,
    clear_run,
    data_fingerprint,
    load_state,
    row_keys,
    save_about,
    save_config,
    save_run,
)
from rheidae.scoring.splits import Rows, shuffled_split, simulation_labels
from rheidae.system import commands
from rheidae.system.h5 import open_h5
from rheidae.system.outputs import write_text

log = logging.getLogger(__name__)


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
    simulations = simulation_labels(data)
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
        left, parts[part] = shuffled_split(left, simulations[left], share / len(left), config.seed)
    if len(left) < 2:
        raise RunError(f"{data.filename}: {len(left)} rows are left to train on; at least 2 are needed")
    return {"train": left, **parts}


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
    elif parms.lr_scheduler.type == "cosine":
        callbacks.append(("lr_cosine", LRScheduler("CosineAnnealingLR", T_max=config.training.epochs)))
    if parms.early_stop.enabled:
        if not has_validation:
            raise RunError("early_stop.enabled needs a validation loss: set data.val_split above 0, or disable it")
        stop = EarlyStopping(
            patience=parms.early_stop.patience,
            threshold=parms.early_stop.min_delta,
            threshold_mode="abs",
            sink=log.info,
        )
        callbacks.append(("early_stop", stop))
    weighting: Any = parms.weighting.scheme
    if weighting in SCHEMES:
        weighting = SCHEMES[weighting](**parms.weighting.params)
    constraints: Any = False
    if parms.constraints.enabled:
        constraints = LagrangianConstraints(
            parms.constraints.lr_lambda, parms.constraints.rho, config.loss.density_floor
        )
    return FluxRegressor(
        ARCHITECTURES[config.model.architecture],
        weighting=weighting,
        pcgrad=parms.pcgrad,
        constraints=constraints,
        mixed_precision=config.training.mixed_precision,
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
        **{f"module__{name}": value for name, value in config.model.options().items()},
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


@contextmanager
def stop_signals() -> Iterator[Callable[[], int | None]]:
    """Note SIGTERM and SIGUSR1 instead of dying of them; yields a function that returns the one that came, or None.

    SLURM warns by them before it kills. Outside the main thread Python allows no handlers; nothing is noted there.
    """
    came: list[int] = []
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGUSR1):
            before[number] = signal.signal(number, lambda n, _frame: came.append(n))
    try:
        yield lambda: came[0] if came else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def require_box3d(path: str | Path) -> None:
    """Raise `DataError` if a preprocessed file has no answer of Box3D in it.

    A file of ``diagnostics: minimal`` has it in `input` alone.
    """
    with open_h5(path, "make it with: python -m rheidae.preprocess") as file:
        minimal = file.attrs.get("rheidae_version") and json.loads(file.attrs["config"])["diagnostics"] == "minimal"
        if not minimal and "F_box" not in file and "F_box_flat" not in file:
            raise DataError(
                f"{path}: no dataset 'F_box'; training starts from Box3D's answer: make the file with: "
                f"python -m rheidae.preprocess. The file holds: {', '.join(sorted(file)) or 'nothing'}"
            )


def train(config: Config, parms: TrainParms, run_id: str, threads: int | None = 1) -> Path:
    """Train a model and write its run folder.

    Parameters
    ----------
    config, parms : Config, TrainParms
        ``config/model.yaml`` and ``config/train_parms.yaml``. With `resume_from`, the run in that folder goes on from
        its last checkpoint, exactly as if it had not been stopped; configuration and data have to be those of then.
    run_id : str
        Name of the folder under `checkpoint_dir`; a run of that name is replaced. Not used with `resume_from`.
    threads : int or None
        Of `FluxRegressor`.

    Returns
    -------
    Path
        The run folder.

    Raises
    ------
    RheidaeError
        If the data or the configuration do not allow it; nothing is written then.
    RunStopped
        After SIGTERM or SIGUSR1; the last finished epoch is saved.
    KeyboardInterrupt
        After Ctrl-C; the run folder is complete, with the best weights so far.
    """
    from rheidae import plots
    from rheidae.runs import modelcard

    # One of several processes: all train, the first writes.
    accelerator = join(config.training.device) if launched() else None
    writes = accelerator is None or accelerator.is_main_process
    if not writes:
        log.setLevel(logging.WARNING)
    source = config.data.processed_path
    require_box3d(source)
    data = load_dataset(source, config.data.target_scale)
    parts = split_rows(data, config.data)
    train_rows, valid_rows = parts["train"], parts["valid"]
    X, y = data.data[train_rows], data.target[train_rows]
    regressor = build_regressor(config, parms).set_params(threads=threads)
    if accelerator is not None:
        regressor = distribute(regressor, accelerator)
    regressor.check_rows(X, y)
    if len(valid_rows):
        valid = regressor.get_dataset(data.data[valid_rows], data.target[valid_rows])
        regressor.set_params(train_split=predefined_split(valid))
    if parms.logging.tensorboard:
        _require_tensorboard()
    fingerprint = data_fingerprint(data)
    resume_from = config.training.resume_from
    state = None
    if resume_from is None:
        folder = Path(config.training.checkpoint_dir) / run_id
        if writes:
            clear_run(folder)
            save_config(folder, config, parms)
    else:
        folder = Path(resume_from)
        check_same_run(folder, config, parms, fingerprint)
        state = load_state(folder)
    run_id = folder.name
    log.info(
        "%d rows: %s, held out %s", len(data.data), ", ".join(f"{len(rows)} {part}" for part, rows in parts.items()),
        ", ".join(config.data.holdout_groups) or "no group",
    )  # fmt: skip
    about = {
        "run_id": run_id,
        "data": source,
        "data_fingerprint": fingerprint,
        "seed": config.data.seed,
        "groups": sorted(set(data.groups[train_rows].tolist())),
        "training_range": modelcard.training_range(data, train_rows),
    }
    if writes:
        save_about(folder, {**about, "status": "running"})
    keys = row_keys(data.data, data.target)
    saved_rows = {part: keys[rows] for part, rows in parts.items()}
    checkpoint = RunCheckpoint(folder, parms.logging.save_every)
    started = time.perf_counter()
    with stop_signals() as asked:
        if accelerator is not None:
            asked = agreed(asked, accelerator)
        extra: list[tuple[str, Any]] = [("stop", StopRequest(asked))]
        if writes:
            extra += [("progress", EpochProgress(config.training.epochs)), ("history_log", HistoryLog(folder))]
            if parms.logging.tensorboard:
                extra.append(("tensorboard", _tensorboard(folder)))
            extra.append(("checkpoint", checkpoint))
        regressor.set_params(callbacks=[*regressor.callbacks, *extra])
        try:
            if state is None:
                regressor.fit(X, y)
            else:
                log.info("going on after epoch %d", state["epoch"])
                regressor.resume(X, y, state)
        except RunStopped as stop:
            if writes:
                checkpoint.write(regressor)
                save_about(folder, {**about, "status": f"stopped by signal {stop.signal}"})
            log.info("stopped by signal %d; go on with: --resume-from %s", stop.signal, folder)
            raise
        except RunError as error:
            if writes:
                save_about(folder, {**about, "status": f"failed: {error}"})
            raise
    seconds = time.perf_counter() - started
    about |= {
        "status": "interrupted" if regressor.interrupted_ else "finished",
        "epochs": len(regressor.history),
        "seconds": round(seconds, 2),
        "parameters": sum(parameter.numel() for parameter in regressor.module_.parameters()),
    }
    if accelerator is not None:
        accelerator.end_training()
    if writes:
        save_run(folder, regressor, saved_rows, about)
        run = Run(folder, regressor, config, parms, saved_rows, frozenset(data.groups[train_rows].tolist()))
        write_text(folder / modelcard.NAME, modelcard.model_card(run, data, about))
        if len(regressor.history):
            plots.loss_curve(regressor.history, Path(config.training.results_dir) / run_id / "loss.png")
    log.info("%d epochs in %.1f s; run folder %s", len(regressor.history), seconds, folder)
    if regressor.interrupted_:
        raise KeyboardInterrupt
    return folder


def _require_tensorboard() -> Any:
    """Return the writer of TensorBoard's files, or say what to install."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise RunError(
            "logging.tensorboard: the package tensorboard is not installed; install the extra rheidae[tensorboard], "
            "or set it to false"
        ) from None
    return SummaryWriter


def _tensorboard(folder: Path) -> Any:
    from skorch.callbacks import TensorBoard

    return TensorBoard(_require_tensorboard()(str(folder / "tensorboard")))


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
    parser.add_argument("--resume-from", metavar="RUN", help="run folder to go on with (else: model.yaml)")
    parser.add_argument("--smoke", action="store_true", help="one batch forward and backward, then stop")
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="threads of torch and Numba (default 1; more pay for wide networks in large batches alone)",
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
        if arguments.resume_from:
            training = config.training.model_copy(update={"resume_from": arguments.resume_from})
            config = config.model_copy(update={"training": training})
        try:
            run_id = arguments.run_id or datetime.now().strftime("%Y%m%d-%H%M%S")
            folder = train(config, parms, run_id, arguments.threads)
            if is_first():
                print(folder)
        except RunStopped as stop:
            raise SystemExit(128 + stop.signal) from None

    return commands.run(command)


if __name__ == "__main__":
    raise SystemExit(main())
