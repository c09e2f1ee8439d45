"""Compare a trained model with Box3D on rows that it has not seen.

python -m rheidae.evaluate --run checkpoints/RUN --data .pdata/preprocessed_all.h5 --json metrics.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import rheidae
from rheidae import commands, fourflux
from rheidae.datasets import load_dataset
from rheidae.exceptions import RunError
from rheidae.files import write_text
from rheidae.metrics import flux_error, skill
from rheidae.runs import Run, load_run, row_keys

Report = dict[str, Any]


def evaluate(run: Run, data: Any) -> tuple[Report, dict[str, NDArray[Any]]]:
    """Score a run on the rows of a data set that it was neither trained nor selected on.

    Parameters
    ----------
    run : Run
        From `rheidae.runs.load_run`.
    data : Bunch
        From `load_dataset`, with the run's `target_scale`. Rows are recognised by their numbers, whatever file
        they come in; rows that took part in training or validation are counted and left out.

    Returns
    -------
    report : dict
        JSON-safe: per group rows, errors and skill (see `rheidae.metrics`), how well the model conserves what
        the instability conserves, and the fraction of predicted four-fluxes that are physical.
    rows : dict of ndarray
        "group", "box3d_error" and "model_error" of each scored row.

    Raises
    ------
    RunError
        If no row is left.
    """
    keys = row_keys(data.data, data.target)
    seen = np.isin(keys, np.concatenate([run.rows["train"], run.rows["valid"]]))
    if seen.all():
        raise RunError(f"{data.filename}: the run was trained on every row of it; evaluate on other simulations")
    data_scored, target, groups = data.data[~seen], data.target[~seen], data.groups[~seen]
    init, box = data_scored[:, :24], data_scored[:, 24:]
    prediction = run.regressor.predict(data_scored)
    rows = {
        "group": groups,
        "box3d_error": flux_error(target, box, init),
        "model_error": flux_error(target, prediction, init),
    }
    entries = []
    for group in sorted(set(groups.tolist()), key=lambda name: (name not in run.groups, name)):
        role = "held out" if group in run.groups else "unseen family"
        entries.append(_entry(group, role, groups == group, rows))
    report = {
        "run": str(run.folder),
        "data": data.filename,
        "rheidae_version": rheidae.__version__,
        "rows_left_out": int(seen.sum()),
        "groups": entries,
        "all": _entry("all", "", np.ones(len(groups), dtype=bool), rows),
        "conservation_error": _conservation_error(init, prediction),
        "physical_fraction": _physical_fraction(prediction),
    }
    return report, rows


def _entry(group: str, role: str, chosen: NDArray[np.bool_], rows: dict[str, NDArray[Any]]) -> Report:
    box, model = rows["box3d_error"][chosen], rows["model_error"][chosen]
    return {
        "group": group,
        "role": role,
        "rows": int(chosen.sum()),
        "box3d_error": float(box.mean()),
        "model_error": float(model.mean()),
        "skill": skill(model, box),
        "rows_better_than_box3d": float((model < box).mean()),
    }


def _conservation_error(init: fourflux.Float, final: fourflux.Float) -> float:
    """Largest change of a flavor sum or of a lepton number per flavor, relative to the total density."""
    change = (final.astype(np.float64) - init).reshape(-1, 2, 3, 4) / fourflux.total_density(init)[:, None, None, None]
    flavor_sums = np.abs(change.sum(axis=2))
    lepton_numbers = np.abs(change[:, 0, :, fourflux.T] - change[:, 1, :, fourflux.T])
    return float(max(flavor_sums.max(), lepton_numbers.max()))


def _physical_fraction(final: fourflux.Float) -> float:
    """Fraction of four-fluxes with ``N >= 0`` and ``|F| <= N`` to rounding."""
    F = final.reshape(-1, 4)
    length = np.linalg.norm(F[:, :3].astype(np.float64), axis=1)
    density = F[:, fourflux.T]
    return float(((density >= 0) & (length <= density * (1 + fourflux.FLUX_TOLERANCE))).mean())


def table(report: Report) -> str:
    """Return the report's groups as a Markdown table."""
    lines = [
        "| group | role | rows | Box3D error | model error | skill |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {e['group']} | {e['role']} | {e['rows']} | {e['box3d_error']:.5f} | {e['model_error']:.5f} "
        f"| {e['skill']:.3f} |"
        for e in [*report["groups"], report["all"]]
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m rheidae.evaluate``."""
    parser = argparse.ArgumentParser(prog="python -m rheidae.evaluate", description="Compare a model with Box3D.")
    parser.add_argument("--run", required=True, help="run folder, such as checkpoints/demo")
    parser.add_argument("--data", required=True, help="preprocessed file")
    parser.add_argument("--json", help="also write the report here, and an error plot (PNG) beside it")
    arguments = parser.parse_args(argv)

    def command() -> None:
        run = load_run(arguments.run)
        report, rows = evaluate(run, load_dataset(arguments.data, run.config.data.target_scale))
        print(table(report))
        print(
            "\nerror: four-flux distance over the total density, mean over species and rows; "
            "skill: 1 - error / Box3D's error.\n"
            f"{report['rows_left_out']} rows that the run was trained or selected on are left out.\n"
            f"Flavor sums and lepton numbers are conserved to {report['conservation_error']:.1e} of the total density; "
            f"{100 * report['physical_fraction']:.2f} % of the predicted four-fluxes are physical."
        )
        if arguments.json:
            from rheidae import plots

            path = Path(arguments.json)
            write_text(path, json.dumps(report, indent=2) + "\n")
            plots.errors(rows, path.with_name("errors.png"))
            print(f"written: {path}, {path.with_name('errors.png')}")

    return commands.run(command)


if __name__ == "__main__":
    raise SystemExit(main())
