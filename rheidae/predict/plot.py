"""A slice of what was predicted, as a figure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from rheidae.fourflux import T
from rheidae.predict.stream import FLAGS
from rheidae.scoring.plots import COLORS, saved_figure
from rheidae.system.h5 import open_h5

FIRST = {3: (0, 1), 4: (0, 1), 6: (0, 3)}
"""Electron neutrinos and antineutrinos among so many species."""

NAMES = (r"$\nu_e$", r"$\bar\nu_e$")


def plot_slice(path: str | Path, picture: str | Path) -> None:
    """Draw a slice of a file that `rheidae.predict.predict_file` wrote, to a PNG file.

    Of a grid, the plane through the middle of all axes but the first two is shown; of a row of cells, curves. Densities
    of electron neutrinos and antineutrinos before and after, their change, the growth rate, and which cells are
    flagged. Raises `DataError` if the file cannot be read.
    """
    with open_h5(path) as file:
        shape = file["flag"].shape
        place = (*(slice(None) for _ in shape[:2]), *(size // 2 for size in shape[2:]))
        before, after = _densities(file, place)
        rate, flag = file["growth_rate"][place], file["flag"][place]
        model, source = (str(file.attrs[name]) for name in ("model", "source"))
        unit = float(json.loads(file.attrs["layout"])["unit"])
    where = "".join(f", {'xyz'[axis] if axis < 3 else axis} at {index}" for axis, index in enumerate(place) if axis > 1)
    caption = (
        f"{source} by {model}{where}. Densities in the unit of the file{'' if unit == 1 else f' ({unit:g}/cm$^3$)'}; "
        "cells that are not physical are left out."
    )
    draw = _curves if len(shape) < 2 else _maps
    with saved_figure(Path(picture), 13.0, 6.0, caption) as figure:
        draw(figure, before, after, np.asarray(rate, dtype=np.float64), flag)


def _densities(file: h5py.File, place: tuple[Any, ...]) -> tuple[Any, Any]:
    """Of electron neutrinos and antineutrinos ``(2, ...)``, before and after."""
    layout = json.loads(file.attrs["layout"])
    if layout["four_flux"] is None:
        names = [layout["density"][index] for index in FIRST[layout["species"]]]
        parts = [[file[f"{group}/{name}"][place] for name in names] for group in ("mixed", "change")]
    else:
        parts = [[file[f"{group}/F"][(*place, index, T)] for index in FIRST[6]] for group in ("mixed", "change")]
    after, change = (np.asarray(part, dtype=np.float64) for part in parts)
    return after - change, after


def _maps(figure: Figure, before: Any, after: Any, rate: Any, flag: Any) -> None:
    axes = figure.subplots(2, 4, sharex=True, sharey=True)
    for row, name in enumerate(NAMES):
        both = np.concatenate([before[row], after[row]])
        top = np.nanmax(both, initial=0.0) or 1.0
        change = after[row] - before[row]
        reach = np.nanmax(np.abs(change), initial=0.0) or 1.0
        for column, (title, values, options) in enumerate(
            (
                (f"{name} before", before[row], {"vmin": 0, "vmax": top}),
                (f"{name} after", after[row], {"vmin": 0, "vmax": top}),
                (f"{name} change", change, {"vmin": -reach, "vmax": reach, "cmap": "RdBu_r"}),
            )
        ):
            _map(figure, axes[row, column], title, values, options)
    _map(figure, axes[0, 3], "growth rate, 1/s", rate, {"vmin": 0, "cmap": "inferno"})
    # The highest bit of a cell's flags, 0 for none.
    bits = np.zeros(np.shape(flag), dtype=int)
    for number, bit in enumerate(FLAGS.values(), 1):
        bits[np.asarray(flag) & bit > 0] = number
    colors = ListedColormap(["#EEEEEE", *COLORS[: len(FLAGS)]])
    image = axes[1, 3].imshow(bits.T, origin="lower", cmap=colors, vmin=-0.5, vmax=len(FLAGS) + 0.5, aspect="auto")
    axes[1, 3].set_title("flag")
    bar = figure.colorbar(image, ax=axes[1, 3], ticks=range(len(FLAGS) + 1))
    bar.set_ticklabels(["none", *(name.replace(" to stay", "\nto stay").replace(" the", "\nthe") for name in FLAGS)])
    bar.ax.tick_params(labelsize="small")
    for one in axes[1]:
        one.set_xlabel("cell, first axis")
    for one in axes[:, 0]:
        one.set_ylabel("cell, second axis")


def _map(figure: Figure, axes: Axes, title: str, values: Any, options: dict[str, Any]) -> None:
    image = axes.imshow(np.asarray(values).T, origin="lower", aspect="auto", **options)
    axes.set_title(title)
    figure.colorbar(image, ax=axes)


def _curves(figure: Figure, before: Any, after: Any, rate: Any, flag: Any) -> None:
    left, middle, right = figure.subplots(1, 3)
    cells = np.arange(np.size(rate))
    for row, name in enumerate(NAMES):
        left.plot(cells, np.ravel(before[row]), "--", color=COLORS[row], label=f"{name} before")
        left.plot(cells, np.ravel(after[row]), color=COLORS[row], label=f"{name} after")
        middle.plot(cells, np.ravel(after[row] - before[row]), color=COLORS[row], label=name)
    right.plot(cells, np.ravel(rate), color=COLORS[6])
    marked = np.ravel(flag) > 0
    right.plot(cells[marked], np.zeros(marked.sum()), "x", color=COLORS[5], label="flagged")
    for axes, title in ((left, "density"), (middle, "change"), (right, "growth rate, 1/s")):
        axes.set_title(title)
        axes.set_xlabel("cell")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
