"""What each choice is worth: the same scores for every architecture, weighting and training size."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import rheidae
from rheidae.datasets import load_dataset
from rheidae.estimator.networks import ResidualFFIModel
from rheidae.estimator.regressor import FluxRegressor
from rheidae.mixing import schemes
from rheidae.runs import score
from rheidae.runs.report import markdown_table, with_doubt
from rheidae.scoring.plots import drawn, saved_figure
from rheidae.scoring.scores import TITLES, Scored
from rheidae.scoring.splits import CROSS_VALIDATIONS, three_dimensional_groups
from rheidae.system.outputs import Outputs, naming

log = logging.getLogger(__name__)

Options = dict[str, Any]

RESIDUAL: Options = {
    "module": ResidualFFIModel, "module__frame": "invariant", "module__conserve": True,
    "lr": 2e-3, "max_epochs": 150, "batch_size": 64,
}  # fmt: skip
"""The residual network with a setting of its own: the default one of the mixing network is too short and too coarse."""

MULTITASK: dict[str, Options] = {
    "Kendall-Gal": {"weighting": "kendall_gal"},
    "dynamic weight average": {"weighting": "dwa"},
    "GradNorm": {"weighting": "gradnorm"},
    "PCGrad": {"pcgrad": True},
    "constraints": {"constraints": True},
    "Kendall-Gal, PCGrad and constraints": {"weighting": "kendall_gal", "pcgrad": True, "constraints": True},
}

MEMBERS = (1, 2, 4)

SIZES = (25, 50, 100)
"""Rows that the learning curve trains on, beside all of them."""


@dataclass(frozen=True)
class Variant:
    """An estimator to score: `options` go to `FluxRegressor`; with `rows`, it is trained on so many at most."""

    section: str
    name: str
    options: Options = field(default_factory=dict)
    rows: int | None = None

    def make(self, seed: int) -> FluxRegressor:
        """Return it untrained."""
        return FluxRegressor(random_state=seed, **self.options)


def variants() -> list[Variant]:
    """Return everything that is compared, section by section; a section's first line is what it varies."""
    architecture = "Architecture, frame, conservation"
    chosen = [Variant(architecture, "mixing (default)")]
    for frame in ("invariant", "lab"):
        for conserve in (True, False):
            name = f"residual, {frame} frame, {'conserving' if conserve else 'free'}"
            options = {**RESIDUAL, "module__frame": frame, "module__conserve": conserve}
            chosen.append(Variant(architecture, name, options))
    chosen.append(
        Variant(
            architecture,
            "residual over the initial state, invariant frame, conserving",
            {**RESIDUAL, "predict_residual": False},
        )
    )
    chosen += [Variant("Networks whose mean counts", f"{many}", {"module__members": many}) for many in MEMBERS]
    section = "Weighting, PCGrad, constraints"
    chosen.append(Variant(section, "fixed weights"))
    chosen += [Variant(section, name, options) for name, options in MULTITASK.items()]
    for title, base in (("mixing network", {}), ("residual network", RESIDUAL)):
        section = f"Training size: {title}"
        chosen += [Variant(section, f"{rows} rows", base, rows) for rows in SIZES]
        chosen.append(Variant(section, "all rows", base))
    return chosen


def smaller(listed: Iterable[Variant], epochs: int) -> list[Variant]:
    """Return the variants with another number of epochs, to try the command out."""
    return [replace(variant, options={**variant.options, "max_epochs": epochs}) for variant in listed]


# --- scores ----------------------------------------------------------------------------------------------

Column = tuple[str, str]
"""Role and group; the group "all" is all of a role."""

Scores = dict[Column, tuple[float, float | None]]
"""Skill by column: mean over the seeds, and their standard deviation."""


def columns(scored: Scored) -> list[Column]:
    """Return what a line of the table has: all held-out rows, each group left out, each never trained on."""
    pairs = sorted(set(zip(scored.role.tolist(), scored.group.tolist(), strict=True)))
    return list(dict.fromkeys((role, "all" if role == "held out" else group) for role, group in pairs))


def skills(scored: Scored, scheme: str) -> Scores:
    """Skill of a scheme in every column."""
    values: Scores = {}
    for role, group in columns(scored):
        chosen = (scored.role == role) & ((group == "all") | (scored.group == group))
        mean, deviation = scored.skill(scheme, chosen)
        values[role, group] = (np.nan if mean is None else mean, deviation)
    return values


def score_variants(
    data: Any, chosen: Sequence[Variant], *, folds: int, seeds: Sequence[int], test_only: Sequence[str]
) -> tuple[dict[str, Scores], list[tuple[Variant, Scores]]]:
    """Score the analytic schemes and every variant; equal settings are trained once.

    Returns
    -------
    analytic : dict
        Skills by scheme.
    learned : list of (Variant, dict)
        Skills of each variant.
    """
    analytic: dict[str, Scores] = {}
    learned: list[tuple[Variant, Scores]] = []
    known: dict[str, Scores] = {}
    for variant in chosen:
        setting = repr((sorted(variant.options.items()), variant.rows))
        if setting not in known:
            started = time.perf_counter()
            scored = score.cross_validate(
                data, variant.make, CROSS_VALIDATIONS, folds=folds, seeds=seeds, test_only=test_only,
                train_rows=variant.rows,
            )  # fmt: skip
            known[setting] = skills(scored, "model")
            analytic = analytic or {scheme: skills(scored, scheme) for scheme in schemes.SCHEMES}
            log.info(
                "%d of %d, %s, %s: %s (%.0f s)",
                len(learned) + 1, len(chosen), variant.section, variant.name,
                ", ".join(f"{mean:.3f}" for mean, _ in known[setting].values()), time.perf_counter() - started,
            )  # fmt: skip
        learned.append((variant, known[setting]))
    return analytic, learned


# --- the page --------------------------------------------------------------------------------------------


def page(
    analytic: dict[str, Scores],
    learned: Sequence[tuple[Variant, Scores]],
    *,
    command: str,
    seeds: Sequence[int],
    folds: int,
    rows: int,
    figure: str,
    epochs: int | None = None,
) -> str:
    """Return the page as Markdown; `epochs`: of every variant, where it isn't its own."""
    header = ["", *(_title(column) for column in learned[0][1])]

    def table(lines: Iterable[tuple[str, Scores]]) -> str:
        numbers = [
            [name, *(with_doubt(mean, doubt, None, 3) for mean, doubt in scores.values())] for name, scores in lines
        ]
        return markdown_table(header, numbers, 1)

    its_epochs, lr, batch = (RESIDUAL[name] for name in ("max_epochs", "lr", "batch_size"))
    defaults = "the defaults of `FluxRegressor`" + ("" if epochs is None else f", but {epochs} epochs")
    many = len(seeds) > 1
    sections = [
        "# What each choice is worth",
        f"Made by\n\n    {command}\n\nwith rheidae {rheidae.__version__} from {rows} rows. Skill against Box3D, one "
        "minus the ratio of the mean errors"
        + (
            f"; mean ± standard deviation over {len(seeds)} seeds, which set the initial weights, the order of the "
            "batches and the folds."
            if many
            else "; one seed."
        ),
        f"Columns: rows held out of the same families ({folds} folds); each family left out of training; groups that "
        "no model is trained on, scored by a model of all others.",
        "## Analytic schemes\n\nNo training.",
        table((TITLES[scheme], scores) for scheme, scores in analytic.items()),
    ]
    remarks = {
        "Architecture, frame, conservation": f"The mixing network has {defaults}. The residual "
        f"network has a setting of its own: {epochs or its_epochs} epochs, learning rate {lr:g}, batches of {batch}. "
        "It adds to Box3D unless the line says otherwise.",
        "Training size: mixing network": f"![Skill over the rows trained on]({figure})\n\n"
        "The last point of each curve is all rows, drawn at the size of a fold's training part.",
    }
    for section in dict.fromkeys(variant.section for variant, _ in learned):
        sections.append(f"## {section}")
        if section in remarks:
            sections.append(remarks[section])
        sections.append(table((v.name, scores) for v, scores in learned if v.section == section))
    return "\n\n".join(sections) + "\n"


def _title(column: Column) -> str:
    role, group = column
    return f"rows {role}" if group == "all" else f"{group}, {role}"


def learning_curve(learned: Sequence[tuple[Variant, Scores]], rows: int, path: Path) -> None:
    """Skill over the number of training rows to a PNG file, a panel per column, four beside each other.

    `learned` is from `score_variants`; `rows` is how many "all rows" are.
    """
    curves: dict[str, list[tuple[int, Scores]]] = {}
    for variant, scores in learned:
        if variant.section.startswith("Training size"):
            name = variant.section.partition(": ")[2]
            curves.setdefault(name, []).append((variant.rows or rows, scores))
    panels = [column for column, (skill, _) in learned[0][1].items() if np.isfinite(skill)]
    across = min(len(panels), 4)
    down = -(-len(panels) // across)
    with saved_figure(path, 2.6 * across, 2.6 * down, dpi=80) as figure:
        grid = figure.subplots(down, across, squeeze=False).ravel()
        for axes in grid[len(panels) :]:
            axes.remove()
        for axes, column in zip(grid, panels, strict=False):
            for name, points in curves.items():
                known = [(size, *scores[column]) for size, scores in points]
                sizes: NDArray[Any] = np.array([size for size, _, _ in known])
                means = np.array([mean for _, mean, _ in known])
                spreads = np.array([doubt or 0.0 for _, _, doubt in known])
                axes.errorbar(sizes, means, spreads, fmt="o-", ms=4, lw=1.5, capsize=2, label=name)
            axes.axhline(0, color="k", lw=1)
            axes.set(xscale="log", xlabel="rows trained on", title=_title(column), ylim=(-0.6, 1.0))
            axes.xaxis.set_minor_formatter("")
            axes.title.set_fontsize("small")
            axes.grid(alpha=0.3)
        figure.axes[0].set_ylabel("skill")
        figure.axes[0].legend(fontsize="x-small")


def figure_beside(out: Path) -> Path:
    """Where the figure of a page goes."""
    return out.with_name("learning_curve.png")


def ablate(
    source: str,
    out: Path,
    command: str,
    *,
    seeds: int,
    folds: int,
    epochs: int | None = None,
    test_only: Sequence[str] | None = None,
) -> list[Path]:
    """Score every choice on a preprocessed file and write the page, with a figure beside it; return their paths.

    `command` is what the page says it was made by; seeds are 0 to `seeds` - 1; `epochs`, of every variant, to try it
    out. Groups of `test_only` have no model trained on them; by default those whose simulations are 3D by their names.
    """
    logging.getLogger(score.__name__).setLevel(logging.WARNING)  # a line per variant is enough
    data = load_dataset(source)
    if test_only is None:
        test_only = three_dimensional_groups(data)
    most = int((~np.isin(data.groups, test_only)).sum()) * (folds - 1) // folds
    chosen = [variant for variant in variants() if variant.rows is None or variant.rows < most]
    if epochs is not None:
        chosen = smaller(chosen, epochs)
    figure = figure_beside(out)
    with Outputs() as outputs:
        place = outputs.path(out)  # what cannot be written is said now, not after the trainings
        analytic, learned = score_variants(data, chosen, folds=folds, seeds=range(seeds), test_only=test_only)
        text = page(
            analytic,
            learned,
            command=command,
            seeds=range(seeds),
            folds=folds,
            rows=len(data.data),
            figure=figure.name,
            epochs=epochs,
        )
        with naming(out, len(text)):
            place.write_bytes(text.encode())
    return [out, figure] if drawn(lambda path: learning_curve(learned, most, path), figure) else [out]
