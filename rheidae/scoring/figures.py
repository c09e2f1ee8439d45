"""The figures of an evaluation; each function draws one PNG file from scored rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from rheidae import fourflux
from rheidae.exceptions import RunError
from rheidae.mixing import schemes, sphere, survival
from rheidae.scoring.plots import drawn, legend_above, saved_figure
from rheidae.scoring.scores import CONFIDENCE, TITLES, Scored

_POINTS = 5000
# A bar of less leaves through the frame with its number: one small group is not to flatten all others.
_LOWEST_SKILL = -1.0

COLORS = {**{name: scheme.color for name, scheme in schemes.SCHEMES.items()}, "model": "#117733"}

_ERROR = "four-flux distance over the row's total density, mean over the six species"


FIGURES = ("errors", "species", "parity", "depth", "skill", "sphere")


def figure_files(folder: Path) -> list[Path]:
    """What `write_figures` writes into a folder.

    Raises
    ------
    RunError
        If there is a file in the folder's place.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder}: is a file; --figures takes a folder")
    return [folder / f"{name}.png" for name in FIGURES]


def write_figures(scored: Scored, report: dict[str, Any], folder: Path, sample: int | None = None) -> list[Path]:
    """Draw everything into a folder, which is made if it is not there.

    Parameters
    ----------
    scored : Scored
        Predictions of the rows that the report is on, or of some of them.
    report : dict
        What `rheidae.runs.report.report_on` says of them.
    folder : Path
        Where to.
    sample : int, optional
        Row of the data whose survival probability is drawn; by default one whose crossing has the median depth.

    Returns
    -------
    list of Path
        ``errors.png, species.png, parity.png, depth.png, skill.png, sphere.png``, but for those that could not be
        drawn, of which a warning says why.

    Raises
    ------
    RunError
        If the sample was not scored.
    """
    total = sum(entry["rows"] for entry in report["roles"])
    index = int(np.argsort(scored.depth)[len(scored.depth) // 2])
    if sample is not None:
        scored_at = np.flatnonzero(scored.row == sample)
        if not len(scored_at):
            raise RunError(
                f"row {sample} is not among the {total} that are scored, such as row {scored.row[0]}; "
                "choose one of these, or leave --sample out"
            )
        index = int(scored_at[0])
    draw: tuple[Callable[[Path], None], ...] = (
        lambda path: error_histograms(scored, total, path),
        lambda path: error_by_species(report, path),
        lambda path: parity(scored, total, path),
        lambda path: error_by_state(scored, total, path),
        lambda path: skill_by_group(report, path),
        lambda path: survival_on_sphere(scored, index, path),
    )
    return [path for function, path in zip(draw, figure_files(folder), strict=True) if drawn(function, path)]


def error_histograms(scored: Scored, total: int, path: Path) -> None:
    """How the errors of each scheme are distributed over the rows, a panel per role."""
    roles = sorted(set(scored.role.tolist()))
    errors = {scheme: error.mean(axis=0) for scheme, error in scored.errors.items()}
    positive = np.concatenate([error[error > 0] for error in errors.values()])
    low, high = (positive.min(), positive.max()) if len(positive) else (1e-3, 1e-2)
    bins = np.geomspace(0.9 * low, 1.1 * high, 40)
    which = _which(scored, np.arange(len(scored.row)), total)
    caption = f"How many of {which} have which error under each scheme. Error: {_ERROR}."
    with saved_figure(path, 6.5, 1.4 + 2.4 * len(roles), caption) as figure:
        panels = figure.subplots(len(roles), 1, sharex=True, squeeze=False)[:, 0]
        for axes, role in zip(panels, roles, strict=True):
            for scheme, error in errors.items():
                style = {"histtype": "step", "lw": 1.5, "color": COLORS[scheme], "label": TITLES[scheme]}
                axes.hist(error[scored.role == role], bins, **style)
            axes.set(xscale="log", ylabel="rows", title=f"{role}: {(scored.role == role).sum()} rows")
            axes.grid(alpha=0.3)
        legend_above(figure, panels[0])
        panels[-1].set_xlabel("error of a row")


def error_by_species(report: dict[str, Any], path: Path) -> None:
    """Mean error of each species under each scheme, a panel per role."""
    entries = report["roles"]
    caption = "Error of a species: four-flux distance over the row's total density, mean over the scored rows."
    with saved_figure(path, 6.5, 1.4 + 2.4 * len(entries), caption) as figure:
        panels = figure.subplots(len(entries), 1, sharex=True, squeeze=False)[:, 0]
        for axes, entry in zip(panels, entries, strict=True):
            for offset, scheme in enumerate(TITLES):
                error = np.array(list(entry["schemes"][scheme]["species_error"].values()))
                place = np.arange(len(error)) + 0.15 * (offset - 0.5 * (len(TITLES) - 1))
                style = {"marker": "o", "ls": "", "color": COLORS[scheme], "label": TITLES[scheme]}
                axes.plot(place, np.where(error > 0, error, np.nan), **style)
            axes.set(yscale="log", ylabel="mean error", title=f"{entry['role']}: {entry['rows']} rows")
            axes.grid(alpha=0.3, axis="y")
        legend_above(figure, panels[0])
        panels[-1].set_xticks(range(len(fourflux.SPECIES)), fourflux.SPECIES)


def _some(scored: Scored) -> NDArray[np.intp]:
    """At most `_POINTS` rows, evenly spaced: more points are a blot."""
    return np.arange(0, len(scored.row), -(-len(scored.row) // _POINTS))


def _which(scored: Scored, rows: NDArray[np.intp], total: int) -> str:
    """The rows of a figure, of all that were scored, in words."""
    roles = ", ".join(f"{(scored.role[rows] == role).sum()} {role}" for role in sorted(set(scored.role.tolist())))
    part = f"{len(rows)} of the {total}" if len(rows) < total else f"the {len(rows)}"
    return f"{part} scored rows ({roles})"


def parity(scored: Scored, total: int, path: Path) -> None:
    """Predicted over simulated change of each of the 24 numbers, for every scheme that predicts one."""
    names = [scheme for scheme in TITLES if scheme != "none"]
    rows = _some(scored)
    init = scored.F_init[rows]
    true = (scored.F_true[rows] - init).reshape(-1)
    changes = {name: (scored.F[name][:, rows].mean(axis=0) - init).reshape(-1) for name in names}
    ends = np.concatenate([true, *changes.values()])
    margin = 0.05 * np.ptp(ends) or 0.1
    limits = (ends.min() - margin, ends.max() + margin)
    caption = (
        f"The 24 numbers of {_which(scored, rows, total)}, as changes from the initial state over the row's total "
        "density, truth averaged over mu and tau where they start alike. On the dashed line prediction and simulation "
        "agree."
    )
    with saved_figure(path, 4.0 * len(names), 4.8, caption) as figure:
        panels = figure.subplots(1, len(names), sharex=True, sharey=True)
        for axes, scheme in zip(panels, names, strict=True):
            axes.plot(true, changes[scheme], ".", ms=3, alpha=0.4, mew=0, color=COLORS[scheme], rasterized=True)
            axes.axline((0, 0), slope=1, color="0.5", lw=1, ls="--", zorder=0)
            axes.set(xlabel="simulated change", title=TITLES[scheme], xlim=limits, ylim=limits)
            axes.grid(alpha=0.3)
        panels[0].set_ylabel("predicted change")


def error_by_state(scored: Scored, total: int, path: Path) -> None:
    """Error over the depth of the crossing and over the largest flux factor, with running medians."""
    rows = _some(scored)
    caption = (
        f"Points: {_which(scored, rows, total)}. Lines: medians of neighbouring points. Error: {_ERROR}. Depth: the "
        "smaller over the larger integral of the electron lepton number on both sides of its crossing."
    )
    with saved_figure(path, 10.0, 5.0, caption) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, x in ((left, scored.depth[rows]), (right, scored.flux_factor[rows])):
            for scheme in (*schemes.STORED, "model"):
                error = scored.errors[scheme][:, rows].mean(axis=0)
                _with_median(axes, x, error, COLORS[scheme], TITLES[scheme])
            axes.set_yscale("log")
            axes.grid(alpha=0.3)
        left.set(xlabel="depth of the crossing", ylabel="error of a row")
        legend_above(figure, left)
        right.set(xlabel="largest flux factor |F|/N of the six species")


def _with_median(axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64], color: str, label: str) -> None:
    positive = y > 0
    axes.plot(x[positive], y[positive], ".", ms=4, alpha=0.35, mew=0, color=color)
    order = np.argsort(x)
    parts = np.array_split(order, min(12, max(1, len(order) // 8)))
    axes.plot([np.median(x[p]) for p in parts], [np.median(y[p]) for p in parts], color=color, lw=2, label=label)


def skill_by_group(report: dict[str, Any], path: Path) -> None:
    """Skill over Box3D of the other schemes and of the model in each group, with bootstrap intervals."""
    entries = report["groups"]
    labels = [f"{entry['group']}\n{entry['role']}\n{entry['rows']} rows" for entry in entries]
    caption = (
        "Skill: 1 - mean error / mean error of Box3D; 0 is Box3D, 1 is perfect, negative is worse than Box3D. Thin "
        f"bars: {100 * CONFIDENCE:.0f} % bootstrap intervals. Error: {_ERROR}."
    )
    with saved_figure(path, max(6.5, 1.6 * len(entries)), 4.8, caption) as figure:
        axes = figure.subplots()
        compared = [*(scheme for scheme in schemes.STORED if scheme != "box3d"), "model"]
        width = 0.8 / len(compared)
        for number, scheme in enumerate(compared):
            offset = (number + 0.5) * width - 0.4
            for place, entry in enumerate(entries):
                one = entry["schemes"][scheme]
                if one["skill"] is None:
                    continue
                label = TITLES[scheme] if place == 0 else None
                axes.bar(place + offset, one["skill"], 0.95 * width, color=COLORS[scheme], label=label)
                if one["skill"] < _LOWEST_SKILL:
                    number_below: dict[str, Any] = {"color": "w", "fontsize": "small", "ha": "center", "va": "bottom"}
                    axes.text(place + offset, 0.98 * _LOWEST_SKILL, f"{one['skill']:.1f}", **number_below)
                if one["skill_interval"] is not None:
                    ends = [[one["skill"] - one["skill_interval"][0]], [one["skill_interval"][1] - one["skill"]]]
                    axes.errorbar(place + offset, one["skill"], np.maximum(ends, 0), color="k", capsize=3)
        axes.axhline(0, color=COLORS["box3d"], lw=3, label="Box3D")
        low, high = axes.get_ylim()
        axes.set_ylim(max(min(low, -0.06), _LOWEST_SKILL), max(high, 0.1))  # the line at 0 away from the frame
        axes.set_xticks(range(len(entries)), labels, fontsize="small")
        axes.set(ylabel="skill over Box3D")
        axes.grid(alpha=0.3, axis="y")
        legend_above(figure, axes)


def survival_on_sphere(scored: Scored, index: int, path: Path) -> None:
    """``P(n)`` of electron neutrinos over the directions of one scored state under each scheme.

    A map of the whole sphere (Mollweide), the line is the crossing ``G = 0``. A network that does not set the
    parameters of a mixing scheme has no P(n) and is left out.
    """
    F = scored.F_init[index]
    longitude, latitude = np.meshgrid(np.linspace(-np.pi, np.pi, 181), np.linspace(-np.pi / 2, np.pi / 2, 91))
    cos = np.cos(latitude)
    directions = np.stack([cos * np.cos(longitude), cos * np.sin(longitude), np.sin(latitude)]).reshape(3, -1)
    maps = {name: schemes.SCHEMES[name].survival(F, directions) for name in schemes.STORED}
    if scored.theta is not None:
        maps["model"] = survival.survival_probability(F, directions, scored.theta[index])
    G = sphere.lepton_number(F, directions).reshape(longitude.shape)
    lowest = min(1 / 3, *(P.min() for P in maps.values()))
    name = str(scored.name[index]) or f"row {scored.row[index]}"
    caption = (
        "Survival probability of electron neutrinos over the directions of flight (map of the whole sphere, z up) for "
        f"one row: {name} ({scored.group[index]}, {scored.role[index]}), depth of the crossing "
        f"{scored.depth[index]:.2f}. White line: the crossing, where the lepton number of electron flavor less that of "
        f"the heavy ones changes sign. Error: {_ERROR}."
    )
    with saved_figure(path, 5.0 * len(maps), 4.0, caption) as figure:
        panels = figure.subplots(1, len(maps), subplot_kw={"projection": "mollweide"})
        for axes, (scheme, P) in zip(panels, maps.items(), strict=True):
            image = axes.pcolormesh(
                longitude, latitude, P.reshape(longitude.shape), vmin=lowest, vmax=1, shading="gouraud", rasterized=True
            )
            if G.min() < 0 < G.max():
                axes.contour(longitude, latitude, G, levels=[0], colors="k", linewidths=3)
                axes.contour(longitude, latitude, G, levels=[0], colors="w", linewidths=1.5)
            axes.set_title(f"{TITLES[scheme]}: error {scored.errors[scheme][0, index]:.4f}")
            axes.set_xticklabels([])
            axes.set_yticklabels([])
        figure.colorbar(image, ax=list(panels), label="survival probability P", shrink=0.8)
        total = f"N_e/N = {F[fourflux.NU_E, fourflux.T]:.2f}, Nbar_e/N = {F[fourflux.NUBAR_E, fourflux.T]:.2f}"
        figure.suptitle(f"{name}: {total}", fontsize="medium")
