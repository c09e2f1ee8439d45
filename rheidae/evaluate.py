"""Compare models with the analytic schemes on rows that they have not seen.

python -m rheidae.evaluate --run checkpoints/RUN --data .pdata/preprocessed_all.h5 --json metrics.json
python -m rheidae.evaluate --cv rows groups --seeds 5 --data .pdata/preprocessed_all.h5 --markdown scores.md
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rheidae.system import commands


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rheidae evaluate", description="Compare a model with the analytic schemes on unseen rows."
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", help="run folder, such as checkpoints/demo: score what it was not trained on")
    what.add_argument(
        "--cv", nargs="+", choices=("rows", "groups"), help="train anew: k-fold over rows, leave one group out, or both"
    )
    parser.add_argument("--data", required=True, help="preprocessed file")
    cv = parser.add_argument_group("cross-validation (--cv)")
    cv.add_argument("--folds", type=int, metavar="K", help="parts of --cv rows (default: 5)")
    cv.add_argument("--seeds", type=int, metavar="N", help="repeat with the seeds 0 to N-1 (default: 1)")
    cv.add_argument(
        "--test-only",
        nargs="*",
        metavar="GROUP",
        help="groups that no model is trained on, scored by one trained on all others "
        "(default: those whose simulations are 3D by their names; give none for none)",
    )
    cv.add_argument("--config", help="model.yaml of the estimator (default: FluxRegressor as it is)")
    cv.add_argument("--train-parms", help="train_parms.yaml of the estimator")
    output = parser.add_argument_group("output")
    output.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON")
    output.add_argument("--markdown", type=Path, metavar="FILE", help="write the report as a page")
    output.add_argument("--figures", type=Path, metavar="DIR", help="write figures (PNG)")
    output.add_argument("--sample", type=int, metavar="ROW", help="row of the data whose P(n) is drawn")
    output.add_argument("--resamples", type=int, default=2000, metavar="N", help="of the bootstrap (%(default)s)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Command line of ``rheidae evaluate``."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.run:
        for name in ("folds", "seeds", "test_only", "config", "train_parms"):
            if getattr(arguments, name) is not None:
                parser.error(f"--{name.replace('_', '-')} belongs to --cv; a run is trained already")
    if arguments.seeds is not None and arguments.seeds < 1:
        parser.error("--seeds must be 1 or more")
    if arguments.resamples < 1:
        parser.error("--resamples must be 1 or more")
    if arguments.sample is not None and not arguments.figures:
        parser.error("--sample is drawn among the figures; say where to with --figures")

    def command() -> None:
        import torch

        from rheidae.runs.files import FILES
        from rheidae.runs.report import report_on, text, write_report
        from rheidae.runs.score import score_folder, score_settings
        from rheidae.scoring.figures import figure_files, write_figures
        from rheidae.scoring.tally import Tallies

        torch.set_num_threads(1)  # more gain nothing at these widths
        drawn = figure_files(arguments.figures) if arguments.figures else []
        inputs = [arguments.data, arguments.config, arguments.train_parms]
        if arguments.run:
            inputs += [Path(arguments.run, name) for name in FILES]
        commands.require_harmless(
            {"--json": arguments.json, "--markdown": arguments.markdown, **{f"--figures: {p.name}": p for p in drawn}},
            [Path(path) for path in inputs if path is not None],
        )
        if arguments.run:
            tallies, scored, about = score_folder(arguments.run, arguments.data, arguments.sample)
        else:
            scored, about = score_settings(
                arguments.data, arguments.cv, arguments.config, arguments.train_parms, test_only=arguments.test_only,
                folds=5 if arguments.folds is None else arguments.folds, seeds=arguments.seeds or 1,
                sample=arguments.sample,
            )  # fmt: skip
            tallies = Tallies().add(scored)
        report = report_on(tallies, arguments.data, about, arguments.resamples)
        try:
            written = write_report(report, arguments.json, arguments.markdown)
            if arguments.figures:
                written += write_figures(scored, report, arguments.figures, arguments.sample)
        finally:  # a full disk costs the files alone
            commands.show(text(report))
        if written:
            commands.show(f"\nwritten: {', '.join(map(str, written))}")

    return commands.run(command)


if __name__ == "__main__":
    raise SystemExit(main())
