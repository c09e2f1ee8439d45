"""Training schedules as skorch callbacks: constructors store, ``on_*`` methods act."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from skorch.callbacks import Callback
from torch import nn
from tqdm import tqdm

from rheidae import commands
from rheidae.files import Outputs

log = logging.getLogger(__name__)

BATCH_NORM = nn.modules.batchnorm._BatchNorm


class WarmupLR(Callback):
    """Raise the learning rate linearly over the first epochs.

    Parameters
    ----------
    warmup_epochs : int
        Epoch k, counted from 1, runs at ``start_factor + (1 - start_factor) (k - 1)/warmup_epochs`` of the
        rate; epoch ``warmup_epochs + 1`` is the first at the full one. Too few lets the first, largest
        gradients decide; too many wastes epochs.
    start_factor : float
        Fraction of the learning rate in the first epoch.
    """

    def __init__(self, warmup_epochs: int = 5, start_factor: float = 0.1) -> None:
        self.warmup_epochs = warmup_epochs
        self.start_factor = start_factor

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        """Remember the rates to arrive at."""
        self.rates_ = [group["lr"] for group in net.optimizer_.param_groups]
        self.epoch_ = 0

    def on_epoch_begin(self, net: Any, **kwargs: Any) -> None:
        """Set the rate of this epoch; from the one after the warm-up on, leave it to other schedules."""
        if self.epoch_ <= self.warmup_epochs:
            factor = self.start_factor + (1 - self.start_factor) * self.epoch_ / self.warmup_epochs
            for group, rate in zip(net.optimizer_.param_groups, self.rates_, strict=True):
                group["lr"] = rate * factor
        self.epoch_ += 1


class BatchNormRecalibration(Callback):
    """Replace the running statistics of batch norms by exact means under the present weights.

    Running averages trail behind weights that move quickly. After the training batches of an epoch, and before its
    validation, the training rows go through the network once more, without gradients, and the statistics become the
    plain mean over their batches.

    Parameters
    ----------
    warmup_epochs : int
        First epochs in which nothing is done.
    max_batches : int or None
        Batches to use; None for all. Fewer are quicker and noisier.
    """

    def __init__(self, warmup_epochs: int = 0, max_batches: int | None = None) -> None:
        self.warmup_epochs = warmup_epochs
        self.max_batches = max_batches

    def on_epoch_begin(self, net: Any, dataset_train: Any = None, **kwargs: Any) -> None:
        """Remember the training rows, and that this epoch is not yet recalibrated."""
        self.dataset_train_ = dataset_train
        self.done_ = False

    def on_batch_begin(self, net: Any, batch: Any = None, training: bool = False, **kwargs: Any) -> None:
        """Recalibrate before the first validation batch."""
        if not training:
            self._recalibrate(net)

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Recalibrate where no validation batch came by."""
        self._recalibrate(net)
        self.dataset_train_ = None

    def _recalibrate(self, net: Any) -> None:
        if self.done_ or len(net.history) <= self.warmup_epochs:
            return
        self.done_ = True
        norms = [module for module in net.module_.modules() if isinstance(module, BATCH_NORM)]
        if not norms:
            return
        momenta = [norm.momentum for norm in norms]
        net.module_.eval()  # dropout stays off; only the norms collect
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # torch's sign for a plain mean
            norm.train()
        with torch.no_grad():
            for index, (x, _) in enumerate(net.get_iterator(self.dataset_train_, training=False)):
                if index == self.max_batches:
                    break
                net.infer(x)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        net.module_.eval()


class PeriodicSave(Callback):
    """Save weights and history every few epochs; an error while saving stops the run.

    Parameters
    ----------
    folder : path
        Takes ``last.safetensors`` and ``history.json``.
    every : int
        Epochs between saves.
    """

    def __init__(self, folder: str | Path, every: int = 25) -> None:
        self.folder = folder
        self.every = every

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Save if the epoch's number is a multiple of `every`."""
        if len(net.history) % self.every == 0:
            save_weights(net, Path(self.folder) / "last.safetensors")
            save_history(net, Path(self.folder) / "history.json")


class EpochProgress(Callback):
    """A progress bar on a terminal, plain lines in a log.

    Parameters
    ----------
    epochs : int
        Length of the bar.
    lines : int
        About how many lines a log gets.
    """

    def __init__(self, epochs: int, lines: int = 10) -> None:
        self.epochs = epochs
        self.lines = lines

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        """Open the bar."""
        self.bar_ = tqdm(total=self.epochs, desc="training", unit="epoch", disable=not commands.on_terminal())

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Show the losses."""
        last = net.history[-1]
        losses = {name: f"{last[name]:.3e}" for name in ("train_loss", "valid_loss") if name in last}
        if not self.bar_.disable:
            self.bar_.set_postfix(losses)
            self.bar_.update()
        elif last["epoch"] == 1 or last["epoch"] % max(1, self.epochs // self.lines) == 0:
            log.info("epoch %4d  %s", last["epoch"], "  ".join(f"{name} {value}" for name, value in losses.items()))

    def on_train_end(self, net: Any, **kwargs: Any) -> None:
        """Close the bar."""
        self.bar_.close()


def save_weights(net: Any, path: Path) -> None:
    """Write the module's parameters and buffers as safetensors, complete or not at all."""
    from safetensors.torch import save_file

    with Outputs() as outputs:
        state = {name: tensor.contiguous() for name, tensor in net.module_.state_dict().items()}
        save_file(state, outputs.path(path))


def save_history(net: Any, path: Path) -> None:
    """Write the training history as JSON, complete or not at all."""
    with Outputs() as outputs:
        net.history.to_file(str(outputs.path(path)))
