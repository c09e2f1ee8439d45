"""From configuration files to an estimator."""

from __future__ import annotations

import logging
from typing import Any

import torch
from skorch.callbacks import EarlyStopping, LRScheduler
from torch.optim.lr_scheduler import LinearLR

from rheidae.config import Config, TrainParms
from rheidae.estimator.callbacks import BatchNormRecalibration, LagrangianConstraints, OneCycle
from rheidae.estimator.callbacks.weighting import WEIGHTINGS
from rheidae.estimator.networks import ARCHITECTURES
from rheidae.estimator.regressor import FluxRegressor
from rheidae.exceptions import ConfigError, RunError

log = logging.getLogger(__name__)


def build_regressor(config: Config, parms: TrainParms) -> FluxRegressor:
    """Return the untrained estimator that two configuration files describe."""
    callbacks: list[tuple[str, Any]] = []
    if parms.lr_warmup.enabled:
        start, epochs = parms.lr_warmup.start_factor, parms.lr_warmup.warmup_epochs
        callbacks.append(("lr_warmup", LRScheduler(LinearLR, start_factor=start, total_iters=epochs)))
    if parms.bn_recalibrate.enabled:
        recalibration = BatchNormRecalibration(**parms.bn_recalibrate.model_dump(exclude={"enabled"}))
        callbacks.append(("bn_recalibrate", recalibration))
    has_validation = config.data.val_split > 0
    if parms.lr_scheduler.type == "reduce_on_plateau":
        schedule = parms.lr_scheduler.model_dump(exclude={"type"})
        monitor = "valid_loss" if has_validation else "train_loss"
        callbacks.append(("lr_plateau", LRScheduler("ReduceLROnPlateau", monitor=monitor, **schedule)))
    elif parms.lr_scheduler.type == "one_cycle":
        callbacks.append(("lr_one_cycle", OneCycle(config.training.epochs)))
    elif parms.lr_scheduler.type == "cosine":
        callbacks.append(("lr_cosine", LRScheduler("CosineAnnealingLR", T_max=config.training.epochs)))
    if parms.early_stop.enabled:
        if not has_validation:
            raise RunError("early_stop.enabled needs a validation loss: set data.val_split above 0, or disable it")
        stop = EarlyStopping(
            patience=parms.early_stop.patience,
            threshold=parms.early_stop.min_delta,
            threshold_mode="abs",
            sink=log.info,
        )
        callbacks.append(("early_stop", stop))
    weighting: Any = parms.weighting.scheme
    if weighting in WEIGHTINGS:
        weighting = WEIGHTINGS[weighting](**parms.weighting.params)
    constraints: Any = False
    if parms.constraints.enabled:
        constraints = LagrangianConstraints(
            parms.constraints.lr_lambda, parms.constraints.rho, config.loss.density_floor
        )
    return FluxRegressor(
        ARCHITECTURES[config.model.architecture],
        weighting=weighting,
        pcgrad=parms.pcgrad,
        constraints=constraints,
        mixed_precision=config.training.mixed_precision,
        predict_residual=parms.predict_residual,
        random_state=config.data.seed,
        lr=config.optimizer.lr,
        optimizer__weight_decay=config.optimizer.weight_decay,
        optimizer__betas=tuple(config.optimizer.betas),
        optimizer__eps=config.optimizer.eps,
        max_epochs=config.training.epochs,
        batch_size=config.data.batch_size,
        grad_clip=config.training.grad_clip,
        device=resolve_device(config.training.device),
        callbacks=callbacks,
        callbacks__lr_schedule=None,  # the configuration says what the learning rate does
        callbacks__print_log=None,
        **{f"module__{name}": value for name, value in config.model.options().items()},
        **{f"criterion__{name}": value for name, value in config.loss},
    )


def require_choice(config: Config, parms: TrainParms) -> None:
    """Raise `ConfigError` where `predict_residual` is asked of a network that adds to a state of its own choice."""
    architecture = config.model.architecture
    adds_to = getattr(ARCHITECTURES[architecture], "adds_to", None)
    if parms.predict_residual and adds_to is not None:
        open_to_it = [name for name, network in ARCHITECTURES.items() if not hasattr(network, "adds_to")]
        raise ConfigError(
            f"predict_residual does nothing for architecture {architecture}, which adds to the {adds_to} state: leave "
            f"it out, or choose --architecture {' or '.join(open_to_it)}"
        )


def resolve_device(name: str) -> str:
    """Return the device for ``auto|cpu|cuda|mps``; raise `RunError` where the one asked for is not there."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(device for device, there in available.items() if there)
    if not available[name]:
        raise RunError(f"training.device: {name} is not available on this machine; use auto or cpu")
    return name
