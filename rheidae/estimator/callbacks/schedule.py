"""What the learning rate does."""

from __future__ import annotations

import math
from typing import Any

from skorch.callbacks import Callback


def one_cycle(epoch: int, epochs: int) -> float:
    """Factor of the learning rate at an epoch, counted from 0, of a training of so many epochs.

    Smith and Topin (arXiv:1708.07120): up for three tenths of the training, from 1/25 to 1, then down to 4e-6, both
    along half a cosine. Beyond the last epoch it stays as it is there.
    """
    if epochs == 1:
        return 1.0
    done = min(epoch / (epochs - 1), 1.0)
    start, end, part = (1 / 25, 1.0, done / 0.3) if done < 0.3 else (1.0, 4e-6, (done - 0.3) / 0.7)
    return end + (start - end) * (1 + math.cos(math.pi * part)) / 2


class OneCycle(Callback):
    """One rise and fall of the learning rate, `one_cycle`, in each training.

    Each call of ``fit`` or ``partial_fit`` is a training of its own, also after another, and with weights that were
    loaded; ``resume`` goes on with that of then. Afterwards the optimizer has its full learning rates again.

    Parameters
    ----------
    epochs : int or None
        Length of the training; None for as many as it was started for.
    """

    def __init__(self, epochs: int | None = None) -> None:
        self.epochs = epochs

    running_: bool = False

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        """Begin anew, from the rates of now; after a training that an error ended, from those before it."""
        if not self.running_:
            for group in net.optimizer_.param_groups:
                group["initial_lr"] = group["lr"]
        self.done_, self.running_ = 0, True

    def on_epoch_begin(self, net: Any, **kwargs: Any) -> None:
        """Set the learning rates of the epoch."""
        factor = one_cycle(self.done_, self.epochs or net.planned_epochs_)
        for group in net.optimizer_.param_groups:
            group["lr"] = factor * group.setdefault("initial_lr", group["lr"])
        self.done_ += 1

    def on_train_end(self, net: Any, **kwargs: Any) -> None:
        """Give the learning rates back."""
        for group in net.optimizer_.param_groups:
            group["lr"] = group["initial_lr"]
        self.running_ = False
