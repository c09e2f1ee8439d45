"""Train the model that ships with the package, on its sample.

python -m rheidae.pretrained rheidae/pretrained/model
"""

from __future__ import annotations

import argparse

from rheidae.system import commands


def main(argv: list[str] | None = None) -> int:
    """Command line of ``rheidae pretrained``."""
    parser = argparse.ArgumentParser(prog="rheidae pretrained", description="Train the model that ships.")
    parser.add_argument("folder", help="where to write it, with its card and its ONNX file; made if it does not exist")
    arguments = parser.parse_args(argv)

    def command() -> None:
        import torch

        from rheidae.pretrained import make

        torch.set_num_threads(1)
        commands.show(str(make(arguments.folder)))

    return commands.run(command)


if __name__ == "__main__":
    raise SystemExit(main())
