"""Run folders: what a training run leaves behind, and how it is opened again.

``checkpoints/<run-id>/`` holds ``model.yaml`` and ``train_parms.yaml`` (resolved), ``weights.safetensors``,
``history.json``, ``rows.npz`` (which rows it was trained on) and ``run.json`` (versions, data, seed).
"""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

import rheidae
from rheidae.callbacks import save_history, save_weights
from rheidae.config import Config, TrainParms, read_config
from rheidae.exceptions import RunError
from rheidae.files import Outputs, write_text
from rheidae.regressor import FluxRegressor

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


def save_run(
    folder: Path,
    regressor: FluxRegressor,
    config: Config,
    parms: TrainParms,
    rows: dict[str, NDArray[np.uint64]],
    about: dict[str, Any],
) -> None:
    """Write a finished run; `about` is added to ``run.json``."""
    save_weights(regressor, folder / "weights.safetensors")
    save_history(regressor, folder / "history.json")
    with Outputs() as outputs, outputs.path(folder / "rows.npz").open("wb") as file:
        np.savez(file, **rows)  # type: ignore[arg-type]
    versions = {"rheidae": rheidae.__version__, "python": platform.python_version()}
    versions |= {name: metadata.version(name) for name in PACKAGES}
    counts = {f"{part}_rows": len(keys) for part, keys in rows.items()}
    write_text(folder / "run.json", json.dumps({**about, **counts, "versions": versions}, indent=2) + "\n")


def save_config(folder: Path, config: Config, parms: TrainParms) -> None:
    """Write the resolved configuration of a run, before it starts."""
    for name, section in (("model.yaml", config), ("train_parms.yaml", parms)):
        write_text(folder / name, yaml.safe_dump(section.model_dump(), sort_keys=False))


def load_run(folder: str | Path) -> Run:
    """Open a run folder.

    Raises
    ------
    RunError
        If the folder does not hold a finished run, or its weights do not fit its configuration.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from rheidae.train import build_regressor

    folder = Path(folder)
    weights = folder / "weights.safetensors"
    if not weights.is_file():
        raise RunError(f"{folder}: not a finished run (no weights.safetensors); train one: python -m rheidae.train")
    config = read_config(folder / "model.yaml", Config)
    parms = read_config(folder / "train_parms.yaml", TrainParms)
    regressor = build_regressor(config, parms).initialize()
    try:
        regressor.module_.load_state_dict(load_file(weights))
    except (RuntimeError, SafetensorError) as error:
        raise RunError(f"{weights}: does not fit the run's model.yaml, or is damaged: {error}") from error
    history = folder / "history.json"
    if history.is_file():
        regressor.load_params(f_history=str(history))
    with np.load(folder / "rows.npz") as file:
        rows = {part: file[part] for part in file.files}
    about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return Run(folder, regressor, config, parms, rows, frozenset(about["groups"]))
