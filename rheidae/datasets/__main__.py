"""Write the sample simulations out as raw files: ``python -m rheidae.datasets FOLDER``."""

from __future__ import annotations

import argparse

from rheidae.system import commands


def main(argv: list[str] | None = None) -> int:
    """Command line of ``rheidae datasets``."""
    parser = argparse.ArgumentParser(prog="rheidae datasets", description=__doc__)
    parser.add_argument("folder", help="where to write; made if it does not exist")
    arguments = parser.parse_args(argv)

    def command() -> None:
        from rheidae.datasets import write_sample

        for path in write_sample(arguments.folder):
            commands.show(str(path))

    return commands.run(command)


if __name__ == "__main__":
    raise SystemExit(main())
