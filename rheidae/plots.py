"""The figures that training and evaluation leave behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rheidae.files import Outputs


@contextmanager
def _figure(path: Path, width: float = 6.0, height: float = 4.5) -> Iterator[Axes]:
    """Axes of a figure that is saved as PNG when the block ends; needs no display."""
    figure = Figure(figsize=(width, height), layout="constrained")
    yield figure.subplots()
    with Outputs() as outputs:
        figure.savefig(outputs.path(path), format="png", dpi=150)


def loss_curve(history: Any, path: Path) -> None:
    """Training and validation loss over epochs, from a `skorch.history.History`, to a PNG file."""
    with _figure(path) as axes:
        epochs = history[:, "epoch"]
        for name, label in (("train_loss", "training"), ("valid_loss", "validation")):
            if name in history[0]:
                axes.semilogy(epochs, history[:, name], label=label)
        axes.set(xlabel="epoch", ylabel="weighted loss", title="Loss")
        axes.legend()
        axes.grid(alpha=0.3)


def errors(rows: dict[str, NDArray[Any]], path: Path) -> None:
    """Error of the model over Box3D's, a point per row and a color per group, to a PNG file.

    Parameters
    ----------
    rows : dict of ndarray
        "group", "box3d_error" and "model_error", as `rheidae.evaluate.evaluate` returns them.
    path : Path
        Where to write.
    """
    with _figure(path, 5.5, 5.0) as axes:
        for group in np.unique(rows["group"]):
            chosen = rows["group"] == group
            axes.loglog(
                rows["box3d_error"][chosen],
                rows["model_error"][chosen],
                "o",
                ms=4,
                alpha=0.7,
                mew=0,
                label=group,
            )
        both = np.concatenate([rows["box3d_error"], rows["model_error"]])
        both = both[both > 0]
        ends = [both.min(), both.max()]
        axes.loglog(ends, ends, "k-", lw=1, label="as good as Box3D")
        axes.set(
            xlabel="error of Box3D",
            ylabel="error of the model",
            title="Error over the total density, unseen rows",
        )
        axes.legend()
        axes.grid(alpha=0.3)
