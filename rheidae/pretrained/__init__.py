"""A model that is ready: the default one, trained on the sample of the package.

`pretrained` opens it; ``python -m rheidae.pretrained rheidae/pretrained/model`` makes it anew, bit for bit on the same
machine. That folder is a run's, as ``rheidae train`` leaves it (weights, card), and ``model.onnx``.
"""

from __future__ import annotations

import json
import tempfile
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rheidae.config import Config, TrainParms
    from rheidae.estimator.regressor import FluxRegressor
    from rheidae.runs.folder import Run

NAME = "pretrained"
ONNX = "model.onnx"
HELD_OUT = ("mutau", "pairs", "published", "three_d")
"""Families that it was not trained on, and that its card scores: those whose mu and tau differ, where the network's
part fades, and the published and coarse cases."""


def pretrained() -> FluxRegressor:
    """Return the default model, trained on the sample of the package.

    Returns
    -------
    FluxRegressor
        A fitted one: ``pretrained().predict(F)`` of initial four-fluxes ``(n, 6, 4)`` or ``(n, 24)``, in 1/cm^3 or any
        other one unit, gives the settled ones. Trained on all families of the sample but `HELD_OUT`; the rest is in
        `card`.

    Examples
    --------
    >>> import numpy as np
    >>> import rheidae
    >>> F = np.zeros((1, 6, 4))
    >>> F[0, :, 3] = [1.0, 0.3, 0.3, 0.9, 0.3, 0.3]
    >>> F[0, 3, 2] = 0.4
    >>> rheidae.pretrained().predict(F)[0, :, 3].sum().round(6)
    np.float64(3.1)
    """
    return pretrained_run().regressor


def pretrained_run() -> Run:
    """Return the model with its configuration and the keys of its rows, as `rheidae.load_run` does."""
    from rheidae.runs.folder import load_run

    with resources.as_file(resources.files(__name__) / "model") as folder:
        return load_run(folder)


def card() -> str:
    """Return the model card: what it was trained on, how good it is, where it should not be used."""
    return (resources.files(__name__) / "model" / "MODEL_CARD.md").read_text(encoding="utf-8")


def write_onnx(path: str | Path) -> dict[str, Any]:
    """Write the model as the ONNX file that ships, with its metadata beside it under the same name with ``.json``.

    Returns the metadata; raises `ExportError` if the name does not end in ``.onnx``.
    """
    from rheidae.export.formats import require_suffix
    from rheidae.system.outputs import Outputs

    require_suffix(path, "onnx")
    folder = resources.files(__name__) / "model"
    about = (folder / f"{ONNX}.json").read_bytes()
    with Outputs() as outputs:
        outputs.write(Path(path), (folder / ONNX).read_bytes())
        outputs.write(Path(f"{path}.json"), about)
    metadata: dict[str, Any] = json.loads(about)
    return metadata


def make(folder: str | Path) -> Path:
    """Train the model on the sample of the package and write it as a run folder, with its ONNX file; return the folder.

    Files of an earlier one are replaced. It says nothing of when and where it was made, so that a second one is the
    same.
    """
    from rheidae.config import Config, TrainParms, read_config
    from rheidae.datasets import preprocess_sample
    from rheidae.export.model import export_run
    from rheidae.runs.folder import load_run
    from rheidae.runs.train import train

    folder = Path(folder)
    with (
        tempfile.TemporaryDirectory() as temporary,
        resources.as_file(resources.files("rheidae") / "defaults") as defaults,
    ):
        config = read_config(defaults / "model.yaml", Config)
        parms = read_config(defaults / "train_parms.yaml", TrainParms)
        places = {"checkpoint_dir": temporary, "results_dir": temporary, "device": "cpu"}
        rows = config.data.model_copy(update={"holdout_groups": list(HELD_OUT), "test_split": 0.0})
        known = config.model_copy(update={"data": rows})
        here = rows.model_copy(update={"processed_path": str(preprocess_sample(Path(temporary, "sample")))})
        used = known.model_copy(update={"data": here, "training": config.training.model_copy(update=places)})
        _copy(train(used, parms, NAME), folder, known, parms)
    export_run(load_run(folder), folder / ONNX)
    return folder


def _copy(run: Path, folder: Path, config: Config, parms: TrainParms) -> None:
    """A finished run without times and places."""
    from rheidae.runs.folder import DIGESTED, digests, save_config
    from rheidae.system.outputs import Outputs, make_folder, write_text

    make_folder(folder)
    with Outputs() as outputs:
        for name in DIGESTED:
            if (run / name).exists() and name not in ("model.yaml", "train_parms.yaml", "history.json"):
                outputs.write(folder / name, (run / name).read_bytes())
    about = json.loads((run / "run.json").read_text(encoding="utf-8"))
    card = (run / "MODEL_CARD.md").read_text(encoding="utf-8")
    write_text(folder / "MODEL_CARD.md", card.replace(f", {about['seconds']:.0f} s, seed", ", seed"))
    write_text(folder / "history.json", "[]")
    save_config(folder, config, parms)
    about.pop("seconds")
    about |= {"data": Path(config.data.processed_path).name, "digests": digests(folder)}
    write_text(folder / "run.json", json.dumps(about, indent=2) + "\n")
