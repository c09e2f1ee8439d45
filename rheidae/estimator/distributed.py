"""`FluxRegressor` trained by several processes: GPUs of a machine, or of several machines."""

from __future__ import annotations

import os
from typing import Any

import torch
from sklearn.base import clone
from torch import nn

from rheidae.estimator.callbacks.saving import copy_state
from rheidae.estimator.processes import Alone, GlobalBatchNorm, Several, launched
from rheidae.estimator.regressor import FluxRegressor
from rheidae.exceptions import RunError

# What accelerate calls the ways to start processes that hold a whole network each.
KINDS = ("NO", "MULTI_CPU", "MULTI_GPU")


class DistributedFluxRegressor(FluxRegressor):
    """`FluxRegressor` trained by several processes at once, as ``accelerate launch`` or ``torchrun`` starts them.

    Every process runs the same program and calls `fit` with the same rows. With one process it is `FluxRegressor`; with
    several the result is that of one, to rounding.

    Parameters
    ----------
    *args, **kwargs
        As of `FluxRegressor`. `batch_size` counts the rows of all processes together. `device` stays None: accelerate
        chooses it.
    accelerator : accelerate.Accelerator
        Knows the processes; ``Accelerator(cpu=True)`` on machines without GPUs.

    Notes
    -----
    No `torch.nn.parallel.DistributedDataParallel` is involved: it adds up the gradient of one loss while ``backward``
    runs, and the gradients of several tasks are no such thing. Per batch, two sums over the processes are taken: of the
    predictions, and of the Jacobian of the tasks (one row without `pcgrad`).

    Batch norms of one dimension take their statistics over the rows of all processes, at the price of two small sums
    more per layer, pass and direction. Masks of dropout differ from process to process, so that
    with dropout the result is another than one process's, as it is with another seed.

    Without a seed (`random_state`) the first process draws one for all. Weights, buffers and the numbers of the history
    are the first process's after every epoch, in case that processors of different kinds round differently.

    `predict`, `score` and `calibrate` work in the process that calls them, without the others.

    Examples
    --------
    >>> from accelerate import Accelerator
    >>> from rheidae.estimator.distributed import DistributedFluxRegressor
    >>> model = DistributedFluxRegressor(accelerator=Accelerator(cpu=True), random_state=0)  # doctest: +SKIP
    >>> model.fit(X, y)                                                                      # doctest: +SKIP
    """

    def __init__(self, *args: Any, accelerator: Any, device: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, device=device, **kwargs)
        self.accelerator = accelerator

    @property
    def _device(self) -> torch.device:
        return self.accelerator.device

    @property
    def _processes(self) -> Alone:
        return Several(self.accelerator) if self.accelerator.num_processes > 1 else Alone()

    @property
    def _prints(self) -> bool:
        return self.accelerator.is_main_process

    def check_training_readiness(self) -> None:
        """Refuse what the accelerator would do and this estimator does not."""
        super().check_training_readiness()
        accelerator = self.accelerator
        kind = getattr(accelerator.distributed_type, "value", accelerator.distributed_type)
        if kind not in KINDS:
            raise ValueError(f"accelerator: {kind} divides a network; the networks here are small, and stay whole")
        if accelerator.gradient_accumulation_steps != 1:
            raise ValueError("accelerator: gradient_accumulation_steps has to be 1; choose a larger batch_size instead")
        if accelerator.mixed_precision != "no":
            raise ValueError("accelerator: mixed_precision has to be 'no'; set that of the estimator to True instead")
        if self.device is not None:
            raise ValueError(f"device={self.device!r} has to be None: the accelerator knows where each process works")
        if launched() and accelerator.num_processes == 1:
            raise RunError(
                f"{os.environ['WORLD_SIZE']} processes were started, but the accelerator knows of one, and each would "
                "train alone; on machines without GPUs set ACCELERATE_USE_CPU=true, or give Accelerator(cpu=True)"
            )

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Give every process the first one's weights, and batch norms the rows of all processes."""
        super().on_train_begin(net, X, y, **kwargs)
        for part in (self.module_, self.criterion_):
            part.to(self._device)
        processes = self._processes
        if isinstance(processes, Several):
            for layer in self.module_.modules():
                if type(layer) is nn.BatchNorm1d:
                    layer.__class__ = GlobalBatchNorm
            processes.take_the_first(self)

    def on_train_end(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Leave a network behind that knows nothing of processes."""
        self.accelerator.wait_for_everyone()
        super().on_train_end(net, X, y, **kwargs)
        for layer in self.module_.modules():
            if type(layer) is GlobalBatchNorm:
                layer.__class__ = nn.BatchNorm1d  # type: ignore[assignment]

    def save_params(self, *args: Any, **kwargs: Any) -> None:
        """Save as `skorch.NeuralNet` does, in the first process alone."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            super().save_params(*args, **kwargs)

    def plain(self) -> FluxRegressor:
        """Return the model as a `FluxRegressor` on the CPU, which can be pickled, exported and opened anywhere.

        Returns
        -------
        FluxRegressor
            With copies of weights, optimizer and history; it can be trained on by `partial_fit`.
        """
        params = self.get_params(deep=False)
        del params["accelerator"]
        other = clone(FluxRegressor(**{**params, "device": "cpu"}))
        for name in ("n_features_in_", "feature_names_in_", "n_outputs_", "flat_target_", "error_scale_", "rng_state_"):
            if hasattr(self, name):
                setattr(other, name, getattr(self, name))
        if self.initialized_:
            other.initialize()
            for part in ("module_", "criterion_", "optimizer_"):
                getattr(other, part).load_state_dict(copy_state(getattr(self, part).state_dict()))
            other.history_ = self.history
        return other


def distribute(regressor: FluxRegressor, accelerator: Any) -> DistributedFluxRegressor:
    """Return an untrained estimator of the same parameters that trains by several processes."""
    return DistributedFluxRegressor(**{**regressor.get_params(deep=False), "device": None}, accelerator=accelerator)
