"""The figures of an evaluation; each function draws one PNG file from scored rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from rheidae import fourflux
from rheidae.exceptions import RunError
from rheidae.mixing import power, schemes, sphere
from rheidae.scoring.plots import saved_figure
from rheidae.scoring.scores import TITLES, Scored

_POINTS = 5000

COLORS = {**{name: scheme.color for name, scheme in schemes.SCHEMES.items()}, "model": "C2"}


def write_figures(scored: Scored, report: dict[str, Any], folder: Path, sample: int | None = None) -> list[Path]:
    """Draw everything into a folder, which is made if it is not there.

    Parameters
    ----------
    scored : Scored
        Predictions.
    report : dict
        What `rheidae.runs.report.report_on` says of them.
    folder : Path
        Where to.
    sample : int, optional
        Row of the data whose survival probability is drawn; by default one whose crossing has the median depth.

    Returns
    -------
    list of Path
        ``errors.png, species.png, parity.png, depth.png, skill.png, sphere.png``.

    Raises
    ------
    RunError
        If the sample was not scored.
    """
    index = int(np.argsort(scored.depth)[len(scored.depth) // 2])
    if sample is not None:
        scored_at = np.flatnonzero(scored.row == sample)
        if not len(scored_at):
            raise RunError(
                f"row {sample} is not among the {len(scored.row)} that are scored, such as row {scored.row[0]}; "
                "choose one of these, or leave --sample out"
            )
        index = int(scored_at[0])
    draw = {
        "errors": lambda path: error_histograms(scored, path),
        "species": lambda path: error_by_species(report, path),
        "parity": lambda path: parity(scored, path),
        "depth": lambda path: error_by_state(scored, path),
        "skill": lambda path: skill_by_group(report, path),
        "sphere": lambda path: survival_on_sphere(scored, index, path),
    }
    paths = []
    for name, function in draw.items():
        paths.append(folder / f"{name}.png")
        function(paths[-1])
    return paths


def error_histograms(scored: Scored, path: Path) -> None:
    """How the errors of each scheme are distributed over the rows, a panel per role."""
    roles = sorted(set(scored.role.tolist()))
    errors = {scheme: error.mean(axis=0) for scheme, error in scored.errors.items()}
    positive = np.concatenate([error[error > 0] for error in errors.values()])
    low, high = (positive.min(), positive.max()) if len(positive) else (1e-3, 1e-2)
    bins = np.geomspace(0.9 * low, 1.1 * high, 40)
    with saved_figure(path, 6.0, 1.0 + 2.4 * len(roles)) as figure:
        panels = figure.subplots(len(roles), 1, sharex=True, squeeze=False)[:, 0]
        for axes, role in zip(panels, roles, strict=True):
            for scheme, error in errors.items():
                style = {"histtype": "step", "lw": 1.5, "color": COLORS[scheme], "label": TITLES[scheme]}
                axes.hist(error[scored.role == role], bins, **style)
            axes.set(xscale="log", ylabel="rows", title=role)
            axes.grid(alpha=0.3)
        panels[0].legend(fontsize="small")
        panels[-1].set_xlabel("error of a row over the total density")


def error_by_species(report: dict[str, Any], path: Path) -> None:
    """Mean error of each species under each scheme, a panel per role."""
    entries = report["roles"]
    with saved_figure(path, 6.0, 1.0 + 2.4 * len(entries)) as figure:
        panels = figure.subplots(len(entries), 1, sharex=True, squeeze=False)[:, 0]
        for axes, entry in zip(panels, entries, strict=True):
            for offset, scheme in enumerate(TITLES):
                error = np.array(list(entry["schemes"][scheme]["species_error"].values()))
                place = np.arange(len(error)) + 0.15 * (offset - 1.5)
                style = {"marker": "o", "ls": "", "color": COLORS[scheme], "label": TITLES[scheme]}
                axes.plot(place, np.where(error > 0, error, np.nan), **style)
            axes.set(yscale="log", ylabel="mean error", title=entry["role"])
            axes.grid(alpha=0.3, axis="y")
        panels[0].legend(fontsize="small")
        panels[-1].set_xticks(range(len(fourflux.SPECIES)), fourflux.SPECIES)


def _some(scored: Scored) -> NDArray[np.intp]:
    """At most `_POINTS` rows, evenly spaced: more points are a blot."""
    return np.arange(0, len(scored.row), -(-len(scored.row) // _POINTS))


def parity(scored: Scored, path: Path) -> None:
    """Predicted over simulated change of each of the 24 numbers, for every scheme that predicts one."""
    names = [scheme for scheme in TITLES if scheme != "none"]
    rows = _some(scored)
    init = scored.F_init[rows]
    true = (scored.F_true[rows] - init).reshape(-1)
    with saved_figure(path, 4.0 * len(names), 4.2) as figure:
        panels = figure.subplots(1, len(names), sharex=True, sharey=True)
        for axes, scheme in zip(panels, names, strict=True):
            change = (scored.F[scheme][:, rows].mean(axis=0) - init).reshape(-1)
            axes.plot(true, change, ".", ms=2, alpha=0.3, mew=0, color=COLORS[scheme], rasterized=True)
            axes.axline((0, 0), slope=1, color="k", lw=1)
            axes.set(xlabel="simulated change over the total density", title=TITLES[scheme])
            axes.grid(alpha=0.3)
        panels[0].set_ylabel("predicted change")


def error_by_state(scored: Scored, path: Path) -> None:
    """Error over the depth of the crossing and over the largest flux factor, with running medians."""
    rows = _some(scored)
    with saved_figure(path, 10.0, 4.2) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, x in ((left, scored.depth[rows]), (right, scored.flux_factor[rows])):
            for scheme in (*schemes.STORED, "model"):
                error = scored.errors[scheme][:, rows].mean(axis=0)
                _with_median(axes, x, error, COLORS[scheme], TITLES[scheme])
            axes.set_yscale("log")
            axes.grid(alpha=0.3)
        left.set(xlabel="depth of the crossing, smaller over larger side", ylabel="error over the total density")
        left.legend(fontsize="small")
        right.set(xlabel="largest flux factor")


def _with_median(axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64], color: str, label: str) -> None:
    positive = y > 0
    axes.plot(x[positive], y[positive], ".", ms=4, alpha=0.35, mew=0, color=color)
    order = np.argsort(x)
    parts = np.array_split(order, min(12, max(1, len(order) // 8)))
    axes.plot([np.median(x[p]) for p in parts], [np.median(y[p]) for p in parts], color=color, lw=2, label=label)


def skill_by_group(report: dict[str, Any], path: Path) -> None:
    """Skill over Box3D of the other schemes and of the model in each group, with bootstrap intervals."""
    entries = report["groups"]
    labels = [f"{entry['group']}\n{entry['role']}" for entry in entries]
    with saved_figure(path, max(4.5, 1.3 * len(entries)), 4.2) as figure:
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
                if one["skill_interval"] is not None:
                    ends = [[one["skill"] - one["skill_interval"][0]], [one["skill_interval"][1] - one["skill"]]]
                    axes.errorbar(place + offset, one["skill"], np.maximum(ends, 0), color="k", capsize=3)
        axes.axhline(0, color=COLORS["box3d"], lw=1.5, label="Box3D")
        axes.set_xticks(range(len(entries)), labels, fontsize="small")
        axes.set(ylabel="skill against Box3D")
        axes.grid(alpha=0.3, axis="y")
        axes.legend(fontsize="small")


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
        maps["model"] = power.power_survival(F, directions, scored.theta[index])
    G = sphere.lepton_number(F, directions).reshape(longitude.shape)
    lowest = min(1 / 3, *(P.min() for P in maps.values()))
    with saved_figure(path, 5.0 * len(maps), 3.4) as figure:
        panels = figure.subplots(1, len(maps), subplot_kw={"projection": "mollweide"})
        for axes, (scheme, P) in zip(panels, maps.items(), strict=True):
            image = axes.pcolormesh(
                longitude, latitude, P.reshape(longitude.shape), vmin=lowest, vmax=1, shading="gouraud", rasterized=True
            )
            if G.min() < 0 < G.max():
                axes.contour(longitude, latitude, G, levels=[0], colors="w", linewidths=1)
            axes.set_title(f"{TITLES[scheme]}: error {scored.errors[scheme][0, index]:.4f}")
            axes.set_xticklabels([])
            axes.set_yticklabels([])
        figure.colorbar(image, ax=list(panels), label="survival probability P", shrink=0.8)
        name = str(scored.name[index]) or f"row {scored.row[index]}"
        total = f"N_e/N = {F[fourflux.NU_E, fourflux.T]:.2f}, Nbar_e/N = {F[fourflux.NUBAR_E, fourflux.T]:.2f}"
        figure.suptitle(f"{name} ({scored.group[index]}, {scored.role[index]}): {total}", fontsize="medium")
