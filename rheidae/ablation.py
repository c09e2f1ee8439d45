"""What each choice is worth: the same scores for every architecture, weighting and training size.

python -m rheidae.ablation --data .pdata/preprocessed_all.h5 --out docs/ablation.md
"""

from __future__ import annotations

import argparse
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
from rheidae.evaluate import cross_validate
from rheidae.scoring import scores as evaluation
from rheidae.scoring.scores import Scored
from rheidae.scoring.splits import CROSS_VALIDATIONS, three_dimensional_groups
from rheidae.system import commands
from rheidae.system.outputs import write_text

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

AXIAL_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.0)

SIZES = (25, 50, 100, 200)
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
    found = [Variant(architecture, "mixing (default)")]
    for frame in ("invariant", "lab"):
        for conserve in (True, False):
            name = f"residual, {frame} frame, {'conserving' if conserve else 'free'}"
            options = {**RESIDUAL, "module__frame": frame, "module__conserve": conserve}
            found.append(Variant(architecture, name, options))
    found.append(
        Variant(
            architecture,
            "residual over the initial state, invariant frame, conserving",
            {**RESIDUAL, "predict_residual": False},
        )
    )
    share = "Axial component outside training"
    found += [Variant(share, f"{part:g} of its weight", {"module__axial_share": part}) for part in AXIAL_SHARES]
    for title, base in (("mixing network", {}), ("residual network", RESIDUAL)):
        section = f"Weighting, PCGrad, constraints: {title}"
        found.append(Variant(section, "fixed weights", base))
        found += [Variant(section, name, {**base, **options}) for name, options in MULTITASK.items()]
    for title, base in (("mixing network", {}), ("residual network", RESIDUAL)):
        section = f"Training size: {title}"
        found += [Variant(section, f"{rows} rows", base, rows) for rows in SIZES]
        found.append(Variant(section, "all rows", base))
    return found


def smaller(found: Iterable[Variant], epochs: int) -> list[Variant]:
    """Return the variants with another number of epochs, to try the command out."""
    return [replace(variant, options={**variant.options, "max_epochs": epochs}) for variant in found]


# --- scores ----------------------------------------------------------------------------------------------

Column = tuple[str, str]
"""Role and group; the group "all" is all of a role."""

Scores = dict[Column, tuple[float, float | None]]
"""Skill by column: mean over the seeds, and their standard deviation."""


def columns(scored: Scored) -> list[Column]:
    """Return what a line of the table has: all held-out rows, each group left out, each never trained on."""
    found: list[Column] = []
    for role in sorted(set(scored.role.tolist())):
        groups = sorted(set(scored.group[scored.role == role].tolist()))
        found += [(role, "all")] if role == "held out" else [(role, group) for group in groups]
    return found


def skills(scored: Scored, scheme: str) -> Scores:
    """Skill of a scheme in every column."""
    found: Scores = {}
    for role, group in columns(scored):
        chosen = scored.role == role
        if group != "all":
            chosen &= scored.group == group
        values = evaluation.skills(scored.errors[scheme][:, chosen], scored.errors["box3d"][0, chosen])
        found[role, group] = (np.nan, None) if values is None else (float(values.mean()), evaluation.spread(values))
    return found


def score_variants(
    data: Any, found: Sequence[Variant], *, folds: int, seeds: Sequence[int], test_only: Sequence[str]
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
    for variant in found:
        setting = repr((sorted(variant.options.items()), variant.rows))
        if setting not in known:
            started = time.perf_counter()
            scored = cross_validate(
                data, variant.make, CROSS_VALIDATIONS, folds=folds, seeds=seeds, test_only=test_only,
                train_rows=variant.rows,
            )  # fmt: skip
            known[setting] = skills(scored, "model")
            analytic = analytic or {scheme: skills(scored, scheme) for scheme in ("none", "box3d", "power")}
            log.info(
                "%d of %d, %s, %s: %s (%.0f s)",
                len(learned) + 1, len(found), variant.section, variant.name,
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
) -> str:
    """Return the page as Markdown."""
    header = ["", *(_title(column) for column in learned[0][1])]

    def table(lines: Iterable[tuple[str, Scores]]) -> str:
        numbers = [
            [name, *(evaluation.with_doubt(mean, doubt, None, 3) for mean, doubt in scores.values())]
            for name, scores in lines
        ]
        return evaluation.markdown_table(header, numbers, 1)

    epochs, lr, batch = (RESIDUAL[name] for name in ("max_epochs", "lr", "batch_size"))
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
        "no model is trained on (3D), scored by a model of all others.",
        "## Analytic schemes\n\nNo training.",
        table((evaluation.SCHEMES[scheme], scores) for scheme, scores in analytic.items()),
    ]
    remarks = {
        "Architecture, frame, conservation": "The mixing network has the defaults of `FluxRegressor`. The residual "
        f"network has a setting of its own: {epochs} epochs, learning rate {lr:g}, batches of {batch}. It adds to "
        "Box3D unless the line says otherwise.",
        "Axial component outside training": "`axial_share` of `MixingModel`; its default is 0.8. Simulations of one "
        "dimension have waves along one axis only, so that the axial component learned from them is too strong in "
        "three. The default was chosen after a look at this table: its score in the last column is not one on rows "
        "that nobody had looked at.",
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
    """Skill over the number of training rows, a panel per column.

    Parameters
    ----------
    learned : list of (Variant, dict)
        From `score_variants`.
    rows : int
        How many "all rows" are.
    path : Path
        PNG file.
    """
    from rheidae.plots import saved_figure

    curves: dict[str, list[tuple[int, Scores]]] = {}
    for variant, scores in learned:
        if variant.section.startswith("Training size"):
            name = variant.section.partition(": ")[2]
            curves.setdefault(name, []).append((variant.rows or rows, scores))
    panels = list(learned[0][1])
    with saved_figure(path, 2.6 * len(panels), 3.0, dpi=90) as figure:
        for axes, column in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            for name, points in curves.items():
                known = [(size, *scores[column]) for size, scores in points]
                sizes: NDArray[Any] = np.array([size for size, _, _ in known])
                means = np.array([mean for _, mean, _ in known])
                spreads = np.array([doubt or 0.0 for _, _, doubt in known])
                axes.errorbar(sizes, means, spreads, fmt="o-", ms=4, lw=1.5, capsize=2, label=name)
            axes.axhline(0, color="k", lw=1)
            axes.set(xscale="log", xlabel="rows trained on", title=_title(column), ylim=(-0.6, 1.0))
            axes.title.set_fontsize("small")
            axes.grid(alpha=0.3)
        figure.axes[0].set_ylabel("skill")
        figure.axes[0].legend(fontsize="x-small")


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m rheidae.ablation``."""
    parser = argparse.ArgumentParser(prog="python -m rheidae.ablation", description="Score every choice.")
    parser.add_argument("--data", default=".pdata/preprocessed_all.h5", help="preprocessed file (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/ablation.md"), help="page to write (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0 to N-1 (%(default)s)")
    parser.add_argument("--folds", type=int, default=5, metavar="K", help="of the rows (%(default)s)")
    parser.add_argument("--epochs", type=int, help="of every variant, to try the command out (default: its own)")
    arguments = parser.parse_args(argv)
    if arguments.seeds < 1:
        parser.error("--seeds must be 1 or more")

    def command() -> None:
        import torch

        torch.set_num_threads(1)
        logging.getLogger("rheidae.evaluate").setLevel(logging.WARNING)  # a line per variant is enough
        data = load_dataset(arguments.data)
        test_only = three_dimensional_groups(data)
        found = variants() if arguments.epochs is None else smaller(variants(), arguments.epochs)
        seeds = range(arguments.seeds)
        analytic, learned = score_variants(data, found, folds=arguments.folds, seeds=seeds, test_only=test_only)
        trainable = int((~np.isin(data.groups, test_only)).sum())
        figure = arguments.out.with_name("learning_curve.png")
        learning_curve(learned, trainable * (arguments.folds - 1) // arguments.folds, figure)
        said = "python -m rheidae.ablation" + "".join(
            f" --{name} {getattr(arguments, name)}"
            for name in ("data", "out", "seeds", "folds", "epochs")
            if getattr(arguments, name) != parser.get_default(name)
        )
        text = page(
            analytic, learned, command=said, seeds=seeds, folds=arguments.folds, rows=len(data.data), figure=figure.name
        )
        write_text(arguments.out, text)
        print(f"written: {arguments.out}, {figure}")

    return commands.run(command)


if __name__ == "__main__":
    raise SystemExit(main())
