"""All commands under one name: ``rheidae COMMAND ...``, or ``python -m rheidae COMMAND ...``.

Each is also a module: ``python -m rheidae.train`` is ``rheidae train``.
"""

from __future__ import annotations

import argparse
import importlib

import rheidae

COMMANDS = {
    "init": ("rheidae.init", "put commented configuration files into a folder"),
    "datasets": ("rheidae.datasets.__main__", "write the sample simulations as raw files"),
    "simulate": ("rheidae.simulate.__main__", "run simulations until they settle"),
    "preprocess": ("rheidae.preprocess.__main__", "raw simulation files to training sets"),
    "train": ("rheidae.train", "train a model"),
    "plots": ("rheidae.plots", "draw the losses of a run"),
    "evaluate": ("rheidae.evaluate", "compare models with the analytic schemes"),
    "ablation": ("rheidae.ablation", "score every architecture, weighting and training size"),
    "predict": ("rheidae.predict.__main__", "mix the moments of a file"),
    "export": ("rheidae.export.__main__", "write a model as one file for other codes"),
    "pretrained": ("rheidae.pretrained.__main__", "train the model that ships again"),
}
"""Module of each command, whose ``main(argv)`` it is, and what it does."""


def main(argv: list[str] | None = None) -> int:
    """Command line of ``rheidae``: hand the arguments to the command that the first of them names."""
    parser = argparse.ArgumentParser(
        prog="rheidae",
        description="Sub-grid models of the neutrino fast flavor instability.",
        epilog="commands:\n"
        + "\n".join(f"  {name:11s} {what}" for name, (_, what) in COMMANDS.items())
        + "\n\nrheidae COMMAND --help says what a command takes.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"rheidae {rheidae.__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="of the command")
    arguments = parser.parse_args(argv)
    module, _ = COMMANDS[arguments.command]
    status: int = importlib.import_module(module).main(arguments.arguments)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
