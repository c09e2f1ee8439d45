"""Run folders: what a training run leaves behind, and how it is opened again.

``checkpoints/<run-id>/`` holds ``model.yaml`` and ``train_parms.yaml`` (resolved), ``run.json`` (status, versions,
seed, fingerprint of the data), ``history.json``, ``.jsonl`` (a line per epoch as it goes) and ``.csv``, ``state.pt``
(all that is needed to go on exactly; tensors and plain data alone), ``last.safetensors`` (its weights) and, once
finished, ``weights.safetensors`` (the best epoch's), ``error_scale.safetensors`` (how far off it may be),
``rows.npz`` (which rows it was trained on) and ``MODEL_CARD.md`` (see `rheidae.runs.modelcard`).
"""

from __future__ import annotations

import hashlib
import json
import pickle
import platform
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file

import rheidae
from rheidae.config import Config, TrainParms, read_config
from rheidae.estimator.callbacks import save_history, save_weights
from rheidae.estimator.callbacks.saving import plain_history, write_history_csv
from rheidae.estimator.regressor import FluxRegressor
from rheidae.estimator.uncertainty import ErrorScale
from rheidae.exceptions import RunError
from rheidae.runs.build import build_regressor
from rheidae.system.outputs import Outputs, write_text

RESULTS = ("weights.safetensors", "error_scale.safetensors", "history.json", "rows.npz", "run.json", "MODEL_CARD.md")
PACKAGES = ("numpy", "numba", "h5py", "torch", "skorch", "scikit-learn", "scipy")


@dataclass(frozen=True)
class Run:
    """A trained model and what is known about how it came to be."""

    folder: Path
    regressor: FluxRegressor
    config: Config
    parms: TrainParms
    rows: dict[str, NDArray[np.uint64]]
    """Keys (see `row_keys`) of the rows of each part: "train", "valid", "test"."""
    groups: frozenset[str]
    """Families (`sim_id`) that the training rows come from."""

    def has_seen(self, data: Any, parts: tuple[str, ...] = ("train", "valid")) -> NDArray[np.bool_]:
        """Whether each row ``(n,)`` of a data set is one of the run's parts."""
        keys = [self.rows[part] for part in parts if part in self.rows]
        return np.isin(row_keys(data.data, data.target), np.concatenate(keys) if keys else [])

    def role_of(self, groups: NDArray[np.str_]) -> NDArray[np.str_]:
        """What the run knows of rows it was not trained on: other rows of their families, or none."""
        return np.where(np.isin(groups, sorted(self.groups)), "held out", "unseen family")


def row_keys(data: NDArray[np.float32], target: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Return a number for each row that tells whether two files hold the same simulation.

    Parameters
    ----------
    data : ndarray, shape (n, 48)
        Inputs in 1/cm^3 times the run's `target_scale`; only the initial state, the first 24, counts, so that Box3D
        may be computed anew.
    target : ndarray, shape (n, 24)
        Targets in the same unit.

    Returns
    -------
    ndarray of uint64, shape (n,)
        A random linear function of the bits of the 48 numbers, modulo 2^64.
    """
    factors = np.random.default_rng(0x5EED).integers(2**63, size=48, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    numbers = np.concatenate([data[:, :24], target], axis=1).astype(np.float32, copy=False)
    return (np.ascontiguousarray(numbers).view(np.uint32).astype(np.uint64) * factors).sum(axis=1, dtype=np.uint64)


def data_fingerprint(data: Any) -> str:
    """Return a digest of the rows of a data set, their order included."""
    digest = hashlib.blake2b(digest_size=16)
    for table in (data.data, data.target):
        digest.update(np.ascontiguousarray(table).view(np.uint8).reshape(-1).data)
    for labels in (data.groups, data.dirname):
        digest.update("\n".join(labels.tolist()).encode())
    return digest.hexdigest()


def clear_run(folder: Path) -> None:
    """Remove what an earlier run of the same name left, so that nothing of it is taken for this one's."""
    for name in (*RESULTS, "state.pt", "last.safetensors", "history.jsonl", "history.csv"):
        (folder / name).unlink(missing_ok=True)


def save_run(
    folder: Path, regressor: FluxRegressor, rows: dict[str, NDArray[np.uint64]], about: dict[str, Any]
) -> None:
    """Write a finished run; `about` goes to ``run.json``."""
    save_weights(regressor, folder / "weights.safetensors")
    if regressor.error_scale_ is not None:
        with Outputs() as outputs:
            regressor.error_scale_.save(outputs.path(folder / "error_scale.safetensors"))
    save_history(regressor, folder / "history.json")
    history = plain_history(regressor.history)
    write_text(folder / "history.jsonl", "".join(json.dumps(row) + "\n" for row in history))
    write_history_csv(history, folder / "history.csv")
    with Outputs() as outputs, outputs.path(folder / "rows.npz").open("wb") as file:
        np.savez(file, **rows)  # type: ignore[arg-type]
    save_about(folder, {**about, **{f"{part}_rows": len(keys) for part, keys in rows.items()}})


def save_about(folder: Path, about: dict[str, Any]) -> None:
    """Write ``run.json``: `about` and the versions of the packages."""
    write_text(folder / "run.json", json.dumps({**about, "versions": installed_versions()}, indent=2) + "\n")


def installed_versions() -> dict[str, str]:
    """Versions of this package, of Python and of what the results depend on."""
    versions = {"rheidae": rheidae.__version__, "python": platform.python_version()}
    return versions | {name: metadata.version(name) for name in PACKAGES}


def read_history(folder: Path) -> list[dict[str, Any]]:
    """Return what a run has recorded of each epoch so far; it may still be running.

    Raises
    ------
    RunError
        If no epoch is finished.
    """
    path = folder / "history.jsonl"
    if not path.is_file():
        raise RunError(f"{folder}: no history.jsonl; give a run folder with one finished epoch at least")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def load_state(folder: Path) -> dict[str, Any]:
    """Read the last checkpoint of a run; the file is data alone, and no code of it is run.

    Raises
    ------
    RunError
        If there is none, or it is not what `RunCheckpoint` writes.
    """
    path = folder / "state.pt"
    if not path.is_file():
        raise RunError(f"{folder}: no checkpoint to go on from (no state.pt); start the run anew with its --run-id")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        raise RunError(f"{path}: is damaged, or holds more than data: {error}") from error
    if not isinstance(state, dict) or "epoch" not in state:
        raise RunError(f"{path}: is not a checkpoint of a run")
    return state


# What may differ when a run goes on: where things lie, and how often it saves.
_MAY_DIFFER = {
    "training.resume_from", "training.checkpoint_dir", "training.results_dir", "data.processed_path",
    "logging.save_every", "logging.tensorboard",
}  # fmt: skip


def check_same_run(folder: Path, config: Config, parms: TrainParms, fingerprint: str) -> None:
    """Compare configuration and data with those that a run was started with.

    Raises
    ------
    RunError
        Naming the keys that differ, with both values.
    """
    if not (folder / "run.json").is_file():
        raise RunError(f"{folder}: not a run folder (no run.json); give one that python -m rheidae.train wrote")
    then_config = read_config(folder / "model.yaml", Config)
    then_parms = read_config(folder / "train_parms.yaml", TrainParms)
    pairs = ((then_config, config), (then_parms, parms))
    differences = []
    for then, now in pairs:
        before, after = _flat(then.model_dump()), _flat(now.model_dump())
        for key in sorted(set(before) | set(after)):
            if key not in _MAY_DIFFER and before.get(key) != after.get(key):
                differences.append(f"{key} (then {before.get(key)!r}, now {after.get(key)!r})")
    if differences:
        raise RunError(f"{folder}: a run goes on only with its own configuration; different: {', '.join(differences)}")
    about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    if about.get("data_fingerprint") != fingerprint:
        raise RunError(f"{folder}: the rows of data.processed_path are not those that the run was started with")


def _flat(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def save_config(folder: Path, config: Config, parms: TrainParms) -> None:
    """Write the resolved configuration of a run, before it starts."""
    for name, section in (("model.yaml", config), ("train_parms.yaml", parms)):
        write_text(folder / name, yaml.safe_dump(section.model_dump(), sort_keys=False))


def load_run(folder: str | Path) -> Run:
    """Open a run folder.

    Raises
    ------
    RunError
        If the folder does not hold a finished run, a file of it is missing or damaged, or its weights do not fit its
        configuration.
    """
    folder = Path(folder)
    weights = folder / "weights.safetensors"
    if not weights.is_file():
        raise RunError(f"{folder}: not a finished run (no weights.safetensors); train one: python -m rheidae.train")
    config = read_config(folder / "model.yaml", Config)
    parms = read_config(folder / "train_parms.yaml", TrainParms)
    regressor = build_regressor(config, parms).initialize()
    with _naming(weights, "does not fit the run's model.yaml, or is damaged"):
        regressor.module_.load_state_dict(load_file(weights))
    scale = folder / "error_scale.safetensors"
    if scale.is_file():
        with _naming(scale):
            regressor.error_scale_ = ErrorScale.load(scale)
    history = folder / "history.json"
    if history.is_file():
        with _naming(history):
            regressor.load_params(f_history=str(history))
    # Opened here: of a damaged file, NumPy does not close what it opened.
    with _naming(folder / "rows.npz"), (folder / "rows.npz").open("rb") as archive, np.load(archive) as file:
        rows = {part: file[part] for part in file.files}
    with _naming(folder / "run.json"):
        groups = frozenset(json.loads((folder / "run.json").read_text(encoding="utf-8"))["groups"])
    return Run(folder, regressor, config, parms, rows, groups)


@contextmanager
def _naming(path: Path, what: str = "is missing or damaged") -> Iterator[None]:
    """Turn what readers of several formats raise into `RunError` that names the file."""
    try:
        yield
    except (
        OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError, SafetensorError, zipfile.BadZipFile
    ) as error:  # fmt: skip
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RunError(f"{path}: {what} ({reason}); fetch the run folder again, or train anew") from error
