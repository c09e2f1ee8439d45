"""What the learning rate does."""

from __future__ import annotations

import math


class OneCycle:
    """Factor of the learning rate at each epoch: up for three tenths of the training, and down to next to nothing.

    Smith and Topin (arXiv:1708.07120): from 1/25 to 1, then to 4e-6, both along half a cosine. For
    ``LRScheduler("LambdaLR", lr_lambda=OneCycle(epochs))``.

    Parameters
    ----------
    epochs : int
        Length of the training.
    """

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def __call__(self, epoch: int) -> float:
        """Return the factor at an epoch, counted from 0; beyond the last it stays as it is there."""
        if self.epochs == 1:
            return 1.0
        done = min(epoch / (self.epochs - 1), 1.0)
        start, end, part = (1 / 25, 1.0, done / 0.3) if done < 0.3 else (1.0, 4e-6, (done - 0.3) / 0.7)
        return end + (start - end) * (1 + math.cos(math.pi * part)) / 2
