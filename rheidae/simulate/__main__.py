"""Simulate many states: ``python -m rheidae.simulate --config config/simulate.yaml``."""

from __future__ import annotations

import argparse
from pathlib import Path

from rheidae.system import commands


def main(argv: list[str] | None = None) -> int:
    """Command line of ``rheidae simulate``."""
    parser = argparse.ArgumentParser(prog="rheidae simulate", description=__doc__)
    parser.add_argument("--config", default="config/simulate.yaml", help="YAML file (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="simulate again what is done already")
    parser.add_argument(
        "--scheduler",
        metavar="WHERE",
        help="tcp://host:port of a Dask scheduler, or local:N for N processes (default: `processes` of the file)",
    )
    arguments = parser.parse_args(argv)

    def command() -> None:
        from rheidae.config import read_config
        from rheidae.simulate.archive import simulate_archive
        from rheidae.simulate.config import SimulateConfig

        config = read_config(arguments.config, SimulateConfig)
        target = Path(config.output_root, config.output_filename)
        inputs = [Path(path) for path in (arguments.config, config.states.path) if path is not None]
        commands.require_harmless({"output_filename": target}, inputs)
        written = simulate_archive(config, resume=not arguments.force, scheduler=arguments.scheduler)
        commands.show(
            f"{written.path}: {written.rows} rows, {written.simulated} simulated now, {written.converged} converged"
        )

    return commands.run(command)


if __name__ == "__main__":
    raise SystemExit(main())
