"""The figure that training leaves behind.

python -m rheidae.plots --run checkpoints/RUN [--output loss.png]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rheidae.system import commands


def main(argv: list[str] | None = None) -> int:
    """Command line of ``rheidae plots``."""
    parser = argparse.ArgumentParser(prog="rheidae plots", description="Draw the losses of a run.")
    parser.add_argument("--run", required=True, help="run folder, such as checkpoints/demo; it may still be running")
    parser.add_argument("--output", help="PNG file (default: loss.png in the run folder)")
    arguments = parser.parse_args(argv)

    def command() -> None:
        from rheidae.runs.files import FILES
        from rheidae.runs.folder import read_history
        from rheidae.scoring.plots import loss_curve

        folder = Path(arguments.run)
        output = Path(arguments.output or folder / "loss.png")
        commands.require_harmless({"--output": output}, [folder / name for name in FILES])
        loss_curve(read_history(folder), output)
        commands.show(str(output))

    return commands.run(command)


if __name__ == "__main__":
    raise SystemExit(main())
