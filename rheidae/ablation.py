"""What each choice is worth: the same scores for every architecture, weighting and training size.

python -m rheidae.ablation --test-only mutau pairs published three_d
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rheidae.system import commands


def main(argv: list[str] | None = None) -> int:
    """Command line of ``rheidae ablation``."""
    parser = argparse.ArgumentParser(prog="rheidae ablation", description="Score every choice.")
    parser.add_argument("--data", default=".pdata/preprocessed_all.h5", help="preprocessed file (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/ablation.md"), help="page to write (%(default)s)")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds 0 to N-1 (%(default)s)")
    parser.add_argument("--folds", type=int, default=5, metavar="K", help="of the rows (%(default)s)")
    parser.add_argument("--epochs", type=int, help="of every variant, to try the command out (default: its own)")
    parser.add_argument(
        "--test-only", nargs="*", metavar="GROUP", help="groups that no model is trained on, as of rheidae evaluate"
    )
    arguments = parser.parse_args(argv)
    for name, least in (("seeds", 1), ("folds", 2), ("epochs", 1)):
        if (given := getattr(arguments, name)) is not None and given < least:
            parser.error(f"--{name} must be {least} or more")

    said = "python -m rheidae.ablation" + "".join(
        f" --{name} {getattr(arguments, name)}"
        for name in ("data", "out", "seeds", "folds", "epochs")
        if getattr(arguments, name) != parser.get_default(name)
    )
    if arguments.test_only is not None:
        said += " ".join([" --test-only", *arguments.test_only])

    def command() -> None:
        import torch

        from rheidae.runs.ablation import ablate, figure_beside

        torch.set_num_threads(1)
        outputs = {"--out": arguments.out, "figure of --out": figure_beside(arguments.out)}
        commands.require_harmless(outputs, [Path(arguments.data)])
        options = {name: getattr(arguments, name) for name in ("seeds", "folds", "epochs", "test_only")}
        written = ablate(arguments.data, arguments.out, said, **options)
        commands.show(f"written: {', '.join(map(str, written))}")

    return commands.run(command)


if __name__ == "__main__":
    raise SystemExit(main())
