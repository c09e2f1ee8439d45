"""What is said about scored rows: a JSON-safe report, and its tables as Markdown."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rheidae
from rheidae import fourflux
from rheidae.datasets import box3d_settings
from rheidae.mixing.box3d import ORDERS
from rheidae.mixing.schemes import STORED
from rheidae.scoring.metrics import COVERAGE
from rheidae.scoring.scores import CONFIDENCE, RESAMPLES, TITLES, Entry
from rheidae.scoring.tally import Tallies
from rheidae.system.outputs import write_text

Report = dict[str, Any]


def report_on(tallies: Tallies, source: str | Path | None, about: Report, resamples: int = RESAMPLES) -> Report:
    """Put everything that is known of the scored rows into a JSON-safe dict.

    Parameters
    ----------
    tallies : Tallies
        Of the scored rows.
    source : path or None
        The file that the rows come from.
    about : dict
        What to say of the model; put first.
    resamples : int
        Of the bootstrap.

    Returns
    -------
    dict
        ``box3d``: order, crossing and mu fraction of the file's Box3D, as far as the file says; ``groups``: a
        `rheidae.scoring.tally.Tally.summary` for each group in each role, with ``group`` and ``role``; ``roles``: the
        same for all groups of a role; ``worst``: the ten worst rows of each role.
    """
    box3d = box3d_settings(source) if source else {}
    if "order" in box3d and box3d["order"] is None:
        box3d["order"] = ORDERS.get(box3d.get("crossing", ""))
    return {
        **about,
        "data": str(source),
        "box3d": box3d,
        "rheidae_version": rheidae.__version__,
        "confidence_level": CONFIDENCE,
        **tallies.summaries(resamples),
    }


def entries(report: Report) -> list[Report]:
    """Return the groups of each role, and behind them all of the role where it has several groups."""
    lines = []
    for whole in report["roles"]:
        groups = [entry for entry in report["groups"] if entry["role"] == whole["role"]]
        lines += [*groups, whole] if len(groups) > 1 else groups
    return lines


def notes(report: Report) -> str:
    """Say what the numbers are."""
    lines = [
        "error: four-flux distance over the total density, mean over species and rows, the truth averaged over mu and "
        "tau where the initial state has them alike; skill: 1 - error / Box3D's error.",
        f"[a, b]: {100 * report['confidence_level']:.0f} % bootstrap interval, simulations drawn with replacement.",
    ]
    if report.get("box3d"):
        settings = ", ".join(
            f"{name.replace('_', ' ')} {'none' if value is None else value}" for name, value in report["box3d"].items()
        )
        lines.append(f"Box3D, as the data have it: {settings}.")
    if len(report["seeds"]) > 1:
        lines.append(
            f"Means over {len(report['seeds'])} seeds ({report['seeds'][0]} to {report['seeds'][-1]}); "
            "±: standard deviation between seeds."
        )
    lines.append(
        "conserved to: largest change of a flavor sum or of a flavor's lepton number, over the total density; "
        "physical: four-fluxes with N >= 0 and |F| <= N."
    )
    if report.get("rows_left_out"):
        lines.append(f"{report['rows_left_out']} rows that the run was trained or selected on are left out.")
    if report.get("rows_again"):
        lines.append(
            f"{report['rows_again']} rows are in the data more than once; no model was trained on a copy of a row that "
            "it is asked about."
        )
    return "\n".join(lines)


def text(report: Report) -> str:
    """Return what a terminal shows: scores, coverage, and what the numbers are."""
    lines = entries(report)
    return "\n\n".join(filter(None, [score_table(lines), coverage_table(lines), notes(report)]))


def write_report(report: Report, json_path: Path | None = None, page: Path | None = None) -> list[Path]:
    """Write the report as JSON, as a page, or both; return what was written."""
    contents = {
        json_path: lambda: json.dumps(report, indent=2, allow_nan=False) + "\n",
        page: lambda: markdown(report),
    }
    written = []
    for path, content in contents.items():
        if path is not None:
            write_text(path, content())
            written.append(path)
    return written


def markdown(report: Report) -> str:
    """Return the report as a page."""
    lines = entries(report)
    coverage = coverage_table(lines)
    sections = [
        "# Evaluation",
        f"Model: {report['model']}. Data: {report['data']}. rheidae {report['rheidae_version']}.",
        notes(report).replace("\n", "\n\n"),
        "## Schemes",
        score_table(lines),
        "## Errors by species and component",
        "In thousandths of the total density: four-flux distance of each species; absolute error of each component, "
        "mean over species.",
        detail_table(lines),
    ]
    if coverage:
        sections += [
            "## Coverage",
            f"Fraction of the 24 numbers of a row that lie within the model's own {100 * COVERAGE:.0f} % interval, mu "
            "and tau as they are, all and by species; half of the interval over the error, medians.",
            coverage,
        ]
    sections += [
        "## Worst rows",
        "depth: smaller over larger integral of the electron lepton number on both sides of the crossing; flux factor: "
        "the largest of the six species.",
        worst_table(report["worst"]),
    ]
    return "\n\n".join(sections) + "\n"


# --- tables ------------------------------------------------------------------------------------------------


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]], left: int) -> str:
    """Return a Markdown table whose first `left` columns are text."""
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *lines))


def with_doubt(value: float | None, spread: float | None, interval: Sequence[float] | None, digits: int) -> str:
    """``0.811 ± 0.004 [0.780, 0.838]``, as far as it is known."""
    if value is None or not math.isfinite(value):
        return ""
    text = f"{value:.{digits}f}"
    if spread is not None:
        text += f" ± {spread:.{digits}f}"
    if interval is not None:
        text += f" [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"
    return text


def score_table(entries: Sequence[Entry]) -> str:
    """Rows, error, skill, conservation, physicality and coverage of every scheme in every group."""
    header = ["group", "role", "scheme", "rows", "error", "skill", "better than Box3D", "conserved to", "physical"]
    lines = []
    for entry in entries:
        for scheme, one in entry["schemes"].items():
            changed = max(one["flavor_sum_change"], one["lepton_number_change"])
            lines.append(
                [
                    entry["group"], entry["role"], TITLES[scheme], str(entry["rows"]),
                    with_doubt(one["error"], one["error_spread"], one["error_interval"], 5),
                    with_doubt(one["skill"], one["skill_spread"], one["skill_interval"], 3),
                    "" if scheme == "box3d" else f"{100 * one['rows_better_than_box3d']:.0f} %", f"{changed:.0e}",
                    f"{100 * one['physical_fraction']:.2f} %",
                ]
            )  # fmt: skip
    return markdown_table(header, lines, 3)


def detail_table(entries: Sequence[Entry]) -> str:
    """Errors of every species and component, in thousandths of the total density."""
    lines = []
    for entry in entries:
        for scheme, one in entry["schemes"].items():
            numbers = [*one["species_error"].values(), *one["component_error"].values()]
            lines.append([entry["group"], entry["role"], TITLES[scheme], *(f"{1e3 * n:.2f}" for n in numbers)])
    return markdown_table(["group", "role", "scheme", *fourflux.SPECIES, *fourflux.COMPONENTS], lines, 3)


def coverage_table(entries: Sequence[Entry]) -> str:
    """How many of the errors lie within the model's own 90 % interval, by species; empty if it gives none."""
    lines = [
        [
            entry["group"], entry["role"],
            with_doubt(one["coverage"], one["coverage_spread"], one["coverage_interval"], 3),
            *(f"{value:.2f}" for value in one["species_coverage"].values()), with_doubt(one["width"], None, None, 1),
        ]
        for entry in entries
        if (one := entry["schemes"]["model"])["coverage"] is not None
    ]  # fmt: skip
    header = ["group", "role", f"within the {100 * COVERAGE:.0f} % interval", *fourflux.SPECIES, "width over error"]
    return markdown_table(header, lines, 2) if lines else ""


def worst_table(rows: Sequence[Entry]) -> str:
    """The worst rows."""
    lines = [
        [
            one["simulation"] or "-", one["group"], one["role"], str(one["row"]),
            *(f"{one['error'][scheme]:.5f}" for scheme in ("model", *STORED)),
            f"{one['depth']:.3f}", f"{one['flux_factor']:.2f}",
        ]
        for one in rows
    ]  # fmt: skip
    others = [f"by {TITLES[scheme]}" for scheme in STORED]
    header = ["simulation", "group", "role", "row", "error", *others, "depth", "flux factor"]
    return markdown_table(header, lines, 3)
