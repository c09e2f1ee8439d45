"""Write the model of a run, the one that ships, or an analytic scheme, as one file for other codes.

python -m rheidae.export --pretrained --out model.onnx
python -m rheidae.export --run checkpoints/RUN --format onnx --out model.onnx
python -m rheidae.export --scheme asymptotic --out scheme.onnx
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
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", help="run folder, such as checkpoints/demo")
    source.add_argument("--pretrained", action="store_true", help="the model that ships with the package")
    source.add_argument("--scheme", choices=("asymptotic", "box3d", "power"), help="an analytic scheme")
    parser.add_argument(
        "--format", choices=("onnx", "object", "pt2", "torchscript"), default="onnx", help="default: onnx"
    )
    parser.add_argument(
        "--cpu",
        choices=("native", "x86-64-v2", "x86-64-v3", "x86-64-v4"),
        default="native",
        help="of an object: this machine's processor (default), or any with what that level has (v3: AVX2)",
    )
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
    parser.add_argument(
        "--order", type=_order, metavar="N", help="Lebedev order of --scheme (default: 41, 23, 31 for the three)"
    )
    parser.add_argument(
        "--full",
        action="store_true",
        help="give growth rate, crossings, transition matrices and standard deviations too (default model)",
    )
    parser.set_defaults(with_box3d=True)
    arguments = parser.parse_args(argv)
    if arguments.scheme is None and arguments.order is not None:
        parser.error("--order is that of --scheme; the models' orders are their own")
    if arguments.cpu != "native" and arguments.format != "object":
        parser.error("--cpu is for --format object; others run on any processor")
    of_models = (arguments.full, not arguments.with_box3d, arguments.box3d_order)
    if arguments.scheme is not None and (any(of_models) or arguments.format not in ("onnx", "object")):
        parser.error("--full, --without-box3d, --box3d-order, pt2 and torchscript are for models")

    def command() -> None:
        outputs = {"--out": Path(arguments.out), "metadata of --out": Path(f"{arguments.out}.json")}
        if arguments.pretrained and arguments.format == "onnx" and not arguments.full:
            from rheidae.pretrained import write_onnx

            metadata = write_onnx(arguments.out)
        elif arguments.scheme is not None:
            import torch

            from rheidae.export.model import export_scheme

            torch.set_num_threads(1)
            metadata = export_scheme(
                arguments.scheme, arguments.out, arguments.format, order=arguments.order, cpu=arguments.cpu
            )
        else:
            import torch

            from rheidae.export.model import export_run
            from rheidae.pretrained import pretrained_run
            from rheidae.runs.files import FILES
            from rheidae.runs.folder import load_run

            torch.set_num_threads(1)
            options: dict[str, Any] = {"with_box3d": arguments.with_box3d, "full": arguments.full, "cpu": arguments.cpu}
            if arguments.box3d_order is not None:
                options["box3d_order"] = arguments.box3d_order
            if not arguments.pretrained:
                commands.require_harmless(outputs, [Path(arguments.run, name) for name in FILES])
            run = pretrained_run() if arguments.pretrained else load_run(arguments.run)
            metadata = export_run(run, arguments.out, arguments.format, **options)
        names, given = (
            ", ".join(f"{entry['name']} (n, {entry['shape'][1]})" for entry in metadata[k])
            for k in ("inputs", "outputs")
        )
        reached = metadata["tolerance"]
        compared = "estimator" if arguments.scheme is None else "scheme"
        commands.show(
            f"{arguments.out}: {names} -> {given}; F_final differs from the {compared} by at most "
            f"{reached['reached']:.1e} of the total density in {reached['rows_compared']} states. "
            f"Metadata: {arguments.out}.json"
        )

    return commands.run(command)


if __name__ == "__main__":
    raise SystemExit(main())
