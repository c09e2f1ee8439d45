"""Figures as PNG files, and the one that training leaves behind."""

from __future__ import annotations

import io
import logging
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rheidae.system.outputs import Outputs

log = logging.getLogger(__name__)

COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
"""Of curves, told apart by colour-blind eyes too (Okabe and Ito, https://jfly.uni-koeln.de/color)."""


@contextmanager
def saved_figure(path: Path, width: float, height: float, caption: str = "", dpi: int = 150) -> Iterator[Figure]:
    """A figure that is saved as PNG when the block ends; needs no display, and no settings of the user's reach it.

    The caption goes below it, a legend of what is labelled above it, where it hides no point.
    """
    with style.context("default", after_reset=True):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        if caption:
            lines = textwrap.fill(caption, int(15 * width))
            figure.supxlabel(lines, x=0.01, ha="left", fontsize="small")
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=dpi)
        with Outputs() as outputs:
            outputs.write(path, picture.getvalue())


def drawn(draw: Callable[[Path], None], path: Path) -> bool:
    """Draw a figure of finished work; one that fails is a warning, since the work is saved without it."""
    try:
        draw(path)
    except Exception as error:
        log.warning("%s is not drawn (%s: %s)", path, type(error).__name__, error)
        return False
    return True


def legend_above(figure: Figure, axes: Axes) -> None:
    """Name what is labelled in the axes above the figure, once each."""
    handles, labels = axes.get_legend_handles_labels()
    named = dict(zip(labels, handles, strict=True))
    figure.legend(named.values(), named.keys(), loc="outside upper center", ncols=5, fontsize="small", frameon=False)


def loss_curve(history: Any, path: Path) -> None:
    """What happened over the epochs, to a PNG file.

    Parameters
    ----------
    history : sequence of dict
        A `skorch.history.History`, or the rows of ``history.json``. Panels: training and validation loss with Box3D's
        own as a line; every unweighted term; learning rate; the scheme's weights and the multipliers, if any. The
        epoch with the lowest validation loss is marked in each.
    path : Path
        Where to write.
    """
    rows = list(history)
    names = [name for name in rows[0] if isinstance(rows[0][name], float)]
    known = ("train_loss", "valid_loss", "train_objective")
    best = ("valid_loss_best", "train_loss_best")
    terms = [name.removeprefix("train_") for name in names if name.startswith("train_") and name not in (*known, *best)]
    weights = [name for name in names if name.startswith(("weight_", "multiplier_"))]
    epochs = [row["epoch"] for row in rows]

    def curve(axes: Axes, name: str, **style: Any) -> None:
        if name in names:
            axes.plot(epochs, [row.get(name, np.nan) for row in rows], **style)

    caption = (
        "Loss with the criterion's fixed weights, each term without a weight, and the learning rate, means over the "
        "rows of an epoch."
    )
    shape = (2, 2) if weights else (1, 3)
    with saved_figure(path, 11.0 if weights else 13.0, 8.0 if weights else 4.5, caption) as figure:
        losses, parts, rates, *scheme = figure.subplots(*shape, sharex=True).flat
        curve(losses, "train_loss", color=COLORS[0], label="training")
        curve(losses, "valid_loss", color=COLORS[1], label="validation")
        if "box3d_valid_loss" in names:
            baseline = rows[0]["box3d_valid_loss"]
            losses.axhline(baseline, color="k", lw=1, ls="--", label="Box3D, validation rows")
        losses.set(ylabel="loss, fixed weights", title="Loss", yscale="log")
        for index, name in enumerate(terms):
            color = COLORS[index % len(COLORS)]
            curve(parts, f"train_{name}", color=color, lw=1, label=name)
            curve(parts, f"valid_{name}", color=color, lw=1, ls=":")
        # A term may be zero, such as `unphysical` on physical predictions.
        parts.set(ylabel="term", title="Terms: training (line), validation (dotted)")
        parts.set_yscale("symlog", linthresh=1e-6)
        curve(rates, "lr", color="k", label="learning rate")
        rates.set(ylabel="learning rate", title="Learning rate", yscale="log")
        for axes in scheme:
            for index, name in enumerate(weights):
                curve(axes, name, lw=1, color=COLORS[index % len(COLORS)], label=name.replace("_", " ", 1))
            axes.set(ylabel="factor", title="Weights and multipliers")
            axes.set_yscale("symlog", linthresh=1e-3)
        for axes in (losses, parts, rates, *scheme):
            _mark_best(axes, epochs, [row.get("valid_loss", np.nan) for row in rows])
            axes.set_xlabel("epoch")
            axes.grid(alpha=0.3)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False)


def _mark_best(axes: Axes, epochs: list[int], losses: list[float]) -> None:
    """A line at the epoch whose weights predict unless ``load_best=False``."""
    if np.isfinite(losses).any():
        best = epochs[int(np.nanargmin(losses))]
        axes.axvline(best, color="0.5", lw=1, ls="-.", zorder=0, label=f"lowest validation loss, epoch {best}")
