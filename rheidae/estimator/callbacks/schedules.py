"""The learning rate of the first epochs."""

from __future__ import annotations

from typing import Any

from skorch.callbacks import Callback


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
