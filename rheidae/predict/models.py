"""What can be named as ``--model``, as one kind of function: from physical rows to all that is known of their end."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import rheidae
from rheidae.exceptions import ConfigError
from rheidae.export.endings import ENDINGS
from rheidae.mixing.physical import keep_physical
from rheidae.mixing.schemes import SCHEMES, mix
from rheidae.mixing.transition import transition_matrix

Array = NDArray[np.float64]


class Answer(NamedTuple):
    """Of physical rows: final states and their standard deviations ``(n, 6, 4)``, and what else the model has.

    ``outside (n,)``: rows outside of those that it was trained on. ``transition (n, 2, 6, 6)``: matrices of densities
    and of fluxes, species out and in.
    """

    F: Array
    std: Array | None = None
    outside: NDArray[np.bool_] | None = None
    transition: Array | None = None


class Model(NamedTuple):
    """A model that is open: from physical rows ``(n, 6, 4)`` to an `Answer`, on one thread.

    `shares`: whether several threads may call it at once.
    """

    answer: Callable[[Array], Answer]
    shares: bool = True


def open_model(model: str | Path, full: bool = False) -> Model:
    """Open a scheme, "pretrained", a run folder or an exported file; see `rheidae.predict.predict_file`.

    Raises `ConfigError`, `RunError` or `ExportError` if there is no such model, it cannot be opened, or has no full
    outputs.
    """
    name = str(model)
    if name in SCHEMES:
        return Model(partial(_by_scheme, name, full))
    if name == "pretrained":
        return _of_regressor(rheidae.pretrained(), full)
    path = Path(model)
    if path.suffix in ENDINGS and not path.is_dir():
        from rheidae.export.opened import load_exported

        exported = load_exported(path)
        if exported.inputs != ("F_init",):
            raise ConfigError(f"{path}: takes Box3D's answer too; export the model with Box3D inside")
        if full and "transition" not in exported.outputs:
            raise ConfigError(f"{path}: gives final states alone; export the model with --full")
        # torch's threads are those of the process.
        return Model(partial(_by_exported, exported), path.suffix in (".onnx", ".o"))
    if not path.is_dir():
        raise ConfigError(
            f"--model {name}: no such run folder; give one, an exported file ({', '.join(ENDINGS)}), pretrained, or a "
            f"scheme: {', '.join(SCHEMES)}"
        )
    from rheidae.runs.folder import load_run

    return _of_regressor(load_run(path).regressor, full)


def _by_scheme(name: str, full: bool, F: Array) -> Answer:
    mixed = mix(F, name, threads=1)
    # Box3D as published may leave the physical states.
    keep_physical(F, mixed, 1)
    matrices = np.stack(transition_matrix(F, name, physical=True, threads=1), axis=1) if full else None
    return Answer(mixed, transition=matrices)


def _by_exported(exported: Any, F: Array) -> Answer:
    found = exported.predict_all(F)
    return Answer(found["F_final"], found.get("std"), found.get("outside"), found.get("transition"))


def _of_regressor(regressor: Any, full: bool) -> Model:
    matrices = None
    if full:
        from rheidae.export.graph import transitions

        matrices = transitions(regressor)
    return Model(partial(_by_regressor, regressor, matrices))


def _by_regressor(regressor: Any, matrices: Callable[[Array], Array] | None, F: Array) -> Answer:
    transition = None if matrices is None else matrices(F)
    if regressor.error_scale_ is None:
        return Answer(np.asarray(regressor.predict(F), dtype=np.float64), transition=transition)
    found = regressor.predict_all(F)
    mixed, std = (np.asarray(found[name], dtype=np.float64) for name in ("F_final", "std"))
    return Answer(mixed, std, found["outside"], transition)
