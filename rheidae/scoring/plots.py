"""Figures as PNG files, and the one that training leaves behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rheidae.system.outputs import Outputs


@contextmanager
def saved_figure(path: Path, width: float, height: float, dpi: int = 150) -> Iterator[Figure]:
    """A figure that is saved as PNG when the block ends; needs no display."""
    figure = Figure(figsize=(width, height), layout="constrained")
    yield figure
    with Outputs() as outputs:
        figure.savefig(outputs.path(path), format="png", dpi=dpi)


def loss_curve(history: Any, path: Path) -> None:
    """What happened over the epochs, to a PNG file.

    Parameters
    ----------
    history : sequence of dict
        A `skorch.history.History`, or the rows of ``history.json``. Panels: training and validation loss with Box3D's
        own as a line; every unweighted term; learning rate; the scheme's weights and the multipliers, if any.
    path : Path
        Where to write.
    """
    rows = list(history)
    names = [name for name in rows[0] if isinstance(rows[0][name], float)]
    known = ("train_loss", "valid_loss", "train_objective")
    terms = [name.removeprefix("train_") for name in names if name.startswith("train_") and name not in known]
    weights = [name for name in names if name.startswith(("weight_", "multiplier_"))]
    epochs = [row["epoch"] for row in rows]

    def curve(axes: Axes, name: str, **style: Any) -> None:
        if name in names:
            axes.plot(epochs, [row.get(name, np.nan) for row in rows], **style)

    with saved_figure(path, 11.0, 8.0) as figure:
        (losses, parts), (rates, scheme) = figure.subplots(2, 2, sharex=True)
        curve(losses, "train_loss", label="training")
        curve(losses, "valid_loss", label="validation")
        if "box3d_valid_loss" in names:
            baseline = rows[0]["box3d_valid_loss"]
            losses.axhline(baseline, color="k", lw=1, ls="--", label="Box3D, validation rows")
        losses.set(ylabel="loss, fixed weights", title="Loss", yscale="log")
        for index, name in enumerate(terms):
            curve(parts, f"train_{name}", color=f"C{index}", lw=1, label=name)
            curve(parts, f"valid_{name}", color=f"C{index}", lw=1, ls=":")
        # A term may be zero, such as `unphysical` on physical predictions.
        parts.set(title="Terms: training (line), validation (dotted)")
        parts.set_yscale("symlog", linthresh=1e-6)
        curve(rates, "lr", color="k", label="learning rate")
        rates.set(xlabel="epoch", ylabel="learning rate", title="Learning rate", yscale="log")
        for name in weights:
            curve(scheme, name, lw=1, label=name.replace("_", " ", 1))
        scheme.set(xlabel="epoch", title="Weights and multipliers" if weights else "Weights: fixed")
        if weights:
            scheme.set_yscale("symlog", linthresh=1e-3)
        for axes in (losses, parts, rates, scheme):
            axes.grid(alpha=0.3)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(fontsize="small")
