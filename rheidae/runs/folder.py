"""Run folders: what a training run leaves behind, and how it is opened again.

``checkpoints/<run-id>/`` holds ``model.yaml`` and ``train_parms.yaml`` (resolved), ``run.json`` (status, versions,
seed, fingerprint of the data; written last, with the SHA-256 of all that makes up the model), ``history.json``,
``.jsonl`` (a line per epoch as it goes) and ``.csv``, ``state.pt`` (all that is needed to go on exactly; tensors and
plain data alone), ``last.safetensors`` (its weights) and, once finished, ``weights.safetensors`` (the best epoch's),
``error_scale.safetensors`` (how far off it may be), ``rows.npz`` (which rows it was trained on) and ``MODEL_CARD.md``
(see `rheidae.runs.modelcard`).
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import pickle
import platform
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors

import rheidae
from rheidae.config import Config, TrainParms, read_config
from rheidae.estimator.callbacks import save_history, save_weights
from rheidae.estimator.callbacks.saving import plain_history, write_history_csv
from rheidae.estimator.regressor import FluxRegressor
from rheidae.estimator.resuming import NOT_A_STATE, STATE_FORMAT
from rheidae.estimator.uncertainty import ErrorScale
from rheidae.exceptions import RunError
from rheidae.runs.build import build_regressor
from rheidae.runs.files import DIGESTED, FILES
from rheidae.scoring.splits import row_keys
from rheidae.system.archives import require_small
from rheidae.system.outputs import Outputs, make_folder, only_writer, sync, write_text

PARTS = ("train", "valid", "test")
"""Of the rows, in ``rows.npz``."""

COMPLETE = ("finished", "interrupted")
"""Status of a run that can be opened."""

PACKAGES = ("numpy", "numba", "h5py", "torch", "skorch", "scikit-learn", "scipy")


@dataclass(frozen=True)
class Run:
    """A trained model and what is known about how it came to be."""

    folder: Path
    regressor: FluxRegressor
    config: Config
    parms: TrainParms
    rows: dict[str, NDArray[np.uint64]]
    """Keys (see `rheidae.scoring.splits.row_keys`) of the rows of each part: "train", "valid", "test"."""
    groups: frozenset[str]
    """Families (`sim_id`) that the training rows come from."""
    feature_names: tuple[str, ...] = ()
    """Names of the columns of X, in order."""
    target_names: tuple[str, ...] = ()
    """Those of y, and of what `regressor` predicts."""

    def has_seen(self, data: Any, parts: tuple[str, ...] = ("train", "valid")) -> NDArray[np.bool_]:
        """Whether each row ``(n,)`` of a data set is one of the run's parts."""
        keys = [self.rows[part] for part in parts if part in self.rows]
        return np.isin(row_keys(data.data, data.target), np.concatenate(keys) if keys else [])

    def role_of(self, groups: NDArray[np.str_]) -> NDArray[np.str_]:
        """What the run knows of rows it was not trained on: other rows of their families, or none."""
        return np.where(np.isin(groups, sorted(self.groups)), "held out", "unseen family")


def data_fingerprint(data: Any) -> str:
    """Return a digest of the rows of a data set, their order included."""
    digest = hashlib.blake2b(digest_size=16)
    for table in (data.data, data.target):
        digest.update(np.ascontiguousarray(table).view(np.uint8).reshape(-1).data)
    for labels in (data.groups, data.dirname):
        digest.update("\n".join(labels.tolist()).encode())
    return digest.hexdigest()


def require_run_id(run_id: str) -> None:
    """Raise `RunError` unless an id is the name of a folder."""
    if run_id in ("", ".", "..") or any(mark in run_id for mark in "/\\\0"):
        raise RunError(
            f"run id {run_id!r}: must be the name of a folder, without others: those go into training.checkpoint_dir"
        )


def new_folder(parent: Path) -> Path:
    """Make a folder for one run, whose name is the time and that no other run has."""
    make_folder(parent)
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    for number in itertools.count(1):
        folder = parent / (stamp if number == 1 else f"{stamp}-{number}")
        with suppress(FileExistsError):
            folder.mkdir()
            break
    sync(parent)
    return folder


@contextmanager
def own_folder(folder: Path) -> Iterator[None]:
    """Be the only run that writes into a folder, and let it be a run's.

    Raises `OutputError` if another run is writing there, `RunError` if other things than a run lie there.
    """
    with only_writer(folder) as lock:
        others = sorted(path.name for path in folder.iterdir() if path.name != lock.name)
        if others and "run_id" not in _about(folder):
            raise RunError(f"{folder}: holds {others[0]!r} and no run; give another --run-id")
        yield


def clear_run(folder: Path) -> None:
    """Remove what an earlier run of the same name left, so that nothing of it is taken for this one's."""
    for name in FILES:
        if name != "run.json":
            (folder / name).unlink(missing_ok=True)


def save_run(folder: Path, regressor: FluxRegressor, rows: dict[str, NDArray[np.uint64]]) -> None:
    """Write what a finished run is made of; `save_about` has to follow."""
    save_weights(regressor, folder / "weights.safetensors")
    save_history(regressor, folder / "history.json")
    history = plain_history(regressor.history)
    write_text(folder / "history.jsonl", "".join(json.dumps(row) + "\n" for row in history))
    write_history_csv(history, folder / "history.csv")
    table = io.BytesIO()
    np.savez(table, **rows)  # type: ignore[arg-type]
    with Outputs() as outputs:
        outputs.write(folder / "rows.npz", table.getvalue())
        if regressor.error_scale_ is not None:
            outputs.write(folder / "error_scale.safetensors", regressor.error_scale_.to_bytes())


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each of the `DIGESTED` files that are there."""
    paths = [folder / name for name in DIGESTED if (folder / name).is_file()]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def save_about(folder: Path, about: dict[str, Any]) -> None:
    """Write ``run.json``: `about` and the versions of the packages."""
    write_text(folder / "run.json", json.dumps({**about, "versions": installed_versions()}, indent=2) + "\n")


def installed_versions() -> dict[str, str]:
    """Versions of this package, of Python and of what the results depend on."""
    versions = {"rheidae": rheidae.__version__, "python": platform.python_version()}
    return versions | {name: metadata.version(name) for name in PACKAGES}


def read_history(folder: Path) -> list[dict[str, Any]]:
    """Return what a run has recorded of each epoch so far; it may still be running.

    Raises `RunError` if no epoch is finished.
    """
    path = folder / "history.jsonl"
    rows: list[dict[str, Any]] = []
    if path.is_file():
        with _naming(path):
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            if not all(isinstance(row, dict) and type(row.get("epoch")) is int for row in rows):
                raise ValueError("a line is no epoch")
    if not rows:
        raise RunError(f"{folder}: no history.jsonl; give a run folder with one finished epoch at least")
    return rows


def load_state(folder: Path) -> dict[str, Any]:
    """Read the last checkpoint of a run; the file is data alone, and no code of it is run.

    Raises `RunError` if there is none, or it is not what `RunCheckpoint` writes.
    """
    path = folder / "state.pt"
    if not path.is_file():
        raise RunError(f"{folder}: no checkpoint to go on from (no state.pt); start the run anew with its --run-id")
    try:
        # torch passes over the checksums.
        with zipfile.ZipFile(path) as archive:
            require_small(archive)
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"checksum of {damaged}")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (*NOT_A_STATE, pickle.UnpicklingError, EOFError, zipfile.BadZipFile) as error:
        raise RunError(f"{path}: is damaged, or holds more than data: {error}") from error
    known = isinstance(state, dict) and state.get("format") == STATE_FORMAT
    history = state.get("history") if known else None
    if not isinstance(history, list) or not history or state.get("epoch") != len(history):
        raise RunError(f"{path}: is not a checkpoint of a run; start it anew with its --run-id")
    return state


# What may differ when a run goes on: where things lie, and how often it saves.
_MAY_DIFFER = {
    "training.resume_from", "training.checkpoint_dir", "training.results_dir", "data.processed_path",
    "logging.save_every", "logging.tensorboard",
}  # fmt: skip


def require_run(folder: Path) -> dict[str, Any]:
    """Return what ``run.json`` holds, or raise `RunError` if there is none."""
    about = _about(folder)
    if "run_id" not in about:
        raise RunError(f"{folder}: not a run folder (no run.json); give one that python -m rheidae.train wrote")
    return about


def _about(folder: Path) -> dict[str, Any]:
    """What ``run.json`` holds; nothing if it isn't there."""
    path = folder / "run.json"
    if not path.is_file():
        return {}
    with _naming(path):
        about = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(about, dict):
            raise ValueError("not a mapping")
    return about


def check_same_run(folder: Path, config: Config, parms: TrainParms, fingerprint: str) -> None:
    """Compare configuration and data with those that a run was started with.

    Raises `RunError` that names the keys that differ, with both values.
    """
    about = require_run(folder)
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
    """Open a run folder, as ``rheidae train`` leaves it.

    Parameters
    ----------
    folder : path
        Such as ``checkpoints/mine``.

    Returns
    -------
    Run
        ``run.regressor`` predicts; ``run.feature_names`` and ``run.target_names`` say what its columns are;
        ``run.config`` and ``run.parms`` are what it was trained with.

    Examples
    --------
    >>> from rheidae import load_run
    >>> model = load_run("checkpoints/mine").regressor  # doctest: +SKIP
    >>> F_final = model.predict(F_init)                 # doctest: +SKIP

    Raises
    ------
    RunError
        If the folder does not hold a finished (or interrupted) run, a file of it is missing, or differs by a bit from
        what the run wrote.
    """
    folder = Path(folder)
    about = _about(folder)
    if about.get("status") not in COMPLETE:
        raise RunError(
            f"{folder}: not a finished run ({about.get('status', 'no run.json')}); train one, or go on with it: "
            "python -m rheidae.train [--resume-from RUN]"
        )
    content = _checked(folder, about)
    config = read_config(folder / "model.yaml", Config)
    parms = read_config(folder / "train_parms.yaml", TrainParms)
    regressor = build_regressor(config, parms).initialize_to_predict()
    with _naming(folder / "weights.safetensors", "does not fit the run's model.yaml"):
        regressor.module_.load_state_dict(load_safetensors(content["weights.safetensors"]))
    if "error_scale.safetensors" in content:
        with _naming(folder / "error_scale.safetensors"):
            regressor.error_scale_ = ErrorScale.from_bytes(content["error_scale.safetensors"])
    with _naming(folder / "history.json"):
        regressor.load_params(f_history=io.StringIO(content["history.json"].decode()))
    with _naming(folder / "rows.npz"):
        rows = _read_rows(content["rows.npz"])
    with _naming(folder / "run.json"):
        groups = frozenset(_strings(about, "groups"))
        names = [tuple(_strings(about, part)) for part in ("feature_names", "target_names")]
        if [len(part) for part in names] != [48, 24] or not isinstance(about.get("data"), str):
            raise ValueError("feature_names, target_names and data are not those of a run")
    regressor.n_features_in_, regressor.n_outputs_ = map(len, names)
    return Run(folder, regressor, config, parms, rows, groups, *names)


def _strings(about: dict[str, Any], name: str) -> list[str]:
    strings = about[name]
    if not isinstance(strings, list) or not all(isinstance(text, str) for text in strings):
        raise ValueError(f"{name} is not a list of strings")
    return strings


def _read_rows(content: bytes) -> dict[str, NDArray[np.uint64]]:
    """Keys of the rows of each part; their number is that of the bytes, whatever the headers say."""
    rows = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        require_small(archive)
        for name in archive.namelist():
            member = io.BytesIO(archive.read(name))
            if np.lib.format.read_magic(member) != (1, 0):
                raise ValueError(f"{name}: another version of NumPy's format")
            shape, _, dtype = np.lib.format.read_array_header_1_0(member)
            keys = np.frombuffer(member.read(), dtype=np.uint64)
            if dtype != np.uint64 or shape != keys.shape:
                raise ValueError(f"{name}: {dtype} of shape {shape}; expected {len(keys)} keys of rows")
            rows[name.removesuffix(".npy")] = keys
    if set(rows) != set(PARTS):
        raise ValueError(f"holds {', '.join(rows) or 'nothing'}; expected {', '.join(PARTS)}")
    return rows


def _checked(folder: Path, about: dict[str, Any]) -> dict[str, bytes]:
    """Contents of the `DIGESTED` files, if they are those that the run wrote."""
    with _naming(folder / "run.json"):
        known = dict(about["digests"])
    content = {}
    for name in DIGESTED:
        path = folder / name
        if name not in known and not path.exists():
            continue
        with _naming(path):
            content[name] = path.read_bytes()
            if hashlib.sha256(content[name]).hexdigest() != known.get(name):
                raise ValueError("not what the run wrote")
    return content


@contextmanager
def _naming(path: Path, what: str = "is missing or damaged") -> Iterator[None]:
    """Turn what readers of several formats raise into `RunError` that names the file."""
    try:
        yield
    except (
        OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError, EOFError, MemoryError,
        SafetensorError, zipfile.BadZipFile, pickle.UnpicklingError,
    ) as error:  # fmt: skip
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RunError(f"{path}: {what} ({reason}); fetch the run folder again, or train anew") from error
