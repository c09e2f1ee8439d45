"""Write the model of a run as one file for other codes.

python -m rheidae.export --run checkpoints/RUN --format onnx --out model.onnx
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rheidae.system import commands


def _order(text: str) -> int:
    from rheidae.mixing.quadrature import lebedev

    try:
        lebedev(order := int(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return order


def main(argv: list[str] | None = None) -> int:
    """Command line of ``rheidae export``."""
    parser = argparse.ArgumentParser(prog="rheidae export", description="Write a model as one file.")
    parser.add_argument("--run", required=True, help="run folder, such as checkpoints/demo")
    parser.add_argument("--format", choices=("onnx", "pt2", "torchscript"), default="onnx", help="default: onnx")
    parser.add_argument("--out", required=True, help="the file; its metadata go to the same name with .json behind")
    box3d = parser.add_mutually_exclusive_group()
    box3d.add_argument("--with-box3d", dest="with_box3d", action="store_true", help="compute Box3D inside (default)")
    box3d.add_argument("--without-box3d", dest="with_box3d", action="store_false", help="Box3D's answer is an input")
    parser.add_argument(
        "--box3d-order",
        type=_order,
        metavar="N",
        help="Lebedev order of Box3D inside (default: that of the run's data file, else that of box3d_flux)",
    )
    parser.set_defaults(with_box3d=True)
    arguments = parser.parse_args(argv)

    def command() -> None:
        import torch

        from rheidae.export.model import export_run
        from rheidae.runs.folder import FILES, load_run

        torch.set_num_threads(1)
        outputs = {"--out": Path(arguments.out), "metadata of --out": Path(f"{arguments.out}.json")}
        commands.require_harmless(outputs, [Path(arguments.run, name) for name in FILES])
        options: dict[str, Any] = {"with_box3d": arguments.with_box3d}
        if arguments.box3d_order is not None:
            options["box3d_order"] = arguments.box3d_order
        metadata = export_run(load_run(arguments.run), arguments.out, arguments.format, **options)
        names = ", ".join(f"{entry['name']} (n, 24)" for entry in metadata["inputs"])
        reached = metadata["tolerance"]
        commands.show(
            f"{arguments.out}: {names} -> F_final (n, 24); differs from the estimator by at most "
            f"{reached['reached']:.1e} of the total density in {reached['rows_compared']} states. "
            f"Metadata: {arguments.out}.json"
        )

    return commands.run(command)


if __name__ == "__main__":
    raise SystemExit(main())
