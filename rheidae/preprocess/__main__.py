"""Raw simulation files to training sets.

    python -m rheidae.preprocess --config config/pre_process.yaml

evaluates Box3D for every row and writes one file per simulation and a combined, shuffled one.
"""

from __future__ import annotations

import argparse

from rheidae.system import commands


def main(argv: list[str] | None = None) -> int:
    """Command line of ``rheidae preprocess``."""
    parser = argparse.ArgumentParser(prog="rheidae preprocess", description=__doc__)
    parser.add_argument("--config", default="config/pre_process.yaml", help="YAML file (default: %(default)s)")
    again = parser.add_mutually_exclusive_group()
    again.add_argument(
        "--resume",
        action="store_true",
        default=True,
        help="leave alone what was made from the same source, configuration and version (default)",
    )
    again.add_argument("--force", action="store_true", help="make every output anew")
    parser.add_argument(
        "--scheduler",
        metavar="WHERE",
        help="tcp://host:port of a Dask scheduler, or local:N for N processes (default: threads of this process)",
    )
    arguments = parser.parse_args(argv)

    def command() -> None:
        from rheidae.config import PreprocessConfig, read_config
        from rheidae.preprocess.pipeline import preprocess

        config = read_config(arguments.config, PreprocessConfig)
        for entry in preprocess(config, resume=not arguments.force, scheduler=arguments.scheduler):
            state = ", up to date" if entry.up_to_date else ""
            bad = "".join(f", {count} {kind}" for kind, count in entry.bad_rows.items())
            commands.show(f"{entry.name:16s} {entry.rows:9d} rows  {entry.path}{state}{bad}")

    return commands.run(command)


if __name__ == "__main__":
    raise SystemExit(main())
