"""Train a model on a preprocessed file.

python -m rheidae.train --config config/model.yaml --train-parms config/train_parms.yaml
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rheidae.exceptions import RunStopped
from rheidae.system import commands


def main(argv: list[str] | None = None) -> int:
    """Command line of ``rheidae train``."""
    parser = argparse.ArgumentParser(prog="rheidae train", description="Train a model.")
    parser.add_argument("--config", default="config/model.yaml", help="data, model, optimizer (%(default)s)")
    parser.add_argument("--train-parms", default="config/train_parms.yaml", help="schedules (%(default)s)")
    parser.add_argument(
        "--predict-residual",
        action="store_true",
        help="the network adds to Box3D's answer, not to the initial state (else: train_parms.yaml); for "
        "networks that leave this open, architecture residual",
    )
    parser.add_argument("--architecture", choices=("mixing", "residual"), help="of the network (else: model.yaml)")
    parser.add_argument("--run-id", help="name of the run folder (default: the time)")
    parser.add_argument("--resume-from", metavar="RUN", help="run folder to go on with (else: model.yaml)")
    parser.add_argument("--smoke", action="store_true", help="one batch forward and backward, then stop")
    parser.add_argument(
        "--threads",
        type=commands.thread_count,
        default=1,
        help="threads of torch and Numba (default 1; more pay for wide networks in large batches alone)",
    )
    arguments = parser.parse_args(argv)

    def command() -> None:
        import torch

        from rheidae.config import Config, TrainParms, read_config
        from rheidae.estimator.processes import is_first
        from rheidae.runs.build import require_choice
        from rheidae.runs.folder import FILES
        from rheidae.runs.train import smoke, train

        torch.set_num_threads(arguments.threads)
        config = read_config(arguments.config, Config)
        parms = read_config(arguments.train_parms, TrainParms)
        if arguments.predict_residual:
            parms = parms.model_copy(update={"predict_residual": True})
        if arguments.architecture:
            model = config.model.model_copy(update={"architecture": arguments.architecture})
            config = config.model_copy(update={"model": model})
        require_choice(config, parms)
        if arguments.smoke:
            commands.show(f"one batch forward and backward: loss {smoke(config, parms):.4e}")
            return
        if arguments.resume_from:
            training = config.training.model_copy(update={"resume_from": arguments.resume_from})
            config = config.model_copy(update={"training": training})
        elif arguments.run_id is not None:
            folder = Path(config.training.checkpoint_dir, arguments.run_id)
            commands.require_harmless(
                {f"--run-id: {name}": folder / name for name in FILES},
                map(Path, (arguments.config, arguments.train_parms, config.data.processed_path)),
            )
        try:
            folder = train(config, parms, arguments.run_id, arguments.threads)
            if is_first():
                commands.show(str(folder))
        except RunStopped as stop:
            raise SystemExit(128 + stop.signal) from None

    return commands.run(command)


if __name__ == "__main__":
    raise SystemExit(main())
