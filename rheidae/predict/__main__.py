"""Mix the moments of a file.

rheidae predict --model asymptotic --data snapshot.h5 --out mixed.h5
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rheidae.export.endings import ENDINGS
from rheidae.system import commands


def main(argv: list[str] | None = None) -> int:
    """Command line of ``rheidae predict``."""
    parser = argparse.ArgumentParser(prog="rheidae predict", description="Mix the moments of a file.")
    parser.add_argument(
        "--model",
        required=True,
        help="a scheme (asymptotic, box3d, power), pretrained, a run folder, or an exported model "
        f"({', '.join(ENDINGS)})",
    )
    parser.add_argument("--data", required=True, help="HDF5 file: a snapshot, a raw or a preprocessed file")
    parser.add_argument("--out", required=True, help="HDF5 file to write; it appears when it is complete")
    parser.add_argument(
        "--layout", help="snapshot, raw, preprocessed, or a YAML file that names the datasets (default: what fits)"
    )
    parser.add_argument("--full", action="store_true", help="write transition matrices too, for energy groups")
    parser.add_argument("--plot", metavar="PNG", help="draw a slice: densities before and after, change, growth rate")
    parser.add_argument("--block-cells", type=int, metavar="N", help="cells of a thread at a time (default: 16384)")
    parser.add_argument(
        "--threads", type=commands.thread_count, metavar="N", help="blocks at a time (default: one per processor)"
    )
    arguments = parser.parse_args(argv)
    if arguments.block_cells is not None and arguments.block_cells < 1:
        parser.error("--block-cells must be 1 or more")

    def command() -> None:
        from rheidae.predict.stream import BLOCK_CELLS, predict_file
        from rheidae.runs.files import FILES

        model = Path(arguments.model)
        inputs = [model, *(model / name for name in FILES), Path(arguments.data), Path(arguments.layout or model)]
        outputs = {"--out": Path(arguments.out)} | ({"--plot": Path(arguments.plot)} if arguments.plot else {})
        commands.require_harmless(outputs, inputs)
        done = predict_file(
            arguments.model, arguments.data, arguments.out, layout=arguments.layout, full=arguments.full,
            block_cells=arguments.block_cells or BLOCK_CELLS, threads=arguments.threads,
        )  # fmt: skip
        if arguments.plot:
            from rheidae.predict.plot import plot_slice

            plot_slice(arguments.out, arguments.plot)
        counts = "".join(f", {count} {name}" for name, count in done.flags.items() if count)
        commands.show(f"{arguments.out}: {done.cells} cells{counts}")

    return commands.run(command)


if __name__ == "__main__":
    raise SystemExit(main())
