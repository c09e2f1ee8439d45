"""Put the default configuration files, with a comment on every key, into a folder to start from.

rheidae init config
"""

from __future__ import annotations

import argparse
from importlib import resources
from pathlib import Path

from rheidae.exceptions import OutputError
from rheidae.system import commands

FILES = ("pre_process.yaml", "simulate.yaml", "model.yaml", "train_parms.yaml")


def write_defaults(folder: str | Path) -> list[Path]:
    """Write the commented default configuration into a folder, made if it is not there; return the files.

    Raises `OutputError` if one of them is there already; nothing is written then.
    """
    from rheidae.system.outputs import Outputs

    targets = [Path(folder) / name for name in FILES]
    for target in targets:
        if target.exists():
            raise OutputError(f"{target}: is there already; name another folder, or remove the file")
    with Outputs() as outputs:
        for target in targets:
            outputs.write(target, (resources.files("rheidae") / "defaults" / target.name).read_bytes())
    return targets


def main(argv: list[str] | None = None) -> int:
    """Command line of ``rheidae init``."""
    parser = argparse.ArgumentParser(prog="rheidae init", description="Write commented default configuration files.")
    parser.add_argument("folder", nargs="?", default="config", help="where to (default: %(default)s)")
    arguments = parser.parse_args(argv)

    def command() -> None:
        for path in write_defaults(arguments.folder):
            commands.show(str(path))

    return commands.run(command)


if __name__ == "__main__":
    raise SystemExit(main())
