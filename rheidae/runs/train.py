"""Training runs: from a preprocessed file to a run folder."""

from __future__ import annotations

import difflib
import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from skorch.callbacks import TensorBoard
from skorch.helper import predefined_split

from rheidae.config import Config, DataConfig, TrainParms
from rheidae.datasets import load_dataset
from rheidae.estimator.callbacks import EpochProgress, HistoryLog, RunCheckpoint, StopRequest
from rheidae.estimator.distributed import distribute
from rheidae.estimator.processes import agreed, join, launched
from rheidae.estimator.resuming import NOT_A_STATE
from rheidae.exceptions import DataError, OutputError, RheidaeError, RunError, RunStopped
from rheidae.runs import modelcard
from rheidae.runs.build import build_regressor
from rheidae.runs.folder import (
    Run,
    check_same_run,
    clear_run,
    data_fingerprint,
    digests,
    load_state,
    new_folder,
    own_folder,
    require_run,
    require_run_id,
    save_about,
    save_config,
    save_run,
)
from rheidae.scoring import plots
from rheidae.scoring.splits import (
    RowNumbers,
    leaves_some,
    row_keys,
    shuffled_split,
    simulation_labels,
    without_copies,
)
from rheidae.system.h5 import open_h5, present
from rheidae.system.outputs import write_text
from rheidae.system.signals import handlers

log = logging.getLogger(__name__)


def split_rows(data: Any, config: DataConfig) -> dict[str, RowNumbers]:
    """Divide the rows of a data set into training, validation and test rows.

    Parameters
    ----------
    data : Bunch
        From `load_dataset`.
    config : DataConfig
        Rows whose group is in `holdout_groups` go nowhere, and neither do copies of their simulations in other groups.
        Of the others, `test_split` and `val_split` are fractions, drawn at random from `seed`.

    Returns
    -------
    dict of ndarray
        Row numbers under "train", "valid" and "test". Rows of one simulation (same `groups` and `dirname`, or equal
        rows) stay together.

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
    held_out = np.isin(data.groups, config.holdout_groups)
    simulations = simulation_labels(data)
    others = np.flatnonzero(~held_out)
    rows = without_copies(others, held_out, simulations)
    if len(rows) < len(others):
        log.warning(
            "%s: %d rows of other groups are of simulations that data.holdout_groups has too; they are left out",
            data.filename, len(others) - len(rows),
        )  # fmt: skip
    parts = {}
    left = rows
    for part, fraction in (("test", config.test_split), ("valid", config.val_split)):
        share = round(fraction * len(rows))
        if fraction == 0:
            parts[part] = rows[:0]
            continue
        if share < 1 or not leaves_some(len(np.unique(simulations[left])), share / len(left)):
            raise RunError(
                f"{data.filename}: {len(rows)} rows are too few for a {part} part of {fraction:g}; "
                "preprocess more rows, choose a smaller fraction, or set it to 0"
            )
        left, parts[part] = shuffled_split(left, simulations[left], share / len(left), config.seed)
    if len(left) < 2:
        raise RunError(f"{data.filename}: {len(left)} rows are left to train on; at least 2 are needed")
    return {"train": left, **parts}


@contextmanager
def stop_signals() -> Iterator[Callable[[], int | None]]:
    """Note SIGTERM and SIGUSR1 instead of dying of them; yields a function that returns the one that came, or None.

    SLURM warns by them before it kills. Outside the main thread Python allows no handlers; nothing is noted there.
    """
    came: list[int] = []
    main = threading.current_thread() is threading.main_thread()
    wanted = (signal.SIGTERM, signal.SIGUSR1) if main else ()
    with handlers(dict.fromkeys(wanted, lambda number, _frame: came.append(number))):
        yield lambda: came[0] if came else None


def require_box3d(path: str | Path) -> None:
    """Raise `DataError` if a preprocessed file has no answer of Box3D in it.

    A file of ``diagnostics: minimal`` has it in `input` alone.
    """
    with open_h5(path, "make it with: python -m rheidae.preprocess") as file:
        minimal = file.attrs.get("rheidae_version") and json.loads(file.attrs["config"])["diagnostics"] == "minimal"
        if not minimal and not present(file, "F_box") and not present(file, "F_box_flat"):
            raise DataError(
                f"{path}: no dataset 'F_box'; training starts from Box3D's answer: make the file with: "
                f"python -m rheidae.preprocess. The file holds: {', '.join(sorted(file)) or 'nothing'}"
            )


def train(config: Config, parms: TrainParms, run_id: str | None = None, threads: int | None = 1) -> Path:
    """Train a model and write its run folder.

    Parameters
    ----------
    config, parms : Config, TrainParms
        ``config/model.yaml`` and ``config/train_parms.yaml``. With `resume_from`, the run in that folder goes on from
        its last checkpoint, exactly as if it had not been stopped; configuration and data have to be those of then.
    run_id : str, optional
        Name of the folder under `checkpoint_dir`; a run of that name is replaced. Default: the time, and a number if
        another run has that name. Not used with `resume_from`.
    threads : int or None
        Of `FluxRegressor`.

    Returns
    -------
    Path
        The run folder.

    Raises
    ------
    RheidaeError
        If the data or the configuration do not allow it, or another run writes into the folder; nothing is written
        then. If the disk is full; ``run.json`` says that the run failed, where there is room.
    RunStopped
        After SIGTERM or SIGUSR1; the last finished epoch is saved.
    KeyboardInterrupt
        After Ctrl-C; the run folder is complete, with the best weights so far.
    """
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
    if run_id is not None:
        require_run_id(run_id)
    fingerprint = data_fingerprint(data)
    log.info(
        "%d rows: %s, held out %s", len(data.data), ", ".join(f"{len(rows)} {part}" for part, rows in parts.items()),
        ", ".join(config.data.holdout_groups) or "no group",
    )  # fmt: skip
    about: dict[str, Any] = {
        "data": source,
        "data_fingerprint": fingerprint,
        "seed": config.data.seed,
        "groups": sorted(set(data.groups[train_rows].tolist())),
        "feature_names": data.feature_names,
        "target_names": data.target_names,
        "training_range": modelcard.training_range(data, train_rows),
    }
    keys = row_keys(data.data, data.target)
    saved_rows = {part: keys[rows] for part, rows in parts.items()}
    resume_from = config.training.resume_from
    state = None
    with ExitStack() as stack:
        if resume_from is not None:
            folder = Path(resume_from).resolve()
            require_run(folder)
        elif run_id is not None or not writes:
            folder = Path(config.training.checkpoint_dir) / (run_id or "")
        else:
            folder = new_folder(Path(config.training.checkpoint_dir))
        about = {"run_id": folder.name, **about}
        if writes:
            stack.enter_context(own_folder(folder))
        if resume_from is not None:
            check_same_run(folder, config, parms, fingerprint)
            state = load_state(folder)
        if writes:
            save_about(folder, {**about, "status": "running"})
            if state is None:
                clear_run(folder)
                save_config(folder, config, parms)
        checkpoint = RunCheckpoint(folder, parms.logging.save_every)
        started = time.perf_counter()
        try:
            with stop_signals() as asked:
                if accelerator is not None:
                    asked = agreed(asked, accelerator)
                extra: list[tuple[str, Any]] = [("stop", StopRequest(asked))]
                if writes:
                    extra += [("progress", EpochProgress(config.training.epochs)), ("history_log", HistoryLog(folder))]
                    if parms.logging.tensorboard:
                        writer = _require_tensorboard()(str(folder / "tensorboard"))
                        extra.append(("tensorboard", TensorBoard(writer)))
                    extra.append(("checkpoint", checkpoint))
                regressor.set_params(callbacks=[*regressor.callbacks, *extra])
                try:
                    if state is None:
                        regressor.fit(X, y)
                    else:
                        log.info("going on after epoch %d", state["epoch"])
                        with _going_on(folder):
                            regressor.resume(X, y, state)
                except RunStopped as stop:
                    if writes:
                        checkpoint.write(regressor)
                        save_about(folder, {**about, "status": f"stopped by signal {stop.signal}"})
                    further = (
                        f"go on with: --resume-from {folder}" if checkpoint.path.exists() else "no epoch had ended"
                    )
                    log.info("stopped by signal %d; %s", stop.signal, further)
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
                save_run(folder, regressor, saved_rows)
                run = Run(folder, regressor, config, parms, saved_rows, frozenset(about["groups"]))
                write_text(folder / modelcard.NAME, modelcard.model_card(run, data, about))
                about |= {f"{part}_rows": len(rows) for part, rows in parts.items()}
                save_about(folder, {**about, "digests": digests(folder)})
        except (RunError, OutputError) as error:
            if writes:
                with suppress(OutputError):
                    save_about(folder, {**about, "status": f"failed: {error}"})
            raise
    if writes and len(regressor.history):
        picture = Path(config.training.results_dir) / folder.name / "loss.png"
        plots.drawn(lambda path: plots.loss_curve(regressor.history, path), picture)
    log.info("%d epochs in %.1f s; run folder %s", len(regressor.history), seconds, folder)
    if regressor.interrupted_:
        if checkpoint.path.exists():
            log.info("interrupted; go on with: --resume-from %s", folder)
        raise KeyboardInterrupt
    return folder


@contextmanager
def _going_on(folder: Path) -> Iterator[None]:
    """Refuse a checkpoint that cannot be trained on: its parts fit, and their contents do not."""
    try:
        yield
    except RheidaeError:
        raise
    except NOT_A_STATE as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise RunError(
            f"{folder / 'state.pt'}: training does not go on from it ({reason}); start the run anew with its --run-id"
        ) from error


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


def smoke(config: Config, parms: TrainParms) -> float:
    """One batch forward and backward; return its loss. Writes nothing."""
    data = load_dataset(config.data.processed_path, config.data.target_scale)
    rows = split_rows(data, config.data)["train"][: config.data.batch_size]
    regressor = build_regressor(config, parms).initialize()
    batch = regressor.get_dataset(data.data[rows], data.target[rows])
    loss = regressor.train_step((batch.x, batch.target))["loss"].detach()
    return float(loss)
