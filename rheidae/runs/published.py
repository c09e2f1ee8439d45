"""Published cases: what was published, what the sample's simulation says, and every scheme's answer.

``python -m rheidae.runs.published --out docs/published.md`` writes the page.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import rheidae
from rheidae import fourflux
from rheidae.datasets import load_dataset
from rheidae.estimator.regressor import FluxRegressor
from rheidae.runs.report import markdown_table, with_doubt
from rheidae.runs.score import cross_validate
from rheidae.scoring.scores import TITLES, Scored, seed_deviation
from rheidae.system import commands
from rheidae.system.outputs import write_text

GROUP = "published"

TEST_ONLY = ("mutau", "pairs", GROUP, "three_d")
"""Groups that the model is not trained on, as of ``make evaluate``."""

CASES = {
    "NSM1": (
        "A point of a merger, in three dimensions (Grohs et al., "
        "[arXiv:2207.02214](https://arxiv.org/abs/2207.02214)); the published end is the one that the sample's README "
        "quotes.",
        (9.95, 14.88),
    ),
    "fiducial": (
        "nu_e and nubar_e alike, flux factors 1/3 in opposite directions, no heavy flavors (Richers, Willcox and Ford, "
        "[arXiv:2109.08631](https://arxiv.org/abs/2109.08631)).",
        None,
    ),
    "90 degrees": ("The same with a right angle between the fluxes (the same paper).", None),
    "two thirds": (
        "nu_e isotropic, two thirds as many nubar_e with a flux factor of 1/3, no heavy flavors (the same paper).",
        None,
    ),
}
"""Rows of the group in their order: what the case is, and final densities as published, 1e32/cm^3."""


def score_published(seeds: Sequence[int], **options: Any) -> tuple[Scored, Any]:
    """Score schemes and `FluxRegressor(**options)`, trained on all families but `TEST_ONLY`; also returns the data."""
    data = load_dataset()
    scored = cross_validate(
        data, lambda seed: FluxRegressor(random_state=seed, **options), (), seeds=seeds, test_only=TEST_ONLY
    )
    return scored, data


def page(scored: Scored, data: Any, command: str) -> str:
    """Return the page as Markdown."""
    names = list(CASES)
    rows = [int(np.flatnonzero(scored.name == f"published_asymptotic3d_{i:04}")[0]) for i in range(len(names))]
    schemes = [scheme for scheme in scored.F if scheme != "none"]
    seeds = len(scored.F["model"])
    unit = fourflux.total_density(data.data[scored.row[rows], :24]) / (data.target_scale * 1e32)

    def densities(F: Any, i: int) -> str:
        mean = unit[i] * F[:, rows[i]][:, [fourflux.NU_E, fourflux.NUBAR_E], fourflux.T].mean(axis=0)
        return ", ".join(f"{value:.2f}" for value in mean)

    lines, errors = [], []
    for i, name in enumerate(names):
        published = CASES[name][1]
        lines.append(
            [
                name, densities(scored.F_init[None], i),
                ", ".join(f"{value:.2f}" for value in published) if published else "figures only",
                densities(scored.F_true[None], i), *(densities(scored.F[scheme], i) for scheme in schemes),
            ]
        )  # fmt: skip
        own = [1e3 * scored.errors[scheme][:, rows[i]] for scheme in schemes]
        errors.append([name, *(with_doubt(one.mean(), seed_deviation(one), None, 2) for one in own)])
    titles = [TITLES[scheme] for scheme in schemes]
    sections = [
        "# Published cases",
        f"Made by\n\n    {command}\n\nwith rheidae {rheidae.__version__}.",
        "\n".join(f"- **{name}**: {text}" for name, (text, _) in CASES.items()),
        "Densities of nu_e and nubar_e in 1e32/cm^3. The simulation is the sample's row: three dimensions, run until "
        f"it settles ([how](simulate.md)). The model is `FluxRegressor` with its defaults, mean of {seeds} seed"
        f"{'s' if seeds > 1 else ''}, trained on the families of the sample with like mu and tau; of these cases it "
        "has seen nothing.",
        markdown_table(["case", "before", "published", "simulation", *titles], lines, 1),
        "Error: four-flux distance from the simulation over the total density, mean over species, in thousandths"
        f"{'; ± standard deviation between seeds' if seeds > 1 else ''}. A simulation is known to 0.3 to 0.9.",
        markdown_table(["error", *titles], errors, 1),
        "NSM1 as published had not settled when it stopped ([simulations](simulate.md)). Without heavy flavors, and as "
        "many nubar_e as nu_e, every scheme has equipartition: the first two of these cases tell nothing apart but "
        "fluxes. The last is slow: it had not settled at its end, after 30 saturation times.",
    ]
    return "\n\n".join(sections) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m rheidae.runs.published``."""
    parser = argparse.ArgumentParser(prog="python -m rheidae.runs.published", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/published.md"), help="(default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="0 to N-1 (default: %(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.seeds < 1:
        parser.error("--seeds must be 1 or more")

    def command() -> None:
        commands.require_harmless({"--out": arguments.out}, [])
        scored, data = score_published(range(arguments.seeds))
        write_text(arguments.out, page(scored, data, "python -m rheidae.runs.published"))
        commands.show(f"written: {arguments.out}")

    return commands.run(command)


if __name__ == "__main__":
    raise SystemExit(main())
